"""Clients of a served store, in processes of their own: `python -m bench.serviceload`.

Each client has a connection and works as fast as it is answered. Prints one JSON document:
operations a second, and latencies in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from snapshotter.rpc import messages
from snapshotter.rpc.descriptors import Message

SERVICE: Final = f"/{messages.SNAPSHOTS}.Snapshots/"
_CLIENTS_IN_A_PROCESS: Final = 8
"""A process of Python does one thing at a time; two of them keep two cores busy."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a load achieved."""

    operations_per_s: float
    p50_ms: float
    p99_ms: float


def measure(path: Path, work: str, *, clients: int, seconds: float) -> Load:
    """Put `clients` to `work` (stat or chain) on the server at `path`."""
    shares = [
        min(_CLIENTS_IN_A_PROCESS, clients - first)
        for first in range(0, clients, _CLIENTS_IN_A_PROCESS)
    ]
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "bench.serviceload", str(path), work),
                *("--clients", str(share), "--seconds", str(seconds), "--name", str(number)),
            ],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        for number, share in enumerate(shares)
    ]
    latencies: list[float] = []
    rate = 0.0
    for process in processes:
        output, _ = process.communicate()
        document = json.loads(output)
        latencies += document["latencies_ms"]
        rate += document["operations_per_s"]
    latencies.sort()
    return Load(rate, statistics.median(latencies), latencies[int(len(latencies) * 0.99)])


class _Client:
    def __init__(self, path: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix://{path}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._stubs = {
            name: self._channel.unary_unary(f"{SERVICE}{name}", request_serializer=_encoded)
            for name in ("Stat", "Prepare", "Commit", "Remove")
        }

    def call(self, method: str, request: Message) -> None:
        self._stubs[method](request, wait_for_ready=True)

    def close(self) -> None:
        self._channel.close()


def _encoded(message: Message) -> bytes:
    return message.SerializeToString()


def _stat(client: _Client, _: str) -> int:
    client.call("Stat", messages.StatSnapshotRequest(key="base"))
    return 1


def _chain(client: _Client, name: str) -> int:
    """A layer of an image, without a scratch disk: the work that Go's snapshotters do."""
    key = f"k8s.io/1/extract-{name}"
    client.call("Prepare", messages.PrepareSnapshotRequest(key=key, parent="base"))
    client.call("Commit", messages.CommitSnapshotRequest(key=key, name=name))
    client.call("Remove", messages.RemoveSnapshotRequest(key=name))
    return 3


_WORK: Final[dict[str, Callable[[_Client, str], int]]] = {"stat": _stat, "chain": _chain}


def main() -> None:
    """Be some clients for some seconds."""
    parser = argparse.ArgumentParser(prog="bench.serviceload", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("work", choices=list(_WORK))
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    latencies: list[float] = []
    done = [0] * options.clients
    started = threading.Barrier(options.clients + 1)

    def client(number: int) -> None:
        connection = _Client(options.path)
        work = _WORK[options.work]
        work(connection, f"{options.name}-{number}-warm")
        started.wait()
        until = time.perf_counter() + options.seconds
        mine: list[float] = []
        while (began := time.perf_counter()) < until:
            done[number] += work(connection, f"{options.name}-{number}-{len(mine)}")
            mine.append((time.perf_counter() - began) * 1000)
        latencies.extend(mine)
        connection.close()

    threads = [threading.Thread(target=client, args=(n,)) for n in range(options.clients)]
    for thread in threads:
        thread.start()
    started.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    rate = sum(done) / (time.perf_counter() - began)
    print(json.dumps({"operations_per_s": rate, "latencies_ms": latencies}))


if __name__ == "__main__":
    main()
