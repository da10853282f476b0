"""QEMU's VHDX driver as the oracle."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("qemu-io") is None,
    reason="qemu-img and qemu-io are not installed (package qemu-utils)",
)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def check(path: Path) -> None:
    """Fail where `qemu-img check` finds anything."""
    assert "No errors were found" in _run("qemu-img", "check", "-f", "vhdx", str(path))


def repair(path: Path) -> None:
    """Let QEMU replay the log on disk."""
    _run("qemu-img", "check", "-f", "vhdx", "-r", "all", str(path))


def info(path: Path, *, image_format: str = "vhdx") -> dict[str, object]:
    found = json.loads(_run("qemu-img", "info", "-f", image_format, "--output", "json", str(path)))
    assert isinstance(found, dict)
    return found


def to_raw(path: Path, raw: Path, *, image_format: str = "vhdx") -> Path:
    _run("qemu-img", "convert", "-f", image_format, "-O", "raw", str(path), str(raw))
    return raw


def create(path: Path, size: int, *, block_size: int) -> None:
    _run("qemu-img", "create", "-f", "vhdx", "-o", f"block_size={block_size}", str(path), str(size))


def io(path: Path, *commands: str, killed: bool = False, failing_write: int | None = None) -> None:
    """Run qemu-io commands.

    `killed` ends the process by SIGKILL, the image still open; every write to the sector at
    `failing_write` in the file gives EIO.
    """
    argv = ["qemu-io"]
    for command in (*commands, *(["sigraise 9"] if killed else [])):
        argv += ["-c", command]
    if failing_write is None:
        argv += ["-f", "vhdx", str(path)]
    else:
        fault = "file.inject-error.0"
        argv += ["--image-opts", f"driver=vhdx,file.driver=blkdebug,{fault}.event=none,"]
        argv[-1] += f"{fault}.iotype=write,{fault}.sector={failing_write // 512},"
        argv[-1] += f"file.image.driver=file,file.image.filename={path}"
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == (-9 if killed else 0), done.stderr


def killed_while_writing(path: Path, *, blocks: list[int], delay_s: float) -> None:
    """Kill a qemu-io in the middle of writing to these blocks again and again."""
    argv = ["qemu-io", "-f", "vhdx", str(path)]
    writes = "".join(f"write -P {0x41 + n} {block}M 4k\n" for n, block in enumerate(blocks))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(writes.encode() * 8)
            process.stdin.flush()
            time.sleep(delay_s)
            process.kill()
            process.stdin.close()
