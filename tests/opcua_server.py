"""A real OPC UA server in a process of its own, that tests may kill, stop, start again and tell what to hold.

Run as a program it is the server: `opcua_server.py PORT FOLDER`; it takes orders on its standard input.
"""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from asyncua import ua
from asyncua.crypto.permission_rules import SimpleRoleRuleset, User, UserRole
from asyncua.server.internal_server import InternalServer
from asyncua.server.server import Server
from asyncua.server.user_managers import UserManager
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.status_codes import StatusCodes

from station.adapters.embedded_broker import free_port

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

NAMESPACE = "urn:test:press"
BEGIN = {"Temperature": 81.25, "Pressure": 7, "Running": True, "Text": "hot", "Array": [1.0, 2.0]}


class _Users(UserManager):
    """Anybody, or the operator with the right password."""

    def get_user(
        self,
        iserver: InternalServer,  # noqa: ARG002
        username: str | None = None,
        password: str | None = None,
        certificate: Any = None,  # noqa: ARG002
    ) -> User | None:
        return User(role=UserRole.User) if username is None or (username, password) == ("op", "secret") else None


async def _serve(port: int, certificates: str) -> None:
    logging.disable(logging.CRITICAL)
    server = Server(user_manager=_Users())
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{port}/press")
    if certificates:
        await server.set_application_uri("urn:test:server")
        server.set_security_policy(
            [ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt],
            permission_ruleset=SimpleRoleRuleset(),  # type: ignore[no-untyped-call]
        )
        await server.load_certificate(f"{certificates}/server.der")
        await server.load_private_key(f"{certificates}/server.pem")
    space = await server.register_namespace(NAMESPACE)
    variables = {
        name: await server.nodes.objects.add_variable(ua.NodeId(ua.String(name), ua.Int16(space)), name, value)
        for name, value in BEGIN.items()
    }
    async with server:
        print("serving", flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            order = json.loads(line)
            status = ua.StatusCode(ua.UInt32(getattr(StatusCodes, order["status"])))
            at = ua.DateTime.fromtimestamp(order["at_s"], UTC)
            value = ua.DataValue(ua.Variant(order["value"]), StatusCode=status, SourceTimestamp=at)
            taken = await server.iserver.isession.aspace.write_attribute_value(
                variables[order["name"]].nodeid, AttributeIds.Value, value
            )
            taken.check()
            print("done", flush=True)


class OpcUaServer:
    """The server as a child process; started on entry, ended on exit."""

    def __init__(self, certificates: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"opc.tcp://127.0.0.1:{self.port}/press"
        self._certificates = str(certificates or "")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(self.port), self._certificates],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        self._answer(b"serving\n")

    def hold(self, name: str, value: object, *, status: str = "Good", at_s: float | None = None) -> None:
        """Let a variable hold a value with a status and a source timestamp."""
        assert self._process is not None
        assert self._process.stdin is not None
        at_s = datetime.now(UTC).timestamp() if at_s is None else at_s
        order = {"name": name, "value": value, "status": status, "at_s": at_s}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        self._answer(b"done\n")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: connections are accepted by the kernel, nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answer(self, expected: bytes) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == expected


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2]))
