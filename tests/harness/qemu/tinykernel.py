"""A kernel of a few bytes for tests that need a machine, but no Linux: prints, then acts.

A Multiboot image (Multiboot specification 0.6.96, with the address fields of flag 16), which QEMU
boots with `-kernel` as it does Linux. It runs in 32-bit protected mode.
"""

from __future__ import annotations

import enum
import struct
from pathlib import Path

_LOAD_AT = 0x100000
_MAGIC = 0x1BADB002
_FLAGS = 1 << 16  # the address fields are valid
_HEADER = struct.Struct("<8I")


class Action(enum.Enum):
    """What the kernel does after it printed its message."""

    HALT = bytes.fromhex("fa f4 ebfd")  # cli; hlt; again
    POWER_OFF = bytes.fromhex(
        "66ba0406"  # mov dx, 0x604: PM1a control of the ICH9
        "66b80020"  # mov ax, SLP_EN
        "66ef"  # out dx, ax
        "f4 ebfd"
    )
    RESET = bytes.fromhex(
        "66baf90c"  # mov dx, 0xcf9
        "b006"  # mov al, hard reset
        "ee"  # out dx, al
        "f4 ebfd"
    )


def write_kernel(path: Path, message: str, action: Action) -> Path:
    """Write a kernel that prints on COM1; returns `path`."""
    entry = _LOAD_AT + _HEADER.size
    prologue = 1 + 4 + 16  # mov esi, message; the loop below
    text_at = entry + prologue + len(action.value)
    code = b"\xbe" + struct.pack("<I", text_at)  # mov esi, message
    code += bytes.fromhex(
        "ac"  # next: lodsb
        "84c0"  # test al, al
        "7407"  # jz act
        "66baf803"  # mov dx, 0x3f8
        "ee"  # out dx, al
        "ebf4"  # jmp next
        "90909090"
    )
    assert len(code) == prologue
    image = code + action.value + message.encode() + b"\0"
    end = entry + len(image)
    header = _HEADER.pack(
        _MAGIC, _FLAGS, -(_MAGIC + _FLAGS) & 0xFFFFFFFF, _LOAD_AT, _LOAD_AT, end, end, entry
    )
    path.write_bytes(header + image)
    return path
