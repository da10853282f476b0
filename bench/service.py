"""The service: calls on its socket, cost beside a hundred thousand snapshots, flushes, restart.

Peers in Go (containerd's own snapshotters) are measured by `./dev conformance`; here the peer of a
call is the same call on a small store, or the way that upstream works.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import grpc

from bench.measure import Comparison, Figure, compare
from bench.serviceload import SERVICE, measure
from bench.storefill import BASE, GROUPS, LABEL, fill_store
from snapshotter import Snapshotter
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH
from snapshotter.rpc import messages
from snapshotter.rpc.descriptors import Message
from snapshotter.units import KIB, MIB

SMALL: Final = 10
LARGE: Final = 100_000
_ROUNDS: Final = 15
_LOAD_S: Final = 2.0
_FLUSH: Final = re.compile(r"\b(fsync|fdatasync|sync_file_range|msync)\(")


def run() -> Iterator[Comparison | Figure]:
    """Yield every result of this family."""
    with tempfile.TemporaryDirectory(prefix="lcow-bench-") as name:
        directory = Path(name)
        small, large = directory / "small", directory / "large"
        fill_store(small, SMALL)
        fill_store(large, LARGE)
        yield from _cost_beside_many(small, large)
        yield _fresh_prepare(directory)
        yield from _flushes(directory)
        yield _restart(directory, large)
        yield from _lists(directory, small, large)
        yield from _loads(directory, small)


def _cost_beside_many(small: Path, large: Path) -> Iterator[Comparison]:
    with Snapshotter.open(small) as few, Snapshotter.open(large) as many:
        for store in (few, many):
            store.prepare("owner", BASE)
            store.prepare("other", BASE)
        share = {REUSE_SCRATCH: "true", OWNER_KEY: "owner"}

        def prepared(labels: dict[str, str]) -> Callable[[Snapshotter], float]:
            def work(store: Snapshotter) -> float:
                began = time.perf_counter()
                store.prepare("new", BASE, labels=labels)
                took = time.perf_counter() - began
                store.remove("new")
                return took

            return work

        def removed(store: Snapshotter) -> float:
            store.prepare("new", BASE)
            began = time.perf_counter()
            store.remove("new")
            return time.perf_counter() - began

        def mounted(store: Snapshotter) -> float:
            began = time.perf_counter()
            for _ in range(20):
                store.mounts("owner")
            return (time.perf_counter() - began) / 20

        works = {
            "prepare, own scratch": prepared({}),
            "prepare, shared scratch": prepared(share),
            "mounts": mounted,
            "remove": removed,
        }
        for name, work in works.items():
            yield _beside(name, few, many, work)


def _beside(
    name: str, few: Snapshotter, many: Snapshotter, work: Callable[[Snapshotter], float]
) -> Comparison:
    """`work` gives the seconds of the part that counts."""
    times: dict[Snapshotter, list[float]] = {few: [], many: []}
    for _ in range(_ROUNDS):
        for store in (few, many):
            times[store].append(work(store) * 1000)
    return Comparison(
        f"{LARGE} snapshots: {name}",
        *_middle_and_least(times[many]),
        f"with {SMALL}",
        _middle_and_least(times[few])[0],
        _ROUNDS,
        target_ratio=1.3,
    )


def _middle_and_least(times: list[float]) -> tuple[float, float]:
    ordered = sorted(times)
    # The lower quartile: a stall of the disk falls on some rounds of one side alone.
    return ordered[len(ordered) // 4], ordered[0]


def _fresh_prepare(directory: Path) -> Comparison:
    """Upstream copies a template of 17 MiB with io.Copy's buffer of 32 KiB; durable, for once."""
    source, copy = directory / "template.vhdx", directory / "copy.vhdx"
    source.write_bytes(b"\x5a" * (17 * MIB))
    ours: list[float] = []
    peer: list[float] = []
    with Snapshotter.open(directory / "fresh") as store:
        store.prepare("warm")
        for number in range(_ROUNDS):
            began = time.perf_counter()
            store.prepare(f"new-{number}")
            ours.append((time.perf_counter() - began) * 1000)
            began = time.perf_counter()
            with source.open("rb", buffering=0) as read, copy.open("wb", buffering=0) as write:
                while part := read.read(32 * KIB):
                    write.write(part)
                os.fsync(write.fileno())
            peer.append((time.perf_counter() - began) * 1000)
            copy.unlink()
    return Comparison(
        "prepare with a fresh scratch",
        *_middle_and_least(ours),
        "copy of 17 MiB, flushed",
        _middle_and_least(peer)[0],
        _ROUNDS,
        target_ratio=0.1,
    )


def _flushes(directory: Path) -> Iterator[Figure]:
    """Count with strace; nothing where it is not installed."""
    if shutil.which("strace") is None:
        return
    program = (
        "import os, sys; from snapshotter import Snapshotter\n"
        "with Snapshotter.open(sys.argv[1]) as store:\n"
        "    store.prepare('warm')\n"
        "    os.path.exists('/begin'); store.prepare('new'); os.path.exists('/end')\n"
    )
    done = subprocess.run(
        [
            *("strace", "-f", "-e", "trace=fsync,fdatasync,sync_file_range,msync,/.*stat.*"),
            *(sys.executable, "-c", program, str(directory / "flushes")),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    part = done.stderr.split('"/begin"')[1].split('"/end"')[0]
    yield Figure("prepare with a fresh scratch: flushes", len(_FLUSH.findall(part)), "", 3)


@contextmanager
def served(root: Path, path: Path) -> Iterator[None]:
    """A server process of the store at `root`, ready."""
    command = [sys.executable, "-c", "from snapshotter.cli import main; main()", "serve"]
    options = ["--root", str(root), "--address", f"unix://{path}", "--log-level", "warning"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline().startswith("listening"):
                raise RuntimeError(f"the server of {root} did not start")
            yield
        finally:
            process.terminate()


def _encoded(message: Message) -> bytes:
    return message.SerializeToString()


def _restart(directory: Path, large: Path) -> Figure:
    """From the start of the process to the answer to the first call; the median of three."""
    socket = directory / "s"
    times: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        with served(large, socket), grpc.insecure_channel(f"unix://{socket}") as channel:
            stat = channel.unary_unary(f"{SERVICE}Stat", request_serializer=_encoded)
            stat(messages.StatSnapshotRequest(key=BASE))
            times.append(time.perf_counter() - began)
    took = statistics.median(times)
    return Figure(f"{LARGE} snapshots: restart to the first answer", took, "s", 2.0)


def _lists(directory: Path, small: Path, large: Path) -> Iterator[Comparison]:
    few, many = directory / "few", directory / "many"
    with ExitStack() as stack:
        for root, path in ((small, few), (large, many)):
            stack.enter_context(served(root, path))
        channels = [
            stack.enter_context(grpc.insecure_channel(f"unix://{path}")) for path in (many, few)
        ]
        stubs = [
            channel.unary_stream(f"{SERVICE}List", request_serializer=_encoded)
            for channel in channels
        ]
        filters = {
            "list all": (),
            "list by name": (f"name=={BASE}",),
            f"list by label, 1 in {GROUPS}": (f'labels."{LABEL}"==7',),
        }
        for name, texts in filters.items():
            request = messages.ListSnapshotsRequest(filters=texts)
            yield compare(
                f"{LARGE} snapshots: {name}",
                lambda request=request: sum(map(len, stubs[0](request))),  # type: ignore[misc]
                f"with {SMALL}",
                lambda request=request: sum(map(len, stubs[1](request))),  # type: ignore[misc]
                rounds=7,
            )


def _loads(directory: Path, small: Path) -> Iterator[Figure]:
    """Milliseconds of the server's time for each operation; the bounds are sanity alone."""
    socket = directory / "load"
    with served(small, socket):
        for work in ("stat", "chain"):
            for clients in (1, 16):
                load = measure(socket, work, clients=clients, seconds=_LOAD_S)
                yield Figure(
                    f"{work}, {clients} clients: {load.operations_per_s:.0f} operations/s,"
                    f" p50 {load.p50_ms:.2f} ms, p99 {load.p99_ms:.2f} ms",
                    1000 / load.operations_per_s,
                    "ms each",
                    20.0,
                )
