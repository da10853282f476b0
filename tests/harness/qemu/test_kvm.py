"""The KVM probe answers in bounded time, and its verdict is kept."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from harness.errors import ComputeServiceError
from harness.qemu.kvm import (
    Accelerator,
    choose_accelerator,
    kvm_verdict,
    parse_guest_output,
    probe_kvm,
)
from harness.qemu.tsc import measure_tsc_khz

QEMU = shutil.which("qemu-system-x86_64")


def test_a_speed_is_read_from_the_guests_program() -> None:
    assert parse_guest_output('{"rate_mips": 812.5}\n') == (812.5, "")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ('{"error": "KVM_RUN: Invalid argument"}', "KVM_RUN: Invalid argument"),
        ("Traceback: boom", "boom"),
        ("", "no output"),
        ("{}", "program failed"),
        ('{"rate_mips": null}', "program failed"),
    ],
)
def test_anything_else_is_a_reason_against_kvm(output: str, reason: str) -> None:
    rate, why = parse_guest_output(output)
    assert rate is None
    assert reason in why


def test_the_probe_never_hangs_and_says_why() -> None:
    started = time.monotonic()
    verdict = probe_kvm(qemu=QEMU or "qemu-is-missing")
    assert time.monotonic() - started < 3.0  # 0.1 s alone; the deadlines add up to 1 s
    assert verdict.reason


def test_a_verdict_is_kept_for_the_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LCOWLAB_CACHE", str(tmp_path))
    first = kvm_verdict(qemu=QEMU or "none", version="1")
    if first.stage == "device":
        pytest.skip(f"KVM is absent, which is not kept: {first.reason}")
    assert kvm_verdict(qemu=QEMU or "none", version="1") == first
    for kept in (tmp_path / "kvm").iterdir():
        kept.write_text("garbage")
    assert kvm_verdict(qemu=QEMU or "none", version="1").usable == first.usable


def test_emulation_can_be_asked_for() -> None:
    assert choose_accelerator("tcg", qemu="none", version="0")[0] is Accelerator.TCG


def test_auto_takes_kvm_only_where_it_functions() -> None:
    usable = probe_kvm(qemu=QEMU or "none").usable
    chosen, reason = choose_accelerator("auto", qemu=QEMU or "none", version="test")
    assert chosen is (Accelerator.KVM if usable else Accelerator.TCG)
    assert reason
    if not usable:
        with pytest.raises(ComputeServiceError, match="tcg"):
            choose_accelerator("kvm", qemu=QEMU or "none", version="test")


def test_two_measurements_of_the_tsc_agree() -> None:
    first, second = measure_tsc_khz(), measure_tsc_khz()
    if first is None or second is None:
        pytest.skip("the TSC cannot be read here")
    assert first == pytest.approx(second, rel=0.01)
