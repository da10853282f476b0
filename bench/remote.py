"""Files to a host over WinRM, beside pypsrp's own copy to the same endpoint.

The endpoint answers pypsrp's copy script with a sink of its own that only decodes and writes: what
PowerShell would cost on a real host is left out, which favours the peer.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import multiprocessing
import random
import secrets
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from pypsrp.client import Client

from bench.measure import Comparison, compare
from harness.remote.deadline import Deadline
from harness.remote.endpoint import Endpoint
from harness.remote.files import HostFiles
from harness.remote.passwords import Secret
from harness.remote.winrm import WinRM
from harness.winrmd import faults
from harness.winrmd.boots import Boot
from harness.winrmd.config import EndpointConfig
from harness.winrmd.psrp import PsrpSession
from harness.winrmd.resources import HostControl, Operation, ShellContext
from harness.winrmd.runspace import Request, RunspaceServer, Sink
from harness.winrmd.server import WinRmServer

_SIZE: Final = 32 << 20
_CREATION: Final = "{http://schemas.microsoft.com/powershell}creationXml"
_CONFIGURATION: Final = "http://schemas.microsoft.com/powershell/"
_USER: Final = "bench"


class _CopySink:
    """Stands for PowerShell running pypsrp's copy.ps1: decodes its input into one file."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def attach(self, control: HostControl) -> None:
        """Nothing here depends on the host."""

    def rebooted(self, boot: Boot) -> None:
        """Nothing here outlives a request."""

    def handles(self, resource_uri: str) -> bool:
        """Every session configuration."""
        return resource_uri.startswith(_CONFIGURATION)

    def open_shell(self, operation: Operation, shell: ShellContext) -> tuple[PsrpSession, str]:
        """Return a runspace pool that knows this one script."""
        session = PsrpSession(RunspaceServer(self._copy))
        creation = next(operation.body.iter(_CREATION))
        session.begin(base64.b64decode(creation.text or ""))
        return session, ""

    def answer(self, operation: Operation) -> str:
        """Refuse."""
        raise faults.action_not_supported(operation.action)

    def enumerate(self, operation: Operation) -> list[str]:
        """Refuse."""
        raise faults.action_not_supported(operation.action)

    def _copy(self, request: Request, sink: Sink) -> None:
        assert "SHA1" in request.text
        digest = hashlib.sha1(usedforsecurity=False)
        items = list(sink.wait_for_input() or ())
        with self._target.open("wb") as file:
            for item in items[:-1]:
                data = base64.b64decode(str(item))
                digest.update(data)
                file.write(data)
        assert base64.b64decode(str(items[-1])).decode() == digest.hexdigest()
        sink.output(str(self._target))


def _serve(disk: str, arrived: str, password: str, ready: Connection) -> None:
    """Be the host, in a process of its own: until the other end of `ready` is closed."""
    config = EndpointConfig(users={_USER: password}, root=Path(disk))
    with WinRmServer(config, resources=(_CopySink(Path(arrived)),)) as server:
        ready.send(server.port)
        with contextlib.suppress(EOFError):
            ready.recv()


@contextlib.contextmanager
def _host(disk: Path, arrived: Path, password: str) -> Iterator[int]:
    """Give the port of a running endpoint."""
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(str(disk), str(arrived), password, theirs))
    process.start()
    theirs.close()
    try:
        yield int(mine.recv())
    finally:
        mine.close()
        process.join(timeout=10)
        process.kill()


def run() -> Iterator[Comparison]:
    """Yield the comparisons: both ways of ours against Client.copy, 32 MiB, half of it text."""
    rng = random.Random(32)
    password = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.bin"
        line = b"2026-11-24T12:00:00Z uvm[42]: scsi 0:0:1:0: attached\n"
        source.write_bytes(rng.randbytes(_SIZE // 2) + line * (_SIZE // 2 // len(line)))
        disk = Path(folder) / "disk"
        disk.mkdir()
        arrived = Path(folder) / "peer.bin"
        with _host(disk, arrived, password) as port:
            endpoint = Endpoint("bench", "127.0.0.1", port, "ntlm", "off", _USER, Secret(password))

            def peer() -> None:
                with Client(
                    "127.0.0.1",
                    port=port,
                    username=_USER,
                    password=password,
                    ssl=False,
                    auth="ntlm",
                    no_proxy=True,
                ) as client:
                    client.copy(str(source), "C:\\peer.bin")
                assert arrived.stat().st_size == source.stat().st_size

            round_number = 0

            def ours(pull_address: str | None) -> None:
                nonlocal round_number
                round_number += 1
                with WinRM(endpoint) as win:
                    files = HostFiles(
                        win,
                        python="python",
                        # A cache of its own for each round: nothing is there before.
                        root=f"C:\\root{round_number}",
                        pull_address=pull_address,
                    )
                    sent = files.put(source, deadline=Deadline.after(120))
                assert sent.moved == source.stat().st_size

            for name, address in (("HTTPS pull", "127.0.0.1"), ("WinRS streams", None)):
                yield compare(
                    f"32 MiB to a host, {name}",
                    lambda address=address: ours(address),  # type: ignore[misc]
                    "pypsrp Client.copy",
                    peer,
                    rounds=3,
                    target_ratio=1 / 3 if address else 0.6,
                    note="NTLM sealed, loopback",
                )
