"""Disk files are told apart by content, and QEMU's refusals get Windows' codes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.errors import ComputeServiceError
from harness.hcs.document import Attachment, AttachmentType
from harness.qemu.disks import explain_refusal, inspect_disk


def attachment(path: Path) -> Attachment:
    return Attachment(AttachmentType.VIRTUAL_DISK, str(path), read_only=True)


def vhd(payload: bytes, kind: int) -> bytes:
    return payload + b"conectix".ljust(60, b"\0") + struct.pack(">I", kind) + bytes(448)


def test_a_vhdx_is_opened_as_one(tmp_path: Path) -> None:
    file = tmp_path / "any.name"
    file.write_bytes(b"vhdxfile" + bytes(1000))
    assert inspect_disk(attachment(file)).driver == "vhdx"


def test_a_fixed_vhd_is_raw_without_its_footer(tmp_path: Path) -> None:
    file = tmp_path / "layer.vhd"
    file.write_bytes(vhd(bytes(4096), 2))
    image = inspect_disk(attachment(file))
    assert (image.driver, image.size, image.read_only) == ("raw", 4096, True)


@pytest.mark.parametrize("content", [b"", b"plain", vhd(bytes(512), 3)])
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.vhd"
    file.write_bytes(content)
    with pytest.raises(ComputeServiceError, match=r"x\.vhd") as caught:
        inspect_disk(attachment(file))
    assert caught.value.hresult == 0x80070570


def test_a_missing_file_has_its_code(tmp_path: Path) -> None:
    with pytest.raises(ComputeServiceError, match="nowhere") as caught:
        inspect_disk(attachment(tmp_path / "nowhere"))
    assert caught.value.hresult == 0x80070002


def test_attachments_of_hyper_v_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ComputeServiceError, match="PassThru") as caught:
        inspect_disk(Attachment(AttachmentType.PASS_THRU, str(tmp_path)))
    assert caught.value.hresult == 0x80004001


def test_a_lock_is_a_sharing_violation_that_names_the_file() -> None:
    error = explain_refusal("/d.vhdx", 'Failed to get "write" lock')
    assert error.hresult == 0x80070020
    assert "/d.vhdx" in str(error)


def test_a_log_to_replay_says_what_to_do() -> None:
    error = explain_refusal("/d", "opened read-only, but contains a log that needs to be replayed")
    assert "qemu-img check -r all" in str(error)
