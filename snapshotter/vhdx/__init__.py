"""VHDX files: reading a disk, and making new ones."""

from snapshotter.vhdx.create import (
    VhdxIdentity,
    VhdxLayout,
    create_vhdx,
    emit_vhdx,
    layout_vhdx,
)
from snapshotter.vhdx.disk import VhdxDisk, VhdxInfo
from snapshotter.vhdx.inspect import inspect_vhdx
from snapshotter.vhdx.merge import merge_child
from snapshotter.vhdx.parent import DiskChain, create_child, open_chain, resolve_chain
from snapshotter.vhdx.publish import write_content
from snapshotter.vhdx.recover import replay_log

__all__ = [
    "DiskChain",
    "VhdxDisk",
    "VhdxIdentity",
    "VhdxInfo",
    "VhdxLayout",
    "create_child",
    "create_vhdx",
    "emit_vhdx",
    "inspect_vhdx",
    "layout_vhdx",
    "merge_child",
    "open_chain",
    "replay_log",
    "resolve_chain",
    "write_content",
]
