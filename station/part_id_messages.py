"""What the parts that find part ids hand each other, within the process."""

from dataclasses import dataclass

from station.messages import PartIdState


@dataclass(frozen=True, slots=True)
class SeenId:
    """An id as a source brought it.

    Attributes:
        text: the id; None: something came that holds none.
        at_s: monotonic time that it belongs to.
        reason: why it holds none, in one line.
    """

    text: str | None
    at_s: float
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ReadCodes:
    """The codes in a picture.

    Attributes:
        texts: of those that can be read.
        unread: codes that stand there as well and cannot be read.
    """

    texts: tuple[str, ...] = ()
    unread: int = 0


@dataclass(frozen=True, slots=True)
class FoundId:
    """What is known of one frame's part id; `text` is None unless the state is `joined` or `doubled`."""

    state: PartIdState
    text: str | None = None
