"""Runs our scripts of `harness.hosts.onhost` on a host, through its own Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from harness.errors import RemoteCommandError
from harness.remote.deadline import Deadline
from harness.remote.hostpython import python_argv, script_input
from harness.remote.transport import CompletedRemote, Transport


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
class HostScripts:
    """One host and its Python."""

    transport: Transport
    python: str

    def ask(
        self,
        name: str,
        parameters: Mapping[str, object],
        paths: Mapping[str, str],
        *,
        deadline: Deadline,
    ) -> dict[str, Any]:
        """Return the one report of a script that may run twice. Raises RemoteError."""
        done = self.transport.run(
            python_argv(self.python, paths),
            stdin=script_input(script_source(name), parameters),
            deadline=deadline,
            idempotent=True,
        )
        return read_report(name, done, host=self.transport.host)
