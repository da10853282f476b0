"""`lcow-snapshotter serve`: the proxy plugin that containerd dials."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from snapshotter.cli.output import ExitCode, RootOption, operation
from snapshotter.errors import UnimplementedError
from snapshotter.snapshotter import Snapshotter

if TYPE_CHECKING:
    from snapshotter.rpc.backend import Backend
    from snapshotter.rpc.config import ServiceConfig

_GRACE_S: Final = 10.0
_WAKE_S: Final = 0.5
"""A signal may be taken by another thread; the main thread then notices at its next look."""

_SWITCH_S: Final = 0.0005
"""A tenth of Python's own: the thread that does the work of all others lets go of the interpreter
with each statement, and should not wait long to have it back."""

_STOPPING: Final = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)
)
"""SIGBREAK is Windows's Ctrl-Break, which alone can be sent to a group of processes there."""


class Mounts(StrEnum):
    """What the mounts are made for."""

    LCOW = "lcow"
    LINUX_HOST = "linux-host"


class LogLevel(StrEnum):
    """From what on the log has lines; reads are `debug`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve(
    root: RootOption,
    address: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where to listen: unix:///path/to/socket, on Windows npipe:////./pipe/NAME.",
        ),
    ],
    mounts: Annotated[
        Mounts, typer.Option(help="Mounts for LCOW, or mounts that this Linux can mount.")
    ] = Mounts.LCOW,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Configuration (TOML).")
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="Least level of the log.")] = LogLevel.INFO,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long calls may take at the end.")
    ] = _GRACE_S,
) -> None:
    """Serve containerd's snapshots.v1 and diff.v1 until SIGTERM, SIGINT or Ctrl-Break.

    Prints `listening on ADDRESS` once calls are taken. The log goes to stderr, one JSON
    document a line.
    """
    # Imported here: gRPC takes longer to load than most commands to run.
    from snapshotter.rpc.config import ServiceConfig
    from snapshotter.rpc.content import ContainerdContent, ContentStore
    from snapshotter.rpc.contentdirectory import ContentDirectory
    from snapshotter.rpc.diff_v1 import DiffService
    from snapshotter.rpc.endpoint import endpoint_at
    from snapshotter.rpc.logs import log_to
    from snapshotter.rpc.notify import Readiness, notify
    from snapshotter.rpc.server import Server
    from snapshotter.rpc.snapshots_v1 import SnapshotsService

    stop = threading.Event()
    with operation(json_output=False):
        endpoint = endpoint_at(address)
        settings = ServiceConfig() if config is None else ServiceConfig.load(config)
        for number in _STOPPING:
            signal.signal(number, lambda *_: stop.set())
        log_to(sys.stderr, level=log_level.value)
        sys.setswitchinterval(_SWITCH_S)
        content: ContentStore = (
            ContainerdContent(settings.containerd_address)
            if settings.containerd_content is None
            else ContentDirectory(settings.containerd_content)
        )
        backend = _BACKENDS[mounts](root, settings)
        try:
            layers = DiffService(root.resolve() / "snapshots", content, backend.layers)
            server = Server.start(endpoint, [SnapshotsService(backend), layers])
            typer.echo(f"listening on {address}")
            sys.stdout.flush()
            notify(Readiness.READY)
            # Not before the first calls: after a start there may be some that wait.
            if not stop.wait(_WAKE_S) and isinstance(backend, Snapshotter):
                backend.warm()
            while not stop.wait(_WAKE_S):
                pass
            notify(Readiness.STOPPING)
            idle = server.stop(grace_s=grace)
        finally:
            backend.close()
            content.close()
        if not idle:
            # The interpreter would wait for the threads of the calls that were abandoned.
            sys.stderr.flush()
            os._exit(ExitCode.FAILED)


def open_lcow(root: Path, settings: ServiceConfig) -> Backend:
    """The store at `root` with its own mounts, as the settings want it."""
    return Snapshotter.open(
        root,
        default_scratch_size=settings.default_scratch_size,
        scratch_locations=settings.scratch_locations,
        reuse_layers=settings.reuse_layers,
        delete_later=True,
    )


def open_linux_host(root: Path, settings: ServiceConfig) -> Backend:
    """The store at `root` with mounts for this Linux. Raises UnimplementedError elsewhere."""
    if sys.platform == "linux":
        from snapshotter.linuxhost.snapshotter import LinuxHostSnapshotter

        return LinuxHostSnapshotter.open(
            root,
            default_scratch_size=settings.default_scratch_size,
            scratch_locations=settings.scratch_locations,
            reuse_layers=settings.reuse_layers,
            delete_later=True,
        )
    raise UnimplementedError("mounts for a Linux host: serve them on Linux")


_BACKENDS: Final[Mapping[Mounts, Callable[[Path, ServiceConfig], Backend]]] = {
    Mounts.LCOW: open_lcow,
    Mounts.LINUX_HOST: open_linux_host,
}
