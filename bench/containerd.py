"""Our service beside containerd's own snapshotters: through a real containerd, and on the socket.

The peers are overlayfs and native of containerd 1.6 behind containerd's own gRPC service, in a
process of their own (tests/conformance/go/peer); one Go program puts the same load on both sides.
A family that misses its programs yields nothing and says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.measure import Comparison
from snapshotter import Snapshotter
from tests.conformance.gobuild import CannotBuildError, GoPrograms, go_programs
from tests.conformance.stack import PLUGIN, Daemon, Stack, missing_programs

_ROUNDS = 5
_DEPTH = 5
_CHAINS = 32
"""In all, whatever the number of clients."""
_PEER = "peer"
_MANY = int(os.environ.get("LCOWLAB_BENCH_SNAPSHOTS", "100000"))
_SHARDS = 100


def run() -> Iterator[Comparison]:
    """Yield every comparison of the family."""
    try:
        programs = go_programs()
    except CannotBuildError as error:
        print(f"containerd: {error}", file=sys.stderr)
        return
    absent = missing_programs()
    if absent is not None:
        print(f"containerd: {absent}", file=sys.stderr)
        return
    yield from _chains(programs)
    yield from _many(programs)


def _chains(programs: GoPrograms) -> Iterator[Comparison]:
    with _folder() as folder:
        peer = _peer(programs, folder, "overlayfs")
        with (
            _started(peer),
            Stack.running(folder, mounts="lcow", proxies={_PEER: peer.socket}) as stack,
        ):
            for clients, target in ((1, 1 / 0.8), (16, 1 / 0.8)):
                sockets = stack.containerd.socket, stack.containerd.socket
                yield _chain(
                    programs,
                    f"prepare+commit+remove through containerd, {clients} clients",
                    "Go overlayfs as a proxy",
                    sockets,
                    clients,
                    target,
                )
            empty = Daemon(
                [sys.executable, "-m", "bench.emptyservice", str(folder / "empty.sock")],
                folder / "empty.log",
                folder / "empty.sock",
            )
            with _started(empty):
                for clients in (1, 16):
                    yield _chain(
                        programs,
                        f"grpcio alone on the socket: empty answers, {clients} clients",
                        "Go overlayfs behind Go gRPC",
                        (empty.socket, peer.socket),
                        clients,
                        None,
                    )
            for clients, direct in ((1, None), (16, 1.0)):
                yield _chain(
                    programs,
                    f"prepare+commit+remove on the socket, {clients} clients",
                    "Go overlayfs behind Go gRPC",
                    (stack.service.socket, peer.socket),
                    clients,
                    direct,
                )


def _chain(
    programs: GoPrograms,
    name: str,
    peer_name: str,
    sockets: tuple[Path, Path],
    clients: int,
    target: float | None,
) -> Comparison:
    numbers = iter(range(1_000_000))

    def work(socket: Path, plugin: str) -> Callable[[], float]:
        return lambda: _load(
            programs,
            *("-socket", str(socket), "-snapshotter", plugin, "-depth", str(_DEPTH)),
            *("-clients", str(clients), "-count", str(_CHAINS // clients)),
            *("-prefix", f"{name[-12:]}-{plugin}-{next(numbers)}", "chain"),
        )

    return _interleaved(
        name, peer_name, work(sockets[0], PLUGIN), work(sockets[1], _PEER), target=target
    )


def _many(programs: GoPrograms) -> Iterator[Comparison]:
    with _folder() as folder:
        peer = _peer(programs, folder, "native")
        with _started(peer):
            _fill_ours(folder / "store")
            _load(
                programs,
                *("-socket", str(peer.socket), "-clients", "16"),
                *("-count", str(_MANY // 16), "-prefix", "many", "fill"),
            )
            stack = Stack(folder, "lcow", {})
            with _started(stack.service):
                for name, target, filters in (
                    ("list all", 0.5, ()),
                    ("by name", 1 / 100, ("name==extract-many-7",)),
                    ("by label", 1 / 5, ('labels."containerd.io/snapshot/shard"==7',)),
                ):
                    yield _interleaved(
                        f"{_MANY} snapshots: {name}",
                        "Go native",
                        _walk(programs, stack.service.socket, filters),
                        _walk(programs, peer.socket, filters),
                        target=target,
                    )


def _walk(programs: GoPrograms, socket: Path, filters: tuple[str, ...]) -> Callable[[], float]:
    return lambda: _load(programs, "-socket", str(socket), "list", *filters)


def _fill_ours(root: Path) -> None:
    # Not measured: without the flushes it takes half the time.
    with Snapshotter.open(root, durable=False) as store:
        for number in range(_MANY // 16 * 16):
            store.prepare(
                f"extract-many-{number}",
                labels={"containerd.io/snapshot/shard": str(number % _SHARDS)},
            )


def _interleaved(
    name: str,
    peer_name: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    *,
    target: float | None,
) -> Comparison:
    """Medians of the seconds that both say they took, in turn; one warm-up each."""
    ours()
    peer()
    mine, theirs = [], []
    for _ in range(_ROUNDS):
        mine.append(ours() * 1000)
        theirs.append(peer() * 1000)
    return Comparison(
        name=name,
        ours_ms=statistics.median(mine),
        ours_min_ms=min(mine),
        peer=peer_name,
        peer_ms=statistics.median(theirs),
        rounds=_ROUNDS,
        target_ratio=target,
    )


def _load(programs: GoPrograms, *arguments: str) -> float:
    command = [str(programs.load), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    seconds: float = json.loads(done.stdout)["seconds"]
    return seconds


def _peer(programs: GoPrograms, folder: Path, kind: str) -> Daemon:
    socket = folder / f"{_PEER}.sock"
    command = [
        *(str(programs.peer), "-snapshotter", kind),
        *("-root", str(folder / _PEER), "-socket", str(socket)),
    ]
    return Daemon(command, folder / f"{_PEER}.log", socket)


@contextlib.contextmanager
def _started(daemon: Daemon) -> Iterator[Daemon]:
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder on a real disk: /tmp may be memory."""
    folder = Path(tempfile.mkdtemp(prefix="lcowlab-bench-", dir="/var/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
