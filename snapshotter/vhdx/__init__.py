"""VHDX files: reading a disk, and making new ones."""

from snapshotter.vhdx.create import (
    VhdxIdentity,
    VhdxLayout,
    create_vhdx,
    emit_vhdx,
    layout_vhdx,
)
from snapshotter.vhdx.disk import VhdxDisk, VhdxInfo
from snapshotter.vhdx.publish import write_content

__all__ = [
    "VhdxDisk",
    "VhdxIdentity",
    "VhdxInfo",
    "VhdxLayout",
    "create_vhdx",
    "emit_vhdx",
    "layout_vhdx",
    "write_content",
]
