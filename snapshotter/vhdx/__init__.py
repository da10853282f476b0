"""VHDX files: reading and changing a disk, making new ones, checking and repairing."""

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
from snapshotter.vhdx.publish import write_content, write_into
from snapshotter.vhdx.repair import Repair, repair_vhdx
from snapshotter.vhdx.resize import resize_vhdx

__all__ = [
    "Finding",
    "OwnRange",
    "Repair",
    "VhdxDisk",
    "VhdxIdentity",
    "VhdxInfo",
    "VhdxLayout",
    "check_vhdx",
    "create_vhdx",
    "emit_vhdx",
    "layout_vhdx",
    "repair_vhdx",
    "resize_vhdx",
    "write_content",
    "write_into",
]
