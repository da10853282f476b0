"""Layers that are made in few words, and the names that a walk gives."""

from __future__ import annotations

from snapshotter import Snapshotter

GC_ROOT = {"containerd.io/gc.root": "now"}


def committed(store: Snapshotter, name: str, parent: str = "") -> str:
    """A committed layer; its key looks like an unpacker's."""
    store.prepare(f"extract-x {name}", parent)
    store.commit(name, f"extract-x {name}")
    return name


def names(store: Snapshotter, *filters: str) -> list[str]:
    return [info.name for info in store.walk(*filters)]
