"""Services of many fresh stores in one process: each of containerd's sub-tests wants its own.

`python -m tests.conformance.farm FOLDER COUNT MOUNTS` listens on FOLDER/00.sock and so on, prints
`ready`, and ends when its standard input does. With the mounts `lcow-pipe` a played named pipe of
Windows is between each socket and its service.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from snapshotter import Snapshotter
from snapshotter.linuxhost.snapshotter import LinuxHostSnapshotter
from snapshotter.rpc.backend import Backend
from snapshotter.rpc.endpoint import Endpoint
from snapshotter.rpc.server import Server
from snapshotter.rpc.snapshots_v1 import SnapshotsService
from tests.conformance.windows import behind_a_pipe


def main(folder: Path, count: int, mounts: str) -> None:
    """Serve until standard input ends."""
    with contextlib.ExitStack() as stack:
        for number in range(count):
            root = folder / f"{number:02}"
            backend: Backend
            if mounts == "linux-host":
                backend = stack.enter_context(LinuxHostSnapshotter.open(root))
            else:
                backend = stack.enter_context(Snapshotter.open(root))
            where: Path | Endpoint = folder / f"{number:02}.sock"
            if mounts == "lcow-pipe":
                where = stack.enter_context(behind_a_pipe(folder / f"{number:02}.sock"))
            server = Server.start(where, [SnapshotsService(backend)])
            stack.callback(server.stop, grace_s=5)
        print("ready", flush=True)  # noqa: T201, the answer
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
