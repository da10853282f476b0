"""Files to and from a host: a cache by content there, then the fastest way that works.

::

    put: in the cache? ──yes──► placed
            │ no
            ▼
         HTTPS pull by the host's Python ──no route to us──► parallel WinRS streams
            └──────────► joined, read back, SHA-256 compared ◄──────────┘

Both ways go on where they broke off, in this run and in the next. Needs Python on the host.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from harness.errors import ConnectionLostError, TransferError, UsageError
from harness.remote.deadline import Deadline
from harness.remote.hostpython import load_script, python_argv, script_input
from harness.remote.pullserver import offer_file
from harness.remote.retries import Attempt, Attempts, RetryPolicy
from harness.remote.streams import Progress, StreamCopier, divide, talking
from harness.remote.transport import Transport

Way = Literal["cache", "pull", "streams"]

_PULL_TIMEOUT_S: Final = 10.0
_PULLS: Final = 5


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a copy came to: `moved` are the bytes of the file that crossed the network this time."""

    sha256: str
    size: int
    way: Way
    moved: int
    seconds: float


@dataclass(frozen=True, slots=True)
class HostFiles:
    """Copies files to and from one host.

    `root` is our folder there; `python` its interpreter. `pull_address` is the IP address of ours
    that the host can reach (`pullserver.address_towards`); None keeps to WinRS. `text` as the
    probe's byte transparency says.
    """

    transport: Transport
    python: str
    root: str
    pull_address: str | None = None
    streams: int = 4
    text: bool = False
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    attempts: Attempts = field(default_factory=Attempts)

    def put(
        self,
        source: Path,
        destination: str | None = None,
        *,
        deadline: Deadline,
        progress: Progress | None = None,
    ) -> Transfer:
        """Bring a file's content into the host's cache, and to `destination` if there is one.

        Returns when the content was read back there and has the same SHA-256. Raises UsageError
        for a source that cannot be read; TransferError; RemoteError.
        """
        began = time.monotonic()
        try:
            with source.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        except OSError as error:
            raise UsageError(f"cannot read {source}: {error}") from error

        def store(parts: tuple[str, ...], first_size: int) -> str:
            return str(
                self._ask(
                    "store",
                    {
                        "entry": f"cache/sha256/{sha256[:2]}/{sha256}",
                        "sha256": sha256,
                        "size": size,
                        "parts": parts,
                        "first_size": first_size,
                    },
                    {"root": self.root} | ({"destination": destination} if destination else {}),
                    deadline,
                )["state"]
            )

        if store((), 0) == "stored":
            return Transfer(sha256, size, "cache", 0, time.monotonic() - began)
        way: Way = "pull"
        part = f"cache/partial/{sha256}.whole"
        moved = self._pull(source, part, size=size, deadline=deadline, progress=progress)
        parts: tuple[str, ...] = (part,)
        first_size = size
        if moved is None:
            way = "streams"
            segments = divide(size, self.streams)
            parts = tuple(
                f"cache/partial/{sha256}.{each.index}of{len(segments)}" for each in segments
            )
            first_size = segments[0].length
            moved = self._copier().upload(
                source,
                tuple(zip(segments, parts, strict=True)),
                deadline=deadline,
                progress=progress,
            )
        state = store(parts, first_size)
        if state != "stored":
            raise TransferError(
                f"{source.name} arrived {state}: send it again", host=self.transport.host
            )
        return Transfer(sha256, size, way, moved, time.monotonic() - began)

    def get(
        self,
        source: str,
        destination: Path,
        *,
        deadline: Deadline,
        progress: Progress | None = None,
    ) -> Transfer:
        """Bring a file of the host here; `destination` is replaced once its SHA-256 was compared.

        Raises TransferError where there is no such file or it changed meanwhile; RemoteError.
        """
        began = time.monotonic()
        facts = self._ask("describe", {}, {"path": source}, deadline)
        if facts["size"] is None:
            raise TransferError(f"there is no file {source}", host=self.transport.host)
        size, sha256 = int(facts["size"]), str(facts["sha256"])
        partial = destination.with_name(f"{destination.name}.{os.getpid()}.part")
        try:
            self._copier().download(
                source, partial, divide(size, self.streams), deadline=deadline, progress=progress
            )
            with partial.open("rb") as file:
                came = hashlib.file_digest(file, "sha256").hexdigest()
            if came != sha256:
                raise TransferError(
                    f"{source} changed while it was read: fetch it again", host=self.transport.host
                )
            partial.replace(destination)
        finally:
            partial.unlink(missing_ok=True)
        return Transfer(sha256, size, "streams", size, time.monotonic() - began)

    def _pull(
        self,
        source: Path,
        part: str,
        *,
        size: int,
        deadline: Deadline,
        progress: Progress | None,
    ) -> int | None:
        """Have the host fetch the file; return the bytes moved, or None where it cannot reach us.

        A transfer that broke off after it had begun is taken up again.
        """
        if self.pull_address is None:
            return None
        with contextlib.ExitStack() as stack:
            try:
                offer = stack.enter_context(offer_file(source, address=self.pull_address))
            except OSError:
                return None  # the address is none of ours
            parameters = {
                "address": offer.address,
                "port": offer.port,
                "path": offer.path,
                "ca": offer.authority_pem,
                "part": part,
                "size": size,
                "timeout_s": _PULL_TIMEOUT_S,
            }
            first: int | None = None
            have = 0
            for _ in range(_PULLS):
                before = have
                for report in self._follow("pull", parameters, deadline):
                    if "have" not in report:
                        continue
                    have = int(report["have"])
                    if first is None:
                        first = before = have
                    if progress is not None:
                        progress(have, size)
                if first is not None and have == size:
                    return size - first
                if have == before:
                    break  # not a byte came: there is no way from there to us
        return None

    def _follow(
        self, script: str, parameters: dict[str, Any], deadline: Deadline
    ) -> Iterator[dict[str, Any]]:
        """Yield the reports of a script as they come; a lost connection ends them."""
        argv = python_argv(self.python, {"root": self.root})
        try:
            with (
                self.transport.open_shell(deadline=deadline) as shell,
                talking(self.transport, shell, argv, deadline) as talk,
            ):
                talk.begin(script, parameters)
                talk.end_input()
                yield from talk.reports()
        except ConnectionLostError as error:
            self.attempts.record(Attempt(f"{self.transport.host}: {script}", 1, error, wait_s=None))

    def _ask(
        self, script: str, parameters: dict[str, Any], paths: dict[str, str], deadline: Deadline
    ) -> dict[str, Any]:
        """Return the one report of a script that may run twice."""
        done = self.transport.run(
            python_argv(self.python, paths),
            stdin=script_input(load_script(script), parameters),
            deadline=deadline,
            idempotent=True,
        )
        if done.exit_code != 0:
            said = done.stderr.decode(errors="replace").strip()[-2000:]
            raise TransferError(
                f"{script} on the host failed: {said}",
                host=self.transport.host,
                code=done.exit_code,
            )
        values: dict[str, Any] = json.loads(done.stdout)
        return values

    def _copier(self) -> StreamCopier:
        return StreamCopier(
            self.transport,
            self.python,
            self.root,
            streams=self.streams,
            text=self.text,
            policy=self.policy,
            attempts=self.attempts,
        )
