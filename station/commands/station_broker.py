"""Which broker a source listens to: the station's own, or one that its table names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from station.broker_settings import BrokerAccess, BrokerSettings


@dataclass(frozen=True, slots=True)
class StationBroker:
    """The station's own broker, for sources that read its topics.

    Attributes:
        settings: login, TLS, keep-alive.
        host, port: where it is now.
        client_id: the station's name at it; the sources' names are made from it.
        held_back: a reason not to connect now, in one line.
    """

    settings: BrokerSettings
    host: str
    port: int
    client_id: str
    held_back: Callable[[], str | None] = lambda: None

    def access(
        self, own: BrokerSettings | None, purpose: str, table: str, environment: Mapping[str, str]
    ) -> BrokerAccess:
        """How a source connects.

        Args:
            own: the broker that its table names; None: the station's.
            purpose: what it listens for, for its name at the broker.
            table: where `own` stands, for errors.
            environment: where credentials are.

        Raises:
            ConfigurationError: the password cannot be read.
        """
        client_id = f"{self.client_id}-{purpose}"
        if own is None:
            password = self.settings.read_password(environment)
            return BrokerAccess(self.settings, self.host, self.port, client_id, password, self.held_back)
        password = own.read_password(environment, table)
        return BrokerAccess(own, own.host, own.effective_port, own.client_id or client_id, password)
