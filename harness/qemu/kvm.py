"""Whether KVM functions here, found out without ever hanging.

/dev/kvm can exist and be useless: it may emulate every instruction (so slowly that a guest seems to
hang), lack an MSR that QEMU needs (QEMU aborts), or hang. So the verdict comes from running things:
a tiny 64-bit guest with a speed floor (`harness.qemu.kvmguest`), then QEMU itself with a firmware
of a few bytes. Both are child processes under a deadline; this process only waits.

The verdict is kept for the boot of the host and the version of QEMU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from harness.cachedir import KVM, cache_directory
from harness.errors import ComputeServiceError

AcceleratorChoice = Literal["auto", "kvm", "tcg"]

DEVICE: Final = Path("/dev/kvm")
MIN_RATE_MIPS: Final = 10.0
"""Hardware does more than 100, an emulating KVM about 1 (million instructions a second)."""

_GUEST_DEADLINE_S: Final = 0.4  # of which starting Python is 0.02 to 0.1
_QEMU_DEADLINE_S: Final = 0.6
_REAP_S: Final = 1.0
_TIMEOUT_VERDICT_S: Final = 3600.0  # a deadline may have been missed because of load: try again
_PROGRAM: Final = Path(__file__).with_name("kvmguest.py")
_DEBUG_EXIT_CODE: Final = (0x10 << 1) | 1  # isa-debug-exit: value 0x10 written to its port


class Accelerator(enum.StrEnum):
    """How QEMU runs guest code."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class KvmVerdict:
    """Whether KVM is usable, which stage found it out, and why; `duration_s` of the probe."""

    usable: bool
    stage: str
    reason: str
    duration_s: float
    timed_out: bool = False


def choose_accelerator(
    choice: AcceleratorChoice, *, qemu: str, version: str
) -> tuple[Accelerator, str]:
    """Return the accelerator and the reason for it; `auto` takes KVM where it functions.

    Raises ComputeServiceError when `kvm` is asked for and does not function.
    """
    if choice == "tcg":
        return Accelerator.TCG, "asked for"
    verdict = kvm_verdict(qemu=qemu, version=version)
    if verdict.usable:
        return Accelerator.KVM, verdict.reason
    if choice == "kvm":
        raise ComputeServiceError(
            f"KVM does not function here: {verdict.reason}; use the accelerator tcg or auto"
        )
    return Accelerator.TCG, f"KVM does not function: {verdict.reason}"


def kvm_verdict(*, qemu: str, version: str) -> KvmVerdict:
    """Return the verdict kept for this boot and QEMU, or probe and keep it."""
    kept = _verdict_file(qemu, version)
    if kept is not None and (verdict := _read_verdict(kept)) is not None:
        return verdict
    verdict = probe_kvm(qemu=qemu)
    # Absence and permissions are seen in no time and can change while the host runs.
    if kept is not None and verdict.stage in ("guest", "qemu"):
        with contextlib.suppress(OSError):  # a cache: without it the next one probes again
            _write_verdict(kept, verdict)
    return verdict


def probe_kvm(*, qemu: str) -> KvmVerdict:
    """Return whether KVM functions, within about 1 s (usually 0.2 s); nothing is left running."""
    started = time.monotonic()

    def verdict(stage: str, reason: str, *, usable: bool = False, late: bool = False) -> KvmVerdict:
        return KvmVerdict(usable, stage, reason, round(time.monotonic() - started, 4), late)

    if not DEVICE.exists():
        return verdict("device", f"{DEVICE} does not exist")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return verdict("device", f"no permission to open {DEVICE}: join the group kvm")
    guest = _run_child([sys.executable, "-I", "-S", str(_PROGRAM)], _GUEST_DEADLINE_S)
    if guest.exit_code is None:
        return verdict("guest", f"a tiny guest {guest.ending}", late=True)
    rate, reason = parse_guest_output(guest.output)
    if rate is None:
        return verdict("guest", reason)
    if rate < MIN_RATE_MIPS:
        return verdict(
            "guest",
            f"guest code runs at {rate:.1f} million instructions/s, {MIN_RATE_MIPS:g} are needed "
            "(this KVM emulates each instruction)",
        )
    smoke = _qemu_smoke(qemu)
    if smoke.exit_code is None:
        return verdict("qemu", f"QEMU on KVM {smoke.ending}", late=True)
    if smoke.exit_code != _DEBUG_EXIT_CODE:
        last = smoke.output.strip().splitlines()[-1:] or ["no output"]
        return verdict("qemu", f"QEMU on KVM ended with code {smoke.exit_code}: {last[0]}")
    return verdict("qemu", f"guest code runs at {rate:.0f} million instructions/s", usable=True)


def parse_guest_output(output: str) -> tuple[float | None, str]:
    """Return (million instructions a second, "") or (None, why) from what `kvmguest` printed."""
    try:
        answer = json.loads(output.strip().splitlines()[-1])
        if "rate_mips" in answer:
            return float(answer["rate_mips"]), ""
        return None, f"a tiny guest failed: {answer['error']}"
    except (IndexError, KeyError, TypeError, ValueError):
        return None, f"the tiny guest's program failed: {output.strip()[-200:] or 'no output'}"


@dataclass(frozen=True, slots=True)
class _ChildResult:
    exit_code: int | None  # None: the deadline passed
    output: str
    ending: str = ""


def _run_child(command: Sequence[str], deadline_s: float) -> _ChildResult:
    setpriv = shutil.which("setpriv")
    if setpriv is not None:  # a guest that hangs must not outlive a harness that is killed
        command = [setpriv, "--pdeathsig", "KILL", "--", *command]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        raw, _ = process.communicate(timeout=deadline_s)
        return _ChildResult(process.returncode, raw.decode("utf-8", "replace"))
    except subprocess.TimeoutExpired:
        process.kill()
    try:
        process.communicate(timeout=_REAP_S)
    except subprocess.TimeoutExpired:
        # In the kernel, deaf to SIGKILL: waiting for it would be the hang this probe is to avoid.
        return _ChildResult(None, "", f"hangs and cannot be killed (process {process.pid})")
    return _ChildResult(None, "", f"did not end within {deadline_s:g} s")


def _qemu_smoke(qemu: str) -> _ChildResult:
    """Run QEMU on KVM with a 64 KiB firmware that leaves through isa-debug-exit at once."""
    rom = bytearray(b"\xf4" * 0x10000)  # hlt
    entry, reset = 0xFE00, 0xFFF0
    rom[entry : entry + 5] = bytes.fromhex("b010e6f4f4")  # mov al, 0x10; out 0xf4, al; hlt
    rom[reset : reset + 3] = b"\xe9" + (entry - (reset + 3)).to_bytes(2, "little", signed=True)
    with tempfile.NamedTemporaryFile(suffix=".rom") as firmware:
        firmware.write(rom)
        firmware.flush()
        command = [qemu, "-M", "q35", "-nodefaults", "-no-user-config", "-display", "none"]
        command += ["-accel", "kvm", "-cpu", "host", "-m", "16", "-bios", firmware.name]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        try:
            return _run_child(command, _QEMU_DEADLINE_S)
        except OSError as error:
            return _ChildResult(127, str(error))


def _verdict_file(qemu: str, version: str) -> Path | None:
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None
    key = hashlib.sha256(f"{boot_id}\0{qemu}\0{version}".encode()).hexdigest()
    return cache_directory(KVM) / f"{key[:16]}.json"


def _read_verdict(path: Path) -> KvmVerdict | None:
    try:
        verdict = KvmVerdict(**json.loads(path.read_text("utf-8")))
        age_s = time.time() - path.stat().st_mtime
    except (OSError, TypeError, ValueError):
        return None
    return None if verdict.timed_out and age_s > _TIMEOUT_VERDICT_S else verdict


def _write_verdict(path: Path, verdict: KvmVerdict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".kvm-")
    try:
        with open(descriptor, "w", encoding="utf-8") as out:
            json.dump(dataclasses.asdict(verdict), out)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
