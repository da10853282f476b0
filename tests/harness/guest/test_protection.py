"""dm-verity and LUKS as the host asks for them: what is put up, in which order it is taken down."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import errno
from dataclasses import replace

import pytest

from harness.errors import GuestError
from harness.gcs.prot import DeviceVerityInfo, HResult, MappedVirtualDisk
from tests.harness.guest.conftest import Guest

VERITY = DeviceVerityInfo(
    ext4_size=1 << 20,
    version=1,
    algorithm="sha256",
    super_block=True,
    root_digest="c0" * 32,
    salt="00" * 32,
    block_size=4096,
)
LAYER = MappedVirtualDisk(mount_path="/run/mounts/scsi/m0", lun=1, read_only=True, verity=VERITY)
SCRATCH = MappedVirtualDisk(
    mount_path="/run/gcs/c/pod",
    lun=2,
    controller=3,
    encrypted=True,
    ensure_filesystem=True,
    filesystem="xfs",
)
VERITY_NAME = f"dm-verity-scsi-contr0-lun1-p0-{'c0' * 32}"
CRYPT_NAME = "dm-crypt-scsi-contr3-lun2-p0"


@pytest.fixture
def protected(guest: Guest) -> Guest:
    """A guest whose image has the device mapper and cryptsetup, and two disks."""
    for path in ("/dev/mapper/control", "/sbin/cryptsetup"):
        guest.os.at(path).parent.mkdir(parents=True, exist_ok=True)
        guest.os.at(path).touch()
    guest.os.at("/run/lcowlab").mkdir(parents=True)
    guest.os.attach(0, 1)
    guest.os.attach(3, 2, formatted=False)
    return guest


def refused(guest: Guest, disk: MappedVirtualDisk) -> GuestError:
    with pytest.raises(GuestError) as info:
        guest.client.mount_disk(disk)
    return info.value


def cryptsetup(guest: Guest) -> list[str]:
    return [command[1] for command in guest.os.commands if command[0] == "/sbin/cryptsetup"]


def test_a_layer_is_mounted_through_its_tree(protected: Guest) -> None:
    protected.client.mount_disk(LAYER)
    # One block of superblock after 256 blocks of file system: the tree begins at block 257.
    table = f"0 2048 verity 1 /dev/sda /dev/sda 4096 4096 256 257 sha256 {'c0' * 32} {'00' * 32}"
    assert protected.os.mapped == {VERITY_NAME: table}
    mount = protected.os.mounted()[LAYER.mount_path]
    assert (mount.source, mount.flags, mount.data) == (f"/dev/mapper/{VERITY_NAME}", 1, "noload")


@pytest.mark.parametrize("disk", [LAYER, SCRATCH], ids=["verified", "encrypted"])
@pytest.mark.parametrize("code", [errno.ENXIO, errno.ENOENT, errno.EBUSY])
def test_a_disk_that_does_not_open_at_once_is_tried_again(
    protected: Guest, disk: MappedVirtualDisk, code: int
) -> None:
    protected.os.fail_opens = [code, code]
    protected.client.mount_disk(disk)
    assert protected.os.fail_opens == []
    assert disk.mount_path in protected.os.mounted()


def test_a_layer_is_unmounted_before_its_device_goes(protected: Guest) -> None:
    protected.client.mount_disk(LAYER)
    protected.os.busy.add(LAYER.mount_path)
    with pytest.raises(GuestError, match="unmount"):
        protected.client.unmount_disk(LAYER)
    assert protected.os.unmaps == []
    protected.os.busy.clear()
    # hcsshim before #2109 left the tree's fields out: what was put up is taken down all the same.
    for _ in range(2):
        protected.client.unmount_disk(replace(LAYER, verity=None, read_only=False))
    assert protected.os.mapped == {}
    protected.client.mount_disk(LAYER)


def test_a_device_that_is_open_for_a_moment_is_removed_a_moment_later(protected: Guest) -> None:
    protected.client.mount_disk(LAYER)
    protected.os.fail_unmaps = [errno.EBUSY, errno.EBUSY]
    protected.client.unmount_disk(LAYER)
    assert protected.os.mapped == {}


def test_a_device_that_stays_keeps_the_disk_and_the_removal_can_be_repeated(
    protected: Guest,
) -> None:
    protected.client.mount_disk(LAYER)
    protected.os.fail_unmaps = [errno.EIO]
    with pytest.raises(GuestError, match=VERITY_NAME):
        protected.client.unmount_disk(LAYER)
    with pytest.raises(GuestError, match="still mounted"):
        protected.client.eject_disk(controller=0, lun=1)
    protected.client.unmount_disk(LAYER)
    protected.client.eject_disk(controller=0, lun=1)
    assert protected.os.mapped == {}


def test_blocks_that_the_digest_does_not_stand_for_are_refused_and_leave_nothing(
    protected: Guest,
) -> None:
    protected.os.tampered = True
    error = refused(protected, LAYER)
    assert error.hresult == HResult.FILE_CORRUPT
    assert f"root digest {'c0' * 32}" in str(error)
    assert (protected.os.mapped, protected.os.mounts) == ({}, [])
    protected.os.tampered = False
    protected.client.mount_disk(LAYER)


@pytest.mark.parametrize(
    "verity",
    [
        replace(VERITY, version=2),
        replace(VERITY, block_size=0),
        replace(VERITY, ext4_size=4097),
        replace(VERITY, root_digest=""),
        replace(VERITY, salt="00 1 restart_on_corruption"),
    ],
)
def test_a_tree_that_cannot_be_is_an_invalid_argument(
    protected: Guest, verity: DeviceVerityInfo
) -> None:
    error = refused(protected, replace(LAYER, verity=verity))
    assert error.hresult == HResult.INVALID_ARGUMENT
    assert protected.os.mapped == {}


def test_a_scratch_is_encrypted_with_a_key_that_is_gone_at_once(protected: Guest) -> None:
    protected.client.mount_disk(SCRATCH)
    commands = protected.os.commands
    assert cryptsetup(protected) == ["luksFormat", "luksOpen"]
    form = " ".join(commands[0])
    for words in (
        "--type luks2 --cipher aes-xts-plain64 --sector-size 4096",
        "--integrity hmac-sha256 --integrity-no-wipe",
        "--pbkdf pbkdf2 --pbkdf-force-iterations 1000",
    ):
        assert words in form
    assert commands[1][-2:] == ["/dev/sdb", CRYPT_NAME]
    assert commands[2][:1] == ["/sbin/mkfs.xfs"]
    mount = protected.os.mounted()[SCRATCH.mount_path]
    assert (mount.source, mount.fstype) == (f"/dev/mapper/{CRYPT_NAME}", "xfs")
    assert protected.os.list_dir("/run/lcowlab/keys") == []


def test_the_key_is_closed_after_the_unmount_though_the_host_forgets_to_say_so(
    protected: Guest,
) -> None:
    protected.client.mount_disk(SCRATCH)
    # hcsshim's manager leaves `Encrypted` out here, and its guest then leaks the device.
    for _ in range(2):
        protected.client.unmount_disk(replace(SCRATCH, encrypted=False))
    assert cryptsetup(protected) == ["luksFormat", "luksOpen", "luksClose"]
    assert not protected.os.exists(f"/dev/mapper/{CRYPT_NAME}")


def test_encryption_is_tried_twice_and_then_leaves_nothing(protected: Guest) -> None:
    protected.os.fail_commands = ["luksOpen"]
    protected.client.mount_disk(SCRATCH)
    assert cryptsetup(protected) == [
        *("luksFormat", "luksOpen", "luksClose"),
        *("luksFormat", "luksOpen"),
    ]
    protected.client.unmount_disk(SCRATCH)
    protected.os.fail_commands = ["luksFormat", "luksFormat"]
    assert "no luksFormat today" in str(refused(protected, SCRATCH))
    assert protected.os.mounts == []
    assert protected.os.list_dir("/run/lcowlab/keys") == []


def test_a_mount_that_fails_closes_what_was_opened_for_it(protected: Guest) -> None:
    protected.os.fail_mounts = [errno.EIO]
    refused(protected, SCRATCH)
    assert not protected.os.exists(f"/dev/mapper/{CRYPT_NAME}")
    protected.os.fail_commands = ["/sbin/mkfs.xfs"]
    assert "no /sbin/mkfs.xfs today" in str(refused(protected, SCRATCH))
    assert not protected.os.exists(f"/dev/mapper/{CRYPT_NAME}")
    protected.client.mount_disk(SCRATCH)


@pytest.mark.parametrize(
    "disk",
    [
        replace(SCRATCH, ensure_filesystem=False),
        replace(SCRATCH, filesystem=""),
        replace(SCRATCH, filesystem="ext4"),
        replace(SCRATCH, read_only=True),
        replace(SCRATCH, block_dev=True),
        replace(SCRATCH, read_only=True, verity=VERITY),
        replace(LAYER, read_only=False),
    ],
)
def test_what_would_lose_data_or_protect_nothing_is_refused_before_it_is_touched(
    protected: Guest, disk: MappedVirtualDisk
) -> None:
    assert refused(protected, disk).hresult == HResult.INVALID_ARGUMENT
    assert (protected.os.commands, protected.os.mapped) == ([], {})


@pytest.mark.parametrize("disk", [LAYER, SCRATCH])
def test_an_image_that_cannot_says_which_one_can(guest: Guest, disk: MappedVirtualDisk) -> None:
    guest.os.attach(disk.controller, disk.lun)
    error = refused(guest, disk)
    assert error.hresult == HResult.NOT_IMPLEMENTED
    assert "protected flavour" in str(error)
