"""Files to and from a host: a cache by content there, then the fastest way that is open.

::

    put: in the host's cache? ──yes──────────────────────────────────────────► placed
            │ no                                                                  ▲
            ▼                                                                     │
         SMB to its administrative share (`lcowlab[smb]`, port 445)               │
            │ closed                                                              │
            ▼                                                                     │
         HTTPS pull by the host's Python, pinned authority                        │
            │ closed                                                              │
            ▼                                                                     │
         parallel WinRS streams                                                   │
            └────────► parts joined, read back, SHA-256 compared ─────────────────┘

This is the whole order and its one place. Every way goes on where it broke off, in this run and in
the next; a way that was found closed is not tried again by the same object. All of them need
Python on the host: `harness.remote.bootstrap` brings it there.
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
from typing import Any, Self

from harness.errors import TransferError, UsageError
from harness.remote.deadline import Deadline
from harness.remote.hostpython import load_script, python_argv, script_input
from harness.remote.probe import passes_every_byte
from harness.remote.pulling import Pull
from harness.remote.pullserver import address_towards
from harness.remote.retries import Attempts, RetryPolicy
from harness.remote.smb import AdminShare, ShareWay, share_of
from harness.remote.streams import StreamCopier, divide
from harness.remote.transport import Transport
from harness.remote.ways import Delivery, Errand, Progress, Way, WayName
from harness.remote.winrm import WinRM


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a copy came to: `moved` are the bytes of the file that crossed the network this time.

    `closed` are the ways that were not open, and why, in the order in which they were tried.
    """

    sha256: str
    size: int
    way: WayName
    moved: int
    seconds: float
    closed: tuple[tuple[WayName, str], ...] = ()


@dataclass(frozen=True, slots=True)
class HostFiles:
    """Copies files to and from one host.

    `root` is our folder there; `python` its interpreter. `share` is its administrative share,
    `pull_address` the IP address of ours that the host can reach: None leaves that way out.
    `text` as the probe's byte transparency says; None asks the host when streams are needed.
    """

    transport: Transport
    python: str
    root: str
    pull_address: str | None = None
    share: AdminShare | None = None
    streams: int = 2
    text: bool | None = False
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    attempts: Attempts = field(default_factory=Attempts)
    _closed: dict[WayName, str] = field(default_factory=dict, init=False)
    _found: dict[str, bool] = field(default_factory=dict, init=False)

    @classmethod
    def every_way(
        cls, winrm: WinRM, python: str, root: str, *, pull_address: str | None = None
    ) -> Self:
        """Return the copier with every way that may lead to that host; nothing is sent yet.

        `pull_address` is taken for ours towards the host where the route does not tell it.
        """
        endpoint = winrm.endpoint
        address = pull_address
        if address is None:
            # Without a route, WinRM itself will say so.
            with contextlib.suppress(OSError):
                address = address_towards(endpoint.address, endpoint.port)
        return cls(
            winrm, python, root, pull_address=address, share=share_of(endpoint, root), text=None
        )

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
        errand = Errand(source, sha256, size, deadline, progress)
        way: WayName = "cache"
        moved = 0
        state = self._store(errand, destination)
        if state != "stored":
            way, delivery = self._carry(errand)
            moved = delivery.moved
            state = self._store(errand, destination, delivery)
        if state != "stored":
            raise TransferError(
                f"{source.name} arrived {state}: send it again", host=self.transport.host
            )
        closed = tuple(self._closed.items()) if moved else ()
        return Transfer(sha256, size, way, moved, time.monotonic() - began, closed)

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
            self._copier(deadline).download(
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

    def _ways(self, deadline: Deadline) -> Iterator[Way]:
        """Yield the ways in their order, each made when the one before was closed."""
        if self.share is not None:
            yield ShareWay(self.share, self.root)
        if self.pull_address is not None:
            yield Pull(self.transport, self.python, self.root, self.pull_address, self.attempts)
        yield self._copier(deadline)

    def _carry(self, errand: Errand) -> tuple[WayName, Delivery]:
        for way in self._ways(errand.deadline):
            if way.name in self._closed:
                continue
            came = way.carry(errand)
            if isinstance(came, Delivery):
                return way.name, came
            self._closed[way.name] = came.reason
        raise AssertionError("streams are never closed")

    def _store(
        self, errand: Errand, destination: str | None, delivery: Delivery | None = None
    ) -> str:
        """Have the host join what was delivered, check its cache, and place the content."""
        answer = self._ask(
            "store",
            {
                "entry": f"cache/sha256/{errand.sha256[:2]}/{errand.sha256}",
                "sha256": errand.sha256,
                "size": errand.size,
                "parts": delivery.parts if delivery else (),
                "first_size": delivery.first_size if delivery else 0,
            },
            {"root": self.root} | ({"destination": destination} if destination else {}),
            errand.deadline,
        )
        return str(answer["state"])

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

    def _copier(self, deadline: Deadline) -> StreamCopier:
        text = self.text
        if text is None:
            if "text" not in self._found:
                passed = passes_every_byte(self.transport, self.python, deadline=deadline)
                self._found["text"] = passed is False
            text = self._found["text"]
        return StreamCopier(
            self.transport,
            self.python,
            self.root,
            streams=self.streams,
            text=text,
            policy=self.policy,
            attempts=self.attempts,
        )
