"""The two life cycles as they are drawn: what has no arrow is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.scsi import AttachmentState, MountConfig, MountState, Slot, identify
from harness.scsi.attachments import Attachment
from harness.scsi.mounts import Mount

A, M = AttachmentState, MountState
ATTACHMENT = {
    (A.RESERVED, A.ATTACHING),
    (A.RESERVED, A.DETACHED),
    (A.ATTACHING, A.ATTACHED),
    (A.ATTACHING, A.RESERVED),
    (A.ATTACHED, A.EJECTING),
    (A.EJECTING, A.EJECTED),
    (A.EJECTED, A.DETACHING),
    (A.DETACHING, A.DETACHED),
    (A.DETACHING, A.EJECTED),
}
MOUNT = {
    (M.RESERVED, M.MOUNTING),
    (M.RESERVED, M.UNMOUNTED),
    (M.MOUNTING, M.MOUNTED),
    (M.MOUNTING, M.RESERVED),
    (M.MOUNTING, M.UNMOUNTING),
    (M.MOUNTED, M.UNMOUNTING),
    (M.UNMOUNTING, M.UNMOUNTED),
}


@pytest.mark.parametrize("state", A)
@pytest.mark.parametrize("wanted", A)
def test_an_attachment_goes_along_the_arrows_alone(
    disk: Path, state: AttachmentState, wanted: AttachmentState
) -> None:
    attachment = Attachment(identify(disk), Slot(0, 0), read_only=False, state=state)
    if (state, wanted) in ATTACHMENT:
        attachment.advance(wanted)
        assert attachment.state is wanted
    else:
        with pytest.raises(AssertionError, match=f"{state} -> {wanted}"):
            attachment.advance(wanted)
        assert attachment.state is state


@pytest.mark.parametrize("state", M)
@pytest.mark.parametrize("wanted", M)
def test_a_mount_goes_along_the_arrows_alone(state: MountState, wanted: MountState) -> None:
    mount = Mount(Slot(0, 0), MountConfig(), "/m", None, state)
    if (state, wanted) in MOUNT:
        mount.advance(wanted)
        assert mount.state is wanted
    else:
        with pytest.raises(AssertionError, match=f"{state} -> {wanted}"):
            mount.advance(wanted)
        assert mount.state is state
