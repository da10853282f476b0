"""Every error this package raises on purpose.

::

    HarnessError
    ├── UsageError                  the caller's configuration or arguments
    ├── InfrastructureError         what the run stands on, not the product under test
    │   ├── MissingProgramError     a program or package that is not installed
    │   ├── ImageBuildError         the utility VM image cannot be built or is damaged
    │   ├── ComputeServiceError     the compute service refused or failed a request
    │   │   ├── HcsCallError        Windows' HCS refused a call, with the events it gives as reason
    │   │   ├── LaunchError         a virtual machine that did not start
    │   │   ├── SystemNotFoundError
    │   │   ├── SystemExitedError   the utility VM is gone
    │   │   └── ComputeTimeoutError no answer within the deadline; the outcome is unknown
    │   └── RemoteError             a Windows host did not do what was asked
    │       ├── AuthError           it does not let us in
    │       ├── CertificateError    its certificate is not the one that was expected
    │       ├── ConnectionLostError the connection could not be made, or broke
    │       │   └── OutputLostError while output was on its way: a part of it may be missing
    │       ├── RemoteTimeoutError  no answer within the deadline
    │       ├── QuotaError          a WinRM quota is used up: later, it may not be
    │       ├── RequestTooLargeError
    │       ├── ShellGoneError      the shell or command is unknown: a restart, or idle for long
    │       ├── RemoteCommandError  the host refused or failed a request of ours
    │       ├── TransferError       a file did not arrive as it was sent
    │       ├── UnprotectedRootError our folder there is not SYSTEM's and Administrators' alone
    │       ├── ProvisionError      a step of provisioning is blocked, or did not hold
    │       └── LeaseError          the host is not ours to use: busy, dirty, quarantined, or lost
    ├── GuestError                  the guest answered with an HRESULT
    ├── BridgeClosedError           the GCS bridge is closed; the cause is chained
    ├── ProtocolError               the peer broke the protocol
    ├── DiskError                   attach, mount, unmount or detach failed
    │   └── NoSlotError             every SCSI slot is taken
    ├── CheckFailedError            a scenario found the product wrong
    └── LeakError                   something was left behind
"""

from __future__ import annotations

from collections.abc import Sequence


class HarnessError(Exception):
    """Root of all errors raised on purpose by this package."""


class UsageError(HarnessError):
    """The caller's configuration or arguments are wrong."""


class InfrastructureError(HarnessError):
    """What the run stands on failed, not the product under test."""


class MissingProgramError(InfrastructureError):
    """A program or package that is not installed; says how to get it."""

    def __init__(self, program: str, *, install: str) -> None:
        super().__init__(f"{program} is not installed: {install}")
        self.program = program
        self.install = install


class ImageBuildError(InfrastructureError):
    """The utility VM image cannot be built, or the cached one is damaged."""


class ComputeServiceError(InfrastructureError):
    """The compute service refused or failed a request; `hresult` is unsigned where known."""

    def __init__(self, message: str, *, hresult: int | None = None) -> None:
        super().__init__(message if hresult is None else f"{message} (HRESULT {hresult:#010x})")
        self.hresult = hresult


class HcsCallError(ComputeServiceError):
    """Windows' HCS refused a call; `events` are the reasons that it gave, the first one first."""

    def __init__(self, message: str, *, hresult: int, call: str, events: Sequence[str]) -> None:
        super().__init__(message, hresult=hresult)
        self.call = call
        self.events = tuple(events)


class LaunchError(ComputeServiceError):
    """A virtual machine that did not start: the exact command, its exit code, its last output."""

    def __init__(
        self, message: str, *, command: Sequence[str], exit_code: int | None, output: str
    ) -> None:
        code = "still running" if exit_code is None else f"exit code {exit_code}"
        super().__init__(f"{message} ({code}): {output.strip() or 'no output'}")
        self.command = tuple(command)
        self.exit_code = exit_code
        self.output = output


class SystemNotFoundError(ComputeServiceError):
    """No compute system of that id."""


class SystemExitedError(ComputeServiceError):
    """The utility VM is gone."""


class ComputeTimeoutError(ComputeServiceError):
    """No answer within the deadline: the outcome is unknown."""


class RemoteError(InfrastructureError):
    """A Windows host did not do what was asked.

    `host` is its name; `code` the WSMan fault or HTTP status, where there was one; `maybe_ran`
    says that the request may have been carried out all the same, `given_up` that it was repeated
    as often as the policy allows.
    """

    def __init__(
        self, message: str, *, host: str, code: int | None = None, maybe_ran: bool = False
    ) -> None:
        super().__init__(f"{host}: {message}" if code is None else f"{host}: {message} ({code})")
        self.host = host
        self.code = code
        self.maybe_ran = maybe_ran
        self.given_up = False


class AuthError(RemoteError):
    """The host does not let us in, or not to this."""


class CertificateError(RemoteError):
    """The host's certificate is not the expected one, or nobody known vouches for it."""


class ConnectionLostError(RemoteError):
    """The connection could not be made, or broke; `maybe_ran` tells the two apart."""


class OutputLostError(ConnectionLostError):
    """The connection broke while output was on its way: a part of it may be missing."""


class RemoteTimeoutError(RemoteError):
    """No answer within the deadline."""


class QuotaError(RemoteError):
    """A WinRM quota of the host is used up."""


class RequestTooLargeError(RemoteError):
    """A request is larger than the host takes."""


class ShellGoneError(RemoteError):
    """The host knows the shell or command no more: it restarted, or the shell idled too long."""


class RemoteCommandError(RemoteError):
    """The host refused or failed a request; `error_id` is PowerShell's, where it has one."""

    def __init__(
        self,
        message: str,
        *,
        host: str,
        code: int | None = None,
        command: str = "",
        error_id: str = "",
    ) -> None:
        super().__init__(f"{command}: {message}" if command else message, host=host, code=code)
        self.command = command
        self.error_id = error_id


class TransferError(RemoteError):
    """A file did not arrive as it was sent."""


class UnprotectedRootError(RemoteError):
    """Our folder on the host can be written by others: nothing of ours may run from it."""


class ProvisionError(RemoteError):
    """A step of provisioning cannot be done on this host, or did not hold."""


class LeaseError(RemoteError):
    """The host is not ours to use, or no longer."""


class GuestError(HarnessError):
    """The guest answered a request with a failure HRESULT (unsigned)."""

    def __init__(self, message: str, *, hresult: int, request: str) -> None:
        super().__init__(f"{request}: {message} (HRESULT {hresult:#010x})")
        self.hresult = hresult
        self.request = request


class BridgeClosedError(HarnessError):
    """The GCS bridge is closed: the peer went away or broke the protocol."""


class ProtocolError(HarnessError):
    """The peer broke the protocol."""


class DiskError(HarnessError):
    """An attach, mount, unmount or detach failed; the state allows the release to be repeated."""


class NoSlotError(DiskError):
    """Every SCSI slot is taken."""


class CheckFailedError(HarnessError):
    """A scenario found the product wrong."""


class LeakError(HarnessError):
    """Something was left behind; `leaks` names each."""

    def __init__(self, leaks: Sequence[str]) -> None:
        super().__init__("left behind: " + "; ".join(leaks))
        self.leaks = tuple(leaks)
