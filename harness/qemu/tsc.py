"""The rate of this machine's time-stamp counter, measured.

Under emulation the guest's TSC is the host's. Giving the kernel its rate (`tsc_early_khz=`) spares
it a calibration against the PIT that fails on a loaded host; where a machine has no other clock the
boot then hangs ("tsc: Unable to calibrate against PIT").
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
import time
from collections.abc import Callable
from typing import Final

_RDTSC: Final = bytes.fromhex(
    "0f31"  # rdtsc: edx:eax
    "48c1e220"  # shl rdx, 32
    "4809d0"  # or rax, rdx
    "c3"  # ret
)
_ATTEMPTS: Final = 5  # the tightest of so many readings is kept: the others were interrupted


def measure_tsc_khz(window_s: float = 0.02) -> int | None:
    """Return the TSC rate in kHz, or None where it cannot be read.

    That is so on another architecture than x86-64 and where memory cannot be made executable.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    if sys.platform != "win32":
        try:
            code = mmap.mmap(
                -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
            )
        except OSError:  # a hardened host
            return None
        code.write(_RDTSC)
        view = ctypes.c_char.from_buffer(code)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(view))
        first_ns, first = _reading(read)
        time.sleep(window_s)
        last_ns, last = _reading(read)
        del view
        code.close()
        return round((last - first) * 1_000_000 / (last_ns - first_ns))
    else:  # noqa: RET505 - mypy understands platforms in this form only
        return None


def _reading(rdtsc: Callable[[], int]) -> tuple[int, int]:
    """Return (monotonic ns, TSC) taken as close together as can be."""
    best: tuple[int, int, int] | None = None
    for _ in range(_ATTEMPTS):
        before = time.monotonic_ns()
        ticks = rdtsc()
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2, ticks)
    assert best is not None
    return best[1], best[2]
