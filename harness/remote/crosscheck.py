"""The same question asked by an independent client, pywinrm: is a fault ours or the host's?"""

from __future__ import annotations

import importlib
import ssl
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from harness.errors import MissingProgramError, UsageError
from harness.remote.deadline import Deadline
from harness.remote.endpoint import PIN, Endpoint

_COMMAND: Final = "hostname"
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """What pywinrm came to: the host's name as the command gave it, or why it did not."""

    answer: str
    failure: str

    @property
    def succeeded(self) -> bool:
        """Whether the other client got an answer."""
        return not self.failure


def cross_check(endpoint: Endpoint, *, deadline: Deadline) -> CrossCheck:
    """Run one harmless command through pywinrm and return what came of it.

    Raises MissingProgramError without the package; UsageError for what pywinrm cannot do safely
    (Basic to a pinned host: it cannot pin, and Basic would show the password to whoever answers).
    """
    try:
        protocol: Any = importlib.import_module("winrm.protocol")
    except ImportError as error:
        raise MissingProgramError("pywinrm", install="pip install pywinrm") from error
    pinned = endpoint.tls.startswith(PIN)
    if pinned and endpoint.auth == "basic":
        raise UsageError(f"{endpoint.name}: pywinrm cannot pin a certificate; use ntlm for this")
    if endpoint.auth == "negotiate":
        transport = "ntlm"  # pywinrm has no other name for it
    elif endpoint.auth == "basic":
        transport = "ssl"
    else:
        transport = endpoint.auth
    scheme = "http" if endpoint.tls == "off" else "https"
    seconds = max(2, int(deadline.remaining_s))
    try:
        if pinned:
            _check_pin(endpoint, timeout_s=seconds)
        client = protocol.Protocol(
            endpoint=f"{scheme}://{_bracketed(endpoint.address)}:{endpoint.port}/wsman",
            transport=transport,
            username=endpoint.user,
            password=endpoint.password.reveal(),
            server_cert_validation="ignore" if pinned else "validate",
            message_encryption="always" if scheme == "http" else "auto",
            read_timeout_sec=seconds,
            operation_timeout_sec=max(1, seconds - 1),
            ca_trust_path=None,
            proxy=None,
        )
        shell = client.open_shell(codepage=65001)
        try:
            command = client.run_command(shell, _COMMAND, console_mode_stdin=False)
            stdout, _, code = client.get_command_output(shell, command)
            client.cleanup_command(shell, command)
        finally:
            client.close_shell(shell, close_session=True)
    except Exception as error:  # noqa: BLE001 - whatever the other client raises is the finding
        return CrossCheck("", f"{type(error).__name__}: {str(error)[:_SHOWN]}")
    text = stdout.decode(errors="replace").strip()
    return CrossCheck(text, "" if code == 0 else f"{_COMMAND} ended with {code}")


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _check_pin(endpoint: Endpoint, *, timeout_s: int) -> None:
    """Raise ConnectionError unless the host shows the pinned certificate.

    pywinrm then connects a second time, to whoever answers: with NTLM or Kerberos that one learns
    no password, and channel bindings tie the login to the certificate.
    """
    pem = ssl.get_server_certificate((endpoint.address, endpoint.port), timeout=timeout_s)
    if sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() != endpoint.tls.removeprefix(PIN):
        raise ConnectionError("the certificate is not the pinned one")
