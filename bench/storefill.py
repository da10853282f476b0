"""A store with very many snapshots, made in seconds: all rows in one transaction."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from snapshotter import Kind, Snapshotter
from snapshotter.metastore.store import MetaStore
from snapshotter.snapshotter import METADATA_NAME

LABEL: Final = "bench/group"
GROUPS: Final = 100
BASE: Final = "base"


def fill_store(root: Path, count: int) -> None:
    """Make a store at `root`: a committed `BASE` and `count` unpack snapshots on it.

    Their keys are `k8s.io/<n>/extract-<n>`; the label `LABEL` puts each in one of `GROUPS`.
    """
    with Snapshotter.open(root, durable=False) as store:
        store.prepare("extract-base")
        (store.directory("extract-base") / "layer.vhd").write_bytes(b"layer")
        store.commit(BASE, "extract-base")
    metadata = MetaStore.open(root / METADATA_NAME)
    try:
        with metadata.transaction(write=True) as tx:
            for number in range(count):
                labels = {LABEL: str(number % GROUPS), "containerd.io/gc.root": "bench"}
                key = f"k8s.io/{number}/extract-{number}"
                snapshot = tx.snapshots.create(Kind.ACTIVE, key, BASE, labels)
                (root / "snapshots" / str(snapshot.id)).mkdir()
    finally:
        metadata.close()
