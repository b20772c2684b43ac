"""`[broker]`: how an MQTT broker is reached; and how a login is written down."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from station.errors import ConfigurationError
from station.section import FilePath, Section


class Login(Section):
    """Keys of every table that holds a user name and a password."""

    username: str | None = None
    """User name at the peer."""
    password: SecretStr | None = None
    """Password; better kept out of the file: use one of the two below, or an environment variable such as
    STATION_BROKER__PASSWORD."""
    password_file: FilePath | None = None
    """File that holds the password."""
    password_credential: str | None = None
    """Name of a systemd credential that holds the password."""

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        given = self.passwords_given
        if len(given) > 1:
            raise ValueError(f"give one of password, password_file, password_credential, not {' and '.join(given)}")
        if given and self.username is None:
            raise ValueError(f"{given[0]} needs a username")
        return self

    @property
    def passwords_given(self) -> list[str]:
        """The keys that say where the password is."""
        return [name for name in ("password", "password_file", "password_credential") if getattr(self, name)]

    def read_password(self, environment: Mapping[str, str], table: str = "broker") -> str | None:
        """Return the password from wherever it is kept; one trailing newline is not part of it.

        Args:
            environment: where systemd says where the credentials are.
            table: the table's name for error texts.

        Raises:
            ConfigurationError: the file or the credential cannot be read.
        """
        if self.password is not None:
            return self.password.get_secret_value()
        if self.password_credential is not None:
            folder = environment.get("CREDENTIALS_DIRECTORY")
            if folder is None:
                raise ConfigurationError(
                    f"{table}.password_credential = {self.password_credential!r}: $CREDENTIALS_DIRECTORY is not set; "
                    "start the station as a systemd service with LoadCredential=, or use password_file"
                )
            path = Path(folder) / self.password_credential
        elif self.password_file is not None:
            path = self.password_file
        else:
            return None
        key = "password_file" if self.password_credential is None else "password_credential"
        try:
            return path.read_text(encoding="utf-8").removesuffix("\n")
        except OSError as exc:
            reason = exc.strerror
        except UnicodeDecodeError:
            reason = "is not UTF-8 text"
        raise ConfigurationError(f"{table}.{key} = {str(getattr(self, key))!r}: cannot read {path}: {reason}")


class TlsSettings(Section):
    """`[broker.tls]`"""

    ca_file: FilePath | None = None
    """Certificates of the authorities to trust, PEM; without it the system's own."""
    certificate_file: FilePath | None = None
    """The station's own certificate, PEM, where the broker asks for one."""
    key_file: FilePath | None = None
    """Private key of `certificate_file`, PEM."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together: set both or neither")
        return self


class BrokerSettings(Login):
    """`[broker]`"""

    embedded: bool = False
    """Run the embedded MQTT broker on the loopback interface instead of using an external one."""
    host: str = Field(default="127.0.0.1", min_length=1)
    """Name or address of the external broker."""
    port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port; default 1883, with TLS 8883; 0 lets the embedded broker choose a free one."""
    client_id: str | None = Field(default=None, max_length=128)
    """MQTT client id; default inspection-<station name>. Two stations must not share one."""
    tls: TlsSettings | None = None
    """Present: encrypt the connection."""
    keepalive_s: int = Field(default=15, ge=5, le=600)
    """MQTT keep-alive; the last will is sent one and a half times this after a silent death."""
    in_flight: int = Field(default=64, ge=1, le=1000)
    """Messages sent and not yet acknowledged, at most."""
    acknowledge_within_s: float = Field(default=10.0, ge=1, le=600)
    """A broker that acknowledges nothing for this long, although messages are in flight, is connected to anew."""
    reconnect_max_s: float = Field(default=5.0, ge=0.5, le=600)
    """Longest pause between two attempts to connect; pauses double from 0.25 s and are jittered."""
    replay_window_s: float = Field(default=60.0, ge=0, le=86_400)
    """When the broker has forgotten the session, what it acknowledged in this time is sent again as historical."""

    @model_validator(mode="after")
    def _embedded_or_not(self) -> Self:
        if self.port == 0 and not self.embedded:
            raise ValueError("port must be between 1 and 65535; 0 (any free one) is for the embedded broker")
        if self.embedded and (self.passwords_given or self.tls or self.username):
            raise ValueError("the embedded broker listens on loopback only and takes no username, password or tls")
        return self

    @property
    def effective_port(self) -> int:
        """The TCP port to use, 0 meaning any free one (embedded broker only)."""
        if self.port is not None:
            return self.port
        return 8883 if self.tls else 1883


@dataclass(frozen=True, slots=True)
class BrokerAccess:
    """Where a broker is, and as whom a source connects to it.

    Attributes:
        settings: login, TLS, keep-alive and back-off.
        host, port: the broker.
        client_id: the session's name at the broker.
        password: the broker's password, already read.
        held_back: asked before each attempt to connect; a reason not to, in one line.
    """

    settings: BrokerSettings
    host: str
    port: int
    client_id: str
    password: str | None = None
    held_back: Callable[[], str | None] = lambda: None
