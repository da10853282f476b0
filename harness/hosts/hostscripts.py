"""Runs our scripts of `harness.hosts.onhost` on a host, through its own Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from harness.errors import LeaseError, RemoteCommandError
from harness.remote.deadline import Deadline
from harness.remote.hostpython import python_argv, script_input
from harness.remote.transport import CompletedRemote, Transport

_FUTURE: Final = "from __future__ import annotations\n"


def script_source(name: str) -> str:
    """Return the source of a script of `harness.hosts.onhost`."""
    return resources.files("harness.hosts.onhost").joinpath(f"{name}.py").read_text("utf-8")


def read_report(name: str, done: CompletedRemote, *, host: str) -> dict[str, Any]:
    """Return what a script reported. Raises RemoteCommandError with the end of its complaint."""
    if done.exit_code != 0:
        said = done.stderr.decode(errors="replace").strip()[-2000:]
        raise RemoteCommandError(said, host=host, code=done.exit_code, command=name)
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@dataclass(frozen=True, slots=True)
class Fence:
    """The lease under which scripts run: its token, its boot, and its folder on the host."""

    token: int
    boot: str
    folder: str


@dataclass(frozen=True, slots=True)
class HostScripts:
    """One host and its Python; with a fence, scripts run only while that lease is ours."""

    transport: Transport
    python: str
    fence: Fence | None = None

    def ask(
        self,
        name: str,
        parameters: Mapping[str, object],
        paths: Mapping[str, str],
        *,
        deadline: Deadline,
    ) -> dict[str, Any]:
        """Return the one report of a script that may run twice.

        Raises LeaseError, before anything is done, where the lease is no longer ours; RemoteError.
        """
        source, parameters, paths = script_source(name), dict(parameters), dict(paths)
        if self.fence is not None:
            # A future statement may only stand first.
            source += script_source("fence").replace(_FUTURE, "") + "\nmain = guarded(main)\n"
            parameters |= {"fence_token": self.fence.token, "fence_boot": self.fence.boot}
            paths["fence"] = self.fence.folder
        done = self.transport.run(
            python_argv(self.python, paths),
            stdin=script_input(source, parameters),
            deadline=deadline,
            idempotent=True,
        )
        values = read_report(name, done, host=self.transport.host)
        if "fenced" in values:
            raise LeaseError(str(values["fenced"]), host=self.transport.host)
        return values
