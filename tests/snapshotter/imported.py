"""An image of two layers, and what a store has to be like once it is imported."""

from __future__ import annotations

from snapshotter import ImportedImage, Kind, Snapshotter
from snapshotter.digests import chain_ids
from snapshotter.ext4.reader import Ext4
from snapshotter.vhd import FixedVhd
from tests.snapshotter.archives import image

TWO = image("one", "two")


def nothing_is_half_made(store: Snapshotter) -> bool:
    """No active snapshot, and a directory for each committed one."""
    infos = list(store.walk())
    directories = {path.name for path in (store.root / "snapshots").iterdir()}
    return all(info.kind is Kind.COMMITTED for info in infos) and directories == {
        store.directory(info.name).name for info in infos
    }


def read(store: Snapshotter, snapshot: str, path: str) -> bytes:
    with FixedVhd.open(store.directory(snapshot) / "layer.vhd") as disk:
        return Ext4.open(disk).read(path)


def check_two(store: Snapshotter, imported: ImportedImage) -> None:
    chain = list(chain_ids(TWO.diff_ids))
    assert [layer.snapshot for layer in imported.layers] == chain
    assert [layer.diff_id for layer in imported.layers] == TWO.diff_ids
    assert imported.top == imported.snapshot == chain[-1]
    assert store.stat(chain[1]).parent == chain[0]
    assert read(store, chain[0], "etc/one") == b"one" * 10
    assert read(store, chain[1], "etc/two") == b"two" * 10
    assert nothing_is_half_made(store)
