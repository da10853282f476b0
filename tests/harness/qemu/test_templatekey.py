"""What makes a template another one, and what does not."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from harness.hcs.document import lcow_document
from harness.qemu.hostfacts import HostFacts
from harness.qemu.kvm import Accelerator
from harness.qemu.migration import MemoryKind
from harness.qemu.templatekey import template_facts, template_key

HOST = HostFacts("/usr/bin/env", "7.2.22", Accelerator.TCG, tsc_khz=2_500_000)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    kernel, initrd = tmp_path / "vmlinux", tmp_path / "initrd"
    kernel.write_bytes(b"kernel")
    initrd.write_bytes(b"initrd")
    return kernel, initrd


def key(files: tuple[Path, Path], *, host: HostFacts = HOST, memory_mb: int = 512) -> str:
    kernel, initrd = map(str, files)
    document = lcow_document(owner="t", kernel=kernel, initrd=initrd, memory_mb=memory_mb)
    return template_key(template_facts(document, host, kernel=kernel, memory=MemoryKind.FILE))


def test_a_file_of_other_content_makes_another_template(files: tuple[Path, Path]) -> None:
    before = key(files)
    assert key(files) == before
    for path in files:
        path.write_bytes(path.read_bytes() + b"!")
        assert key(files) != before
        before = key(files)


def test_a_file_is_itself_by_whatever_path(files: tuple[Path, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    os.link(files[1], link)
    assert key((files[0], link)) == key(files)


def test_another_machine_makes_another_template(files: tuple[Path, Path]) -> None:
    keys = {
        key(files),
        key(files, memory_mb=1024),
        key(files, host=dataclasses.replace(HOST, version="8.2.0")),
        key(files, host=dataclasses.replace(HOST, accelerator=Accelerator.KVM)),
    }
    assert len(keys) == 4


def test_the_measured_frequency_of_the_processor_does_not(files: tuple[Path, Path]) -> None:
    assert key(files, host=dataclasses.replace(HOST, tsc_khz=2_500_003)) == key(files)
