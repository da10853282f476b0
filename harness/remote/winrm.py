"""A Windows host over WinRM: commands, shells, PowerShell, CIM.

One object stands for one host. Behind it are as many connections as are in use at once; each is
made anew when it drops, and what that means for the call under way is decided once, by
`harness.remote.retries`. Calls from several threads take turns; streams of their own go to
processes that were started in a shell of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self, TypeVar

from harness.errors import AuthError, RemoteCommandError, RemoteError
from harness.remote.cim import CIMV2, Instance, enumerate_instances, read_config
from harness.remote.cmdlets import LANGUAGE_MODE_SCRIPT
from harness.remote.deadline import Deadline
from harness.remote.links import Connector
from harness.remote.powershell import Command
from harness.remote.psrp import Plain, PowerShellSession
from harness.remote.retries import Attempts, RetryPolicy, call_with_retries
from harness.remote.shells import WinRSShell
from harness.remote.transport import CompletedRemote
from harness.remote.wire import DEFAULT_ENVELOPE_KIB, Endpoint, Wire

T = TypeVar("T")

_UNAUTHORIZED: Final = 401


class WinRM:
    """The way to one Windows host; made without I/O. Implements `Transport`."""

    def __init__(self, endpoint: Endpoint, *, policy: RetryPolicy | None = None) -> None:
        self.endpoint = endpoint
        self.attempts = Attempts()
        """Every attempt that failed, also of calls that then went well."""
        self._policy = policy or RetryPolicy()
        self._envelope_kib: int | None = None
        self._connector = Connector(endpoint.name, self._wire, self._policy, self.attempts)
        self._turn = threading.Lock()
        self._shell: WinRSShell | None = None
        self._management: Wire | None = None
        self._powershell = PowerShellSession(self._connector)

    @property
    def host(self) -> str:
        """The host's name, for errors and reports."""
        return self.endpoint.name

    @property
    def clock_skew_s(self) -> float | None:
        """The host's clock minus ours, to a second; None before `config` or `cim` was called."""
        return self._management.clock_skew_s if self._management is not None else None

    def _wire(self) -> Wire:
        return Wire(self.endpoint, envelope_kib=self._envelope_kib or DEFAULT_ENVELOPE_KIB)

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes | None = None,
        idempotent: bool = False,
    ) -> CompletedRemote:
        """See `Transport.run`."""

        def once() -> CompletedRemote:
            if self._shell is None:
                self._shell = WinRSShell.open(self._connector, deadline=deadline)
            try:
                return self._shell.run(argv, deadline=deadline, stdin=stdin)
            except RemoteError:
                # Whatever went wrong, the next attempt starts from a clean shell.
                self._shell.close()
                self._shell = None
                raise

        with self._turn:
            self._learn_envelope(deadline)
            return call_with_retries(
                once,
                what=f"{self.host}: run {argv[0] if argv else ''}",
                policy=self._policy,
                deadline=deadline,
                idempotent=idempotent,
                attempts=self.attempts,
            )

    def open_shell(
        self,
        *,
        deadline: Deadline,
        environment: Mapping[str, str] | None = None,
        working_directory: str | None = None,
    ) -> WinRSShell:
        """See `Transport.open_shell`."""
        with self._turn:
            self._learn_envelope(deadline)
        return WinRSShell.open(
            self._connector,
            deadline=deadline,
            environment=environment,
            working_directory=working_directory,
        )

    def powershell(self, command: Command, *, deadline: Deadline) -> tuple[Plain, ...]:
        """Return the objects that a PowerShell command put out; see `PowerShellSession.run`."""
        return self._powershell.run(command, deadline=deadline)

    def language_mode(self, *, deadline: Deadline) -> str:
        """Return PowerShell's language mode for us, such as FullLanguage or ConstrainedLanguage.

        NoLanguage where scripts are refused as such.
        """
        try:
            (mode,) = self._powershell.run_script(LANGUAGE_MODE_SCRIPT, deadline=deadline)
        except RemoteCommandError as error:
            if "language" in str(error).lower() or "syntax" in str(error).lower():
                return "NoLanguage"
            raise
        return str(mode)

    def config(self, *, deadline: Deadline) -> Mapping[str, str]:
        """Return `winrm/config`; see `read_config`."""
        with self._turn:
            return self._config(deadline)

    def cim(
        self, class_name: str, *, deadline: Deadline, namespace: str = CIMV2
    ) -> tuple[Instance, ...]:
        """Return every instance of a CIM class."""
        with self._turn:
            return self._manage(
                f"enumerate {class_name}",
                deadline,
                lambda wire: enumerate_instances(
                    wire, class_name, namespace=namespace, host=self.host, deadline=deadline
                ),
            )

    def _config(self, deadline: Deadline) -> Mapping[str, str]:
        values = self._manage(
            "read winrm/config", deadline, lambda wire: read_config(wire, deadline=deadline)
        )
        self._envelope_kib = int(values.get("MaxEnvelopeSizekb") or DEFAULT_ENVELOPE_KIB)
        return values

    def _learn_envelope(self, deadline: Deadline) -> None:
        """Know how much the host takes at once; whoever may not ask sends what all hosts take."""
        if self._envelope_kib is not None:
            return
        try:
            self._config(deadline)
        except RemoteCommandError:
            self._envelope_kib = DEFAULT_ENVELOPE_KIB
        except AuthError as error:
            if error.code is None or error.code == _UNAUTHORIZED:
                raise
            self._envelope_kib = DEFAULT_ENVELOPE_KIB

    def _manage(self, what: str, deadline: Deadline, use: Callable[[Wire], T]) -> T:
        def once() -> T:
            if self._management is None or self._management.dead:
                self._management = self._wire()
            return use(self._management)

        return call_with_retries(
            once,
            what=f"{self.host}: {what}",
            policy=self._policy,
            deadline=deadline,
            idempotent=True,
            attempts=self.attempts,
        )

    def close(self) -> None:
        """See `Transport.close`."""
        with self._turn:
            if self._shell is not None:
                self._shell.close()
                self._shell = None
            if self._management is not None:
                self._management.close()
        self._powershell.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
