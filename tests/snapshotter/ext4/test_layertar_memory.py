"""What a layer costs in memory: its names and a few dozen bytes an entry, never its content."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from snapshotter.errors import LayerError
from snapshotter.ext4.layertar import ConversionLimits
from snapshotter.units import KIB
from tests.snapshotter.ext4.layers import DIR, SYM, convert, member, tar

CHILD = """
import sys
from pathlib import Path
from snapshotter.ext4.layertar import convert_layer
with open(sys.argv[1], "rb", buffering=0) as stream:
    convert_layer(stream, Path(sys.argv[2]), durable=False)
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def many_entries(path: Path, count: int) -> None:
    """Write a tar of small files, 40 to a directory."""
    info = tarfile.TarInfo("usr/lib/node_modules/d00000/module-000000.js")
    info.size = 10
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    start = sum(header) - sum(header[148:156]) + 8 * 0x20
    plain = sum(info.name.encode())
    data = b"0123456789".ljust(512, b"\0")
    with path.open("wb") as file:
        for number in range(count):
            name = f"usr/lib/node_modules/d{number // 40:05}/module-{number:06}.js".encode()
            header[: len(name)] = name
            header[148:156] = b"%06o\0 " % (start - plain + sum(name))
            file.write(header + data)
        file.write(bytes(1024))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_200000_entries_take_less_than_150_mb(tmp_path: Path) -> None:
    many_entries(tmp_path / "layer.tar", 200_000)
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(tmp_path / "layer.tar"),
        str(tmp_path / "layer.vhd"),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) * KIB <= 150e6


@pytest.mark.parametrize(
    "members",
    [
        [member(f"{number}{'n' * 200}") for number in range(100)],
        [member(f"{number}", kind=SYM, link="t" * 1000) for number in range(20)],
        [member(f"{number}{'n' * 200}", kind=DIR) for number in range(100)],
        [member(f"{number}", xattrs={"user.a": f"{number:02}" * 500}) for number in range(20)],
        [member(f".wh.{number}{'n' * 200}") for number in range(100)],
    ],
    ids=["names", "symlinks", "directories", "xattrs", "whiteouts"],
)
def test_what_stays_in_memory_is_bounded(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    limits = ConversionLimits(max_held=16 * KIB)
    with pytest.raises(LayerError, match="names, link targets and xattrs"):
        convert(tar(*members), tmp_path / "layer.vhd", limits=limits)


def test_one_label_on_every_file_counts_once(tmp_path: Path) -> None:
    label = {"security.selinux": "system_u:object_r:container_file_t:s0" * 10}
    members = [member(f"f{number}", xattrs=label) for number in range(200)]
    convert(tar(*members), tmp_path / "layer.vhd", limits=ConversionLimits(max_held=4 * KIB))
