"""The users of one endpoint, and the pyspnego contexts that accept them.

pyspnego's NTLM acceptor finds its users in the file that NTLM_USER_FILE names in the environment
of the whole process, and reads it while it steps. Two endpoints in one process must not see each
other's users (of one name, perhaps), so every step runs under one lock of the process with the
variable pointing to the store of that endpoint, and puts back what was there. The store holds NT
hashes, never passwords, in a folder that only this user can read.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import spnego
from spnego._ntlm_raw.crypto import ntowfv1  # its user file needs the hash; there is no public name

_VARIABLE: Final = "NTLM_USER_FILE"
# The environment belongs to the process: so does the lock that guards this use of it.
_environment_lock = threading.Lock()


class UserStore:
    """Names and passwords of one endpoint; names ignore case, as Windows' do.

    A context manager: the file for NTLM exists inside of it.
    """

    def __init__(self, users: Mapping[str, str], *, machine: str) -> None:
        self._passwords = {name.lower(): (name, word) for name, word in users.items()}
        self._machine = machine
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="lcowlab-winrmd-"))  # mode 0700
        host = socket.gethostname().upper()
        # Clients name the machine, nothing, or (Go's) the target of the challenge, which pyspnego
        # fills with the name of the real host.
        domains = dict.fromkeys(["", self._machine.upper(), host, "WORKSTATION"])
        lines = [
            f"{domain}\\{name}:0:{'0' * 32}:{ntowfv1(password).hex().upper()}:[U]:LCT-0\n"
            if domain
            else f"{name}:0:{'0' * 32}:{ntowfv1(password).hex().upper()}:[U]:LCT-0\n"
            for name, password in self._passwords.values()
            for domain in domains
        ]
        (self._folder / "users").write_text("".join(lines), encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def check(self, name: str, password: str) -> str | None:
        """Return the user's name as configured if the password is right, else None."""
        found = self._passwords.get(self._bare(name))
        # Unknown names take as long as wrong passwords.
        expected = secrets.token_hex(16) if found is None else found[1]
        right = hmac.compare_digest(expected.encode(), password.encode())
        return found[0] if found is not None and right else None

    def spelled(self, principal: str) -> str | None:
        """Return the configured name of a principal that NTLM has proved, or None."""
        found = self._passwords.get(self._bare(principal))
        return None if found is None else found[0]

    @staticmethod
    def _bare(name: str) -> str:
        return name.rsplit("\\", 1)[-1].lower()

    @contextlib.contextmanager
    def visible(self) -> Iterator[None]:
        """Make these users the ones that pyspnego's acceptor sees."""
        if self._folder is None:
            raise RuntimeError("the user store is not open")
        with _environment_lock:
            before = os.environ.get(_VARIABLE)
            os.environ[_VARIABLE] = str(self._folder / "users")
            try:
                yield
            finally:
                if before is None:
                    del os.environ[_VARIABLE]
                else:
                    os.environ[_VARIABLE] = before

    def acceptor(self, *, raw_ntlm: bool) -> spnego.ContextProxy:
        """Return a new security context, for raw NTLM tokens or for SPNEGO ones."""
        # Python's own implementations on every system: the users are ours, not the machine's.
        if raw_ntlm:
            protocol, options = "ntlm", spnego.NegotiateOptions.use_ntlm
        else:
            protocol, options = "negotiate", spnego.NegotiateOptions.use_negotiate
        with self.visible():
            return spnego.server(protocol=protocol, options=options)

    def step(self, context: spnego.ContextProxy, token: bytes) -> bytes | None:
        """Step a context of this endpoint. Raises what pyspnego raises for a bad token."""
        with self.visible():
            return context.step(token)
