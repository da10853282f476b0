"""Every error this package raises on purpose.

::

    HarnessError
    ├── UsageError                  the caller's configuration or arguments
    ├── InfrastructureError         what the run stands on, not the product under test
    │   ├── MissingProgramError     a program or package that is not installed
    │   ├── ImageBuildError         the utility VM image cannot be built or is damaged
    │   └── ComputeServiceError     the compute service refused or failed a request
    │       ├── LaunchError         a virtual machine that did not start
    │       ├── SystemNotFoundError
    │       ├── SystemExitedError   the utility VM is gone
    │       └── ComputeTimeoutError no answer within the deadline; the outcome is unknown
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
