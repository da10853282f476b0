"""What a process does to a store until it is killed, and what it was promised.

Each line goes to a file in one write, so that a line is there or not:
`? KEY...` about to be tried; `+ KEY NUMBER` prepared; `c NAME` committed; `- KEY` removed;
`d KEY` its disk was written to.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from snapshotter import Snapshotter
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH
from snapshotter.platform import Platform

MARK_SIZE = 64


def mark(key: str) -> bytes:
    """What a container leaves at the end of its disk."""
    return key.encode().ljust(MARK_SIZE, b".")


def work(root: Path, log: Path, name: str, platform: Platform, *, threads: int) -> None:
    """Prepare, commit, share and remove for as long as it lasts."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(line: str) -> None:
        os.write(descriptor, line.encode() + b"\n")

    with Snapshotter.open(root, platform=platform, delete_later=True) as store:  # as served
        say("open")
        workers = [
            threading.Thread(target=_rounds, args=(store, f"{name}.{number}", say))
            for number in range(threads)
        ]
        for worker in workers:
            worker.start()
        store.warm()  # in the middle of their work, as a server does
        for worker in workers:
            worker.join()


def _rounds(store: Snapshotter, name: str, say: Callable[[str], None]) -> None:
    def prepared(key: str, parent: str = "", **labels: str) -> None:
        say(f"? {key}")
        store.prepare(key, parent, labels={_LABELS[name]: value for name, value in labels.items()})
        say(f"+ {key} {store.directory(key).name}")

    for number in range(10_000):
        layer, pod, sharer = (f"{name}-{number}-{part}" for part in ("layer", "pod", "c"))
        unpack = f"extract-{layer}"
        prepared(unpack)
        (store.directory(unpack) / "layer.vhd").write_text(layer)
        say(f"? {unpack} {layer}")
        store.commit(layer, unpack)
        say(f"c {layer}")
        prepared(pod, layer)
        with (store.directory(pod) / "sandbox.vhdx").open("ab") as disk:
            disk.write(mark(pod))
        say(f"d {pod}")
        prepared(sharer, layer, reuse="true", owner=pod)
        if number % 2:
            for key in (pod, sharer, layer):
                say(f"? {key}")
                store.remove(key)
                say(f"- {key}")


_LABELS = {"reuse": REUSE_SCRATCH, "owner": OWNER_KEY}
