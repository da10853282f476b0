"""A snapshots.v1 service that does nothing: `python -m bench.emptyservice SOCKET`.

Its calls are what grpcio alone costs, below which no service in Python can get.
"""

from __future__ import annotations

import argparse
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc

from snapshotter.mounts import Mount
from snapshotter.rpc import messages
from snapshotter.rpc.server import DEFAULT_WORKERS
from snapshotter.rpc.snapshots_v1 import encoded_mounts

_MOUNTS: Final = encoded_mounts(
    [Mount("lcow-layer", "/root/snapshots/1", ("rw", 'parentLayerPaths=["/root/snapshots/2"]'))]
)
_ANSWERS: Final = {"Prepare": _MOUNTS, "Commit": b"", "Remove": b""}


def main() -> None:
    """Answer until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket", type=Path)
    path: Path = parser.parse_args().socket
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = grpc.server(ThreadPoolExecutor(DEFAULT_WORKERS), options=[("grpc.http2.bdp_probe", 0)])
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(lambda _, __, answer=answer: answer)
        for name, answer in _ANSWERS.items()
    }
    service = f"{messages.SNAPSHOTS}.Snapshots"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    server.add_insecure_port(f"unix://{path}")
    server.start()
    while not stop.wait(0.5):
        pass
    server.stop(1).wait()


if __name__ == "__main__":
    main()
