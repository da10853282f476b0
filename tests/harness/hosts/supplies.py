"""What is brought to pretend hosts: a Python layout and wheels that are small and real."""

from __future__ import annotations

import importlib.util
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from harness.hosts.bundle import Bundle

X64, X86 = 0x8664, 0x14C


def program(machine: int = X64) -> bytes:
    """The headers of a Windows program, which is all of it that is looked at here."""
    stub = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    return stub + b"PE\0\0" + struct.pack("<H", machine) + bytes(18)


def layout_files(*, minor: int = 12, machine: int = X64) -> dict[str, bytes]:
    return {
        "tools/python.exe": program(machine),
        f"tools/python3{minor}.dll": b"\x00\xff" * 2000,
        "tools/Lib/os.py": b"# os\n" * 50,
        "tools/Lib/venv/scripts/nt/python.exe": program(),
        "tools/DLLs/_ssl.pyd": bytes(range(256)) * 8,
        "python.nuspec": b"<package/>",
    }


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # one date: the same bytes again
    return path


def native() -> Path:
    """A real extension module of this interpreter, that stands alone."""
    spec = importlib.util.find_spec("_cffi_backend")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def write_bundle(folder: Path, *, version: bytes = b"1") -> Bundle:
    """A bundle of everything: Python, two wheels, one of them native, an image and boot files."""
    parts = folder.with_name(f"{folder.name}-parts")
    layout = write_zip(parts / "python" / "python.3.12.0.nupkg", layout_files())
    wheels = parts / "wheels"
    write_zip(wheels / "ours-1.0-py3-none-any.whl", {"ours/__init__.py": b"VERSION = " + version})
    write_zip(
        wheels / "native-1.0-py3-none-any.whl",
        {f"native.data/platlib/{native().name}": native().read_bytes()},
    )
    image = parts / "image"
    image.mkdir(parents=True)
    (image / "kernel").write_bytes(b"kernel" * 1000)
    (image / "initrd.img").write_bytes(b"initrd" * 2000)
    return Bundle.create(folder, {"wheels": wheels, "python": layout, "image": image})
