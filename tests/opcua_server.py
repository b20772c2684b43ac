"""A real OPC UA server in a process of its own, that tests may kill, stop, start again and tell what to hold.

Run as a program it is the server: `opcua_server.py PORT FOLDER`; it takes orders on its standard input.
"""

import asyncio
import json
import logging
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asyncua import ua
from asyncua.crypto.permission_rules import SimpleRoleRuleset, User, UserRole
from asyncua.server.internal_server import InternalServer
from asyncua.server.server import Server
from asyncua.server.user_managers import UserManager
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.status_codes import StatusCodes
from child_server import OwnServer

from station.adapters.embedded_broker import free_port

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


class OpcUaServer(OwnServer):
    """The server as a child process; started on entry, ended on exit."""

    def __init__(self, certificates: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"opc.tcp://127.0.0.1:{self.port}/press"
        super().__init__(__file__, str(self.port), str(certificates or ""), stdin=subprocess.PIPE)

    def hold(self, name: str, value: object, *, status: str = "Good", at_s: float | None = None) -> None:
        """Let a variable hold a value with a status and a source timestamp."""
        assert self.process.stdin is not None
        at_s = datetime.now(UTC).timestamp() if at_s is None else at_s
        order = {"name": name, "value": value, "status": status, "at_s": at_s}
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        self.hear(b"done\n")


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2]))
