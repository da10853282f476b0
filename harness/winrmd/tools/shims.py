"""The tools as files in System32, for real local processes that start them by name.

::

    agent (a real Python) ── icacls.exe (a few lines) ── loopback, token ──► ToolServer ──► Tool

A shim holds the port and the token, and is readable by its owner alone. What a shim passes on as a
local path below the host's folder is a path of the host again.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness.winrmd.cmdlets import Machine
from harness.winrmd.tools.console import Answer
from harness.winrmd.tools.table import TOOLS

_LONGEST: Final = 1 << 20  # bytes of a request
_TIMEOUT_S: Final = 10.0
# Isolated and without site: a shim starts in some 15 ms.
_SHIM: Final = """#!{python} -IS
import json, socket, sys
ask = {{"token": {token!r}, "tool": {tool!r}, "arguments": sys.argv[1:]}}
with socket.create_connection(("127.0.0.1", {port})) as peer:
    peer.sendall(json.dumps(ask).encode() + b"\\n")
    with peer.makefile("rb") as stream:
        answer = json.loads(stream.read())
sys.stdout.buffer.write(answer["out"].replace("\\n", "\\r\\n").encode())
sys.stderr.buffer.write(answer["err"].replace("\\n", "\\r\\n").encode())
sys.stdout.flush()
sys.exit(answer["code"] & 0xFF or (1 if answer["code"] else 0))
"""


class ToolServer:
    """Runs tools for local processes; a context manager that makes and removes the shims."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._token = secrets.token_hex(16)
        self._listener: socket.socket | None = None
        self._shims: list[Path] = []

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        threading.Thread(
            target=self._serve, args=(self._listener,), name="tool shims", daemon=True
        ).start()
        folder = self._machine.host.local_path("C:\\Windows\\System32")
        folder.mkdir(parents=True, exist_ok=True)
        for tool in TOOLS:
            for name in (tool, f"{tool}.exe"):
                shim = folder / name
                text = _SHIM.format(
                    python=sys.executable,
                    token=self._token,
                    tool=tool,
                    port=port,
                )
                shim.touch(mode=0o700)
                shim.chmod(0o700)
                shim.write_text(text, "utf-8")
                self._shims.append(shim)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._listener is not None:
            # Closing alone would not wake the thread that waits in accept.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for shim in self._shims:
            shim.unlink(missing_ok=True)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._handle, args=(peer,), daemon=True).start()

    def _handle(self, peer: socket.socket) -> None:
        peer.settimeout(_TIMEOUT_S)
        # A peer that goes away or says nothing is its own affair.
        with peer, contextlib.suppress(OSError), peer.makefile("rb") as stream:
            answer = self.answer(stream.readline(_LONGEST))
            if answer is not None:
                said = {"code": answer.code, "out": answer.out, "err": answer.err}
                peer.sendall(json.dumps(said).encode())

    def answer(self, line: bytes) -> Answer | None:
        """Return what a tool says to one request, or None for who does not know the token."""
        try:
            asked = json.loads(line)
            token, name = str(asked["token"]), str(asked["tool"])
            arguments = [str(each) for each in asked["arguments"]]
        except (ValueError, KeyError, TypeError):
            return None
        if not hmac.compare_digest(token.encode(), self._token.encode()) or name not in TOOLS:
            return None
        return TOOLS[name](self._machine, [self._windows(each) for each in arguments])

    def _windows(self, argument: str) -> str:
        path = Path(argument)
        root = self._machine.host.root
        return self._machine.host.paths.windows(path) if path.is_relative_to(root) else argument
