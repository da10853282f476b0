"""VHDX files: reading and changing a disk, making new ones, checking, repairing, chains."""

from snapshotter.vhdx.check import Finding, check_vhdx
from snapshotter.vhdx.create import (
    VhdxIdentity,
    VhdxLayout,
    create_vhdx,
    emit_vhdx,
    layout_vhdx,
)
from snapshotter.vhdx.disk import OwnRange, VhdxDisk
from snapshotter.vhdx.info import VhdxInfo
from snapshotter.vhdx.inspect import inspect_vhdx
from snapshotter.vhdx.merge import merge_child
from snapshotter.vhdx.parent import DiskChain, create_child, open_chain, resolve_chain
from snapshotter.vhdx.publish import Allocation, write_content, write_into, write_new
from snapshotter.vhdx.recover import replay_log
from snapshotter.vhdx.repair import Repair, repair_vhdx
from snapshotter.vhdx.resize import resize_vhdx

__all__ = [
    "Allocation",
    "DiskChain",
    "Finding",
    "OwnRange",
    "Repair",
    "VhdxDisk",
    "VhdxIdentity",
    "VhdxInfo",
    "VhdxLayout",
    "check_vhdx",
    "create_child",
    "create_vhdx",
    "emit_vhdx",
    "inspect_vhdx",
    "layout_vhdx",
    "merge_child",
    "open_chain",
    "repair_vhdx",
    "replay_log",
    "resize_vhdx",
    "resolve_chain",
    "write_content",
    "write_into",
    "write_new",
]
