"""Commands, over MQTT or from this machine: looked at, carried out, answered, put on record. Synchronous.

The answer is the record: it goes through the journal and its outbox like a verdict, so that it is chained, exported,
delivered at least once, and not lost when the broker is away for a moment. A sender that named a response topic of its
own (MQTT 5, section 4.10.1) gets a copy there besides, with its correlation data and without a promise: an answer to a
topic that the broker's access rules refuse must not stand in the way of what waits behind it.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from station import wire
from station.errors import ProtocolError, StationError
from station.ids import uuid7
from station.messages import Incoming, Origin, Outgoing, Response, Result, Verb
from station.ports import Clock
from station.requests import REQUESTS, Request, check_size, check_time, transaction_of

logger = logging.getLogger(__name__)

REMEMBERED = 256
"""Newest answers that are given again when their transaction comes again."""
PENDING = 32
"""Commands that may wait for their outcome at the same time."""
UNREADABLE = "unreadable"
"""Stands for a verb that is no verb in the topic of the answer."""
ANSWER_TOPIC_CHARACTERS = 512
_VERB = re.compile(r"[a-z][a-z-]{0,31}")

R = TypeVar("R", bound=Request)


class Refusal(StationError):
    """A command is not carried out; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Later:
    """A command's outcome is not known yet.

    Attributes:
        poll: returns the outcome, or None as long as there is none; raises Refusal.
        until_s: monotonic time at which it is given up.
        given_up: why, in one line.
    """

    poll: Callable[[], Result | None]
    until_s: float
    given_up: str


Handler = Callable[[Request, UUID], Result | Later]
"""Carries a command out. Called with the request and the id that its record will have; raises Refusal."""


def handles(kind: type[R], handler: Callable[[R, UUID], Result | Later]) -> Handler:
    """Make a handler of one kind of request fit for the table of all of them."""

    def call(request: Request, command: UUID) -> Result | Later:
        if not isinstance(request, kind):
            raise TypeError(f"{type(request).__name__} is not a {kind.__name__}")
        return handler(request, command)

    return call


@dataclass(frozen=True, slots=True)
class _Asked:
    """A command on its way to its answer."""

    incoming: Incoming
    verb: str
    id: UUID
    transaction: str | None
    request: Request | None = None


class Commander:
    """Looks at requests and answers them; one thread uses it.

    Args:
        station: the station's name.
        allow: verbs that the configuration allows over MQTT.
        handlers: who carries out which verb.
        clock: time.
        record: takes an answer for the journal and the broker.
        copy: sends a copy of an answer to another topic with correlation data, best effort.
    """

    def __init__(
        self,
        *,
        station: str,
        allow: frozenset[Verb],
        handlers: Mapping[Verb, Handler],
        clock: Clock,
        record: Callable[[Outgoing], object],
        copy: Callable[[str, bytes, bytes | None], object],
    ) -> None:
        self._station = station
        self._allow = allow
        self._handlers = handlers
        self._clock = clock
        self._record = record
        self._copy = copy
        self._answers: OrderedDict[tuple[str, str], Outgoing] = OrderedDict()
        self._refused: set[tuple[str, str]] = set()
        self._pending: dict[UUID, tuple[_Asked, Later]] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether a command waits for its outcome: then `look` is to be called often."""
        return bool(self._pending)

    def remember(self, answers: Iterable[Outgoing]) -> None:
        """Answers of a former run, oldest first: what was done then is not done again."""
        for message in answers:
            try:
                response = wire.decode(Response, message.payload)
            except ProtocolError:
                continue
            self._keep(response, message)

    def handle(self, incoming: Incoming) -> None:
        """Look at a request and carry it out or refuse it; nothing is raised for whatever it holds."""
        if incoming.retained:
            logger.warning(
                "a request on %s is ignored: it is retained by the broker, which would send it again and again; "
                "publish requests without the retain flag",
                ascii(incoming.topic[-80:]),
            )
            return
        verb = incoming.topic.rpartition("/")[2]
        name = verb if _VERB.fullmatch(verb) else UNREADABLE
        asked = _Asked(
            incoming, name, uuid7(int(self._clock.now().timestamp() * 1e3)), transaction_of(incoming.payload)
        )
        if asked.transaction is not None and self._was_asked(asked, asked.transaction):
            return
        try:
            request = self._read(incoming, name)
        except StationError as exc:
            self._answer(asked, None, str(exc))
            return
        self._carry_out(_Asked(incoming, name, asked.id, asked.transaction, request), Verb(name))

    def look(self) -> None:
        """Answer the commands whose outcome is known by now, and those that are given up."""
        now_s = self._clock.monotonic_s()
        for identifier, (asked, later) in list(self._pending.items()):
            try:
                result = later.poll()
                if result is None and now_s >= later.until_s:
                    raise Refusal(later.given_up)
            except Refusal as exc:
                del self._pending[identifier]
                self._answer(asked, None, str(exc))
            else:
                if result is not None:
                    del self._pending[identifier]
                    self._answer(asked, result, None)

    def give_up(self) -> None:
        """Refuse what still waits: the station stops."""
        for asked, _ in self._pending.values():
            self._answer(asked, None, "the station stops")
        self._pending.clear()

    def _was_asked(self, asked: _Asked, transaction: str) -> bool:
        """Whether this transaction is known; then its answer is given again, or comes by itself."""
        if any((other.verb, other.transaction) == (asked.verb, transaction) for other, _ in self._pending.values()):
            return True
        known = self._answers.get((asked.verb, transaction))
        if known is None:
            return False
        self._answers.move_to_end((asked.verb, transaction))
        self._send(known, asked.incoming)
        return True

    def _read(self, incoming: Incoming, name: str) -> Request:
        check_size(incoming.payload)
        try:
            verb = Verb(name)
        except ValueError:
            raise Refusal(f"the verb is not known; there are {', '.join(Verb)}") from None
        if incoming.origin is Origin.MQTT and verb not in self._allow:
            raise Refusal(f"{verb} is not allowed: commands.allow in the station's configuration does not name it")
        request = wire.decode(REQUESTS[verb], incoming.payload)
        check_time(request, self._clock.now())
        return request

    def _carry_out(self, asked: _Asked, verb: Verb) -> None:
        assert asked.request is not None
        handler = self._handlers.get(verb)
        try:
            if handler is None:
                raise Refusal(f"{verb} means nothing to this station: it has no such part")
            if len(self._pending) >= PENDING:
                raise Refusal(f"{PENDING} commands wait for their outcome already; try again later")
            result = handler(asked.request, asked.id)
        except StationError as exc:
            self._answer(asked, None, str(exc))
            return
        except Exception as exc:
            # A fault of ours in a command must not stop the line.
            logger.exception("command %s %s failed", asked.verb, asked.transaction)
            self._answer(asked, None, f"the station failed at it ({type(exc).__name__}); its log says more")
            return
        if isinstance(result, Later):
            self._pending[asked.id] = (asked, result)
        else:
            self._answer(asked, result, None)

    def _answer(self, asked: _Asked, result: Result | None, reason: str | None) -> None:
        response = Response(
            id=asked.id,
            station=self._station,
            verb=asked.verb,
            transaction=asked.transaction,
            at=self._clock.now(),
            origin=asked.incoming.origin,
            accepted=reason is None,
            reason=reason,
            request=asked.request.model_dump(mode="json", exclude_unset=True) if asked.request else None,
            result=result,
        )
        if reason is None:
            logger.warning("command %s %s (%s): done", asked.verb, asked.transaction, asked.incoming.origin)
        else:
            logger.warning(
                "command %s %s (%s) is refused: %s", asked.verb, asked.transaction, asked.incoming.origin, reason
            )
        message = wire.outgoing_response(response)
        self._keep(response, message)
        self._send(message, asked.incoming)

    def _keep(self, response: Response, message: Outgoing) -> None:
        if response.transaction is None:
            return
        key = response.verb, response.transaction
        self._answers[key] = message
        if not response.accepted:
            self._refused.add(key)
        while len(self._answers) > REMEMBERED:
            # A refusal may be found out twice; what was done must not be done twice.
            gone = next((one for one in self._answers if one in self._refused), next(iter(self._answers)))
            del self._answers[gone]
            self._refused.discard(gone)

    def _send(self, message: Outgoing, incoming: Incoming) -> None:
        self._record(message)
        if incoming.reply is not None:
            incoming.reply(message.payload)
        topic = incoming.answer_to
        if topic is None:
            return
        if fault := self._unfit(topic):
            logger.warning("response topic %s: %s; the answer is on %s only", ascii(topic[:80]), fault, message.topic)
            return
        self._copy(topic, message.payload, incoming.correlation)

    def _unfit(self, topic: str) -> str | None:
        """Why nothing is sent to a topic that a stranger chose."""
        if not 0 < len(topic) <= ANSWER_TOPIC_CHARACTERS or any(mark in topic for mark in "+#\0"):
            return "is not a topic to publish on"
        if topic.startswith("$"):
            return "belongs to the broker"
        if topic.startswith("inspection/") and not topic.startswith(wire.response_topic(self._station, "")):
            return "is a topic of stations, and an answer is not what is expected there"
        return None
