"""The users of one endpoint, and the pyspnego contexts that accept them.

pyspnego's NTLM acceptor finds its users in the file that NTLM_USER_FILE names in the environment
of the whole process, and reads it while it steps. Two endpoints in one process must not see each
other's users (of one name, perhaps), so every step runs under one lock of the process with the
variable pointing to the store of that endpoint, and puts back what was there. The store holds NT
hashes, never passwords, in a folder that only this user can read. The keytab of Kerberos is named
by KRB5_KTNAME in the same way.
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
from spnego.channel_bindings import GssChannelBindings
from spnego.exceptions import SpnegoError

from harness.errors import HarnessError
from harness.winrmd.config import KerberosKeys

_VARIABLE: Final = "NTLM_USER_FILE"
_KEYTAB: Final = "KRB5_KTNAME"
# The environment belongs to the process: so does the lock that guards this use of it.
_environment_lock = threading.Lock()


class LogonRefusedError(HarnessError):
    """A token that proves nobody: a wrong password, an unknown user, or no token at all."""


class UserStore:
    """Names and passwords of one endpoint; names ignore case, as Windows' do.

    A context manager: the file for NTLM exists inside of it.
    """

    def __init__(
        self, users: Mapping[str, str], *, machine: str, kerberos: KerberosKeys | None = None
    ) -> None:
        self._passwords = {name.lower(): (name, word) for name, word in users.items()}
        self._machine = machine
        self._kerberos = kerberos
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="lcowlab-winrmd-"))  # mode 0700
        host = socket.gethostname().upper()
        # Clients name the machine, nothing, or (Go's) the target of the challenge, which pyspnego
        # fills with the name of the real host.
        domains = dict.fromkeys(["", ".", self._machine.upper(), host, "WORKSTATION"])
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

    def proved(self, context: spnego.ContextProxy) -> str | None:
        """Return the configured name of whom a complete context has proved, or None."""
        principal = context.client_principal or ""
        if context.negotiated_protocol == "kerberos":
            name, _, realm = principal.rpartition("@")
            ours = self._kerberos is not None and realm == self._kerberos.realm
            found = self._passwords.get(name.lower()) if ours else None
        else:
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
        wanted = {_VARIABLE: str(self._folder / "users")}
        if self._kerberos is not None:
            wanted[_KEYTAB] = f"FILE:{self._kerberos.keytab}"
        with _environment_lock:
            before = {name: os.environ.get(name) for name in wanted}
            os.environ.update(wanted)
            try:
                yield
            finally:
                for name, value in before.items():
                    if value is None:
                        del os.environ[name]
                    else:
                        os.environ[name] = value

    def acceptor(self, protocol: str, *, end_point: bytes | None = None) -> spnego.ContextProxy:
        """Return a new security context for raw `ntlm`, raw `kerberos`, or SPNEGO (`negotiate`).

        `end_point` is the TLS channel binding that a Kerberos ticket must fit. Raises
        LogonRefusedError where there are no keys for it.
        """
        # Python's own implementations on every system: the users are ours, not the machine's.
        options = {
            "ntlm": spnego.NegotiateOptions.use_ntlm,
            "kerberos": spnego.NegotiateOptions.use_gssapi,
            "negotiate": spnego.NegotiateOptions.use_negotiate,
        }[protocol]
        bindings = GssChannelBindings(application_data=end_point) if end_point else None
        with self.visible():
            try:
                return spnego.server(protocol=protocol, options=options, channel_bindings=bindings)
            except (SpnegoError, ImportError) as error:
                raise LogonRefusedError(str(error)) from error

    def step(self, context: spnego.ContextProxy, token: bytes) -> bytes | None:
        """Return the context's answer to a token. Raises LogonRefusedError."""
        with self.visible():
            try:
                return context.step(token)
            except Exception as error:
                # pyspnego's parsers raise whatever a damaged token makes them meet, StopIteration
                # and IndexError among it (found by fuzzing): none of it is more than a refusal.
                raise LogonRefusedError(f"{type(error).__name__}: {error}") from error
