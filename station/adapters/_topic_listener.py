"""How a source listens to topics: it subscribes, and is down while its subscription does not stand."""

import threading
from collections.abc import Callable, Sequence

from station.adapters._mqtt_client import MqttClient
from station.broker_settings import BrokerAccess
from station.messages import Incoming, Link
from station.ports import Clock


class TopicListener:
    """A source's subscription; the source says in its own thread how long it is served.

    Args:
        access: the broker.
        topics: topic filters.
        qos: quality of service of the subscriptions.
        reconnect_max_s: longest pause between two attempts to connect.
        clock: monotonic time.
        thread: name of the connection's thread, in which everything below is called.
        on_message: told of each message; must not wait.
        running: the subscription stands.
        down: it does not, and why.
        on_refused: told of a topic that the broker refuses, with the reason, where the others are of use without it;
            by default the source is down for that.
    """

    def __init__(
        self,
        access: BrokerAccess,
        topics: Sequence[str],
        *,
        qos: int,
        reconnect_max_s: float,
        clock: Clock,
        thread: str,
        on_message: Callable[[Incoming], object],
        running: Callable[[], None],
        down: Callable[[str], None],
        on_refused: Callable[[str, str], None] | None = None,
    ) -> None:
        self._running = running
        self._down = down
        self._on_refused = on_refused
        self._refused: str | None = None
        self._client = MqttClient(
            access.settings.model_copy(update={"reconnect_max_s": max(0.5, reconnect_max_s)}),
            host=access.host,
            port=access.port,
            client_id=access.client_id,
            password=access.password,
            will=None,
            clock=clock,
            on_connected=lambda: None,
            on_acknowledged=lambda: None,
            on_link=self._link,
            held_back=access.held_back,
            topics=topics,
            on_message=on_message,
            on_refused=self._refuse,
            # Not when it is connected: what is published before the subscription stands does not come.
            on_subscribed=self._subscribed,
            qos=qos,
            # What waited in the broker while we were away may be of any age.
            keep_session=False,
            thread=thread,
        )

    def serve(self, stopping: threading.Event) -> None:
        """Connect and deliver in the client's own thread; this one waits for the end.

        Raises:
            ConfigurationError: a certificate or key file cannot be used.
        """
        self._client.start()
        stopping.wait()
        self._client.stop(0.0)

    def _link(self, link: Link) -> None:
        if not link.connected:
            self._down(link.reason or "no connection to the broker")

    def _refuse(self, topic: str, reason: str) -> None:
        told = f"the broker refuses {topic}: {reason}"
        if self._on_refused is None:
            self._refused = told
        else:
            self._on_refused(topic, told)

    def _subscribed(self) -> None:
        refused, self._refused = self._refused, None
        if refused is None:
            self._running()
        else:
            self._down(refused)
