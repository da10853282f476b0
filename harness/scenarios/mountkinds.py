"""Mounts of every kind: partitions, other wishes, overlays on a disk, a disk in two containers."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.capabilities import Capability
from harness.containers import Container, ContainerConfig, disks_of
from harness.errors import DiskError, GuestError, UsageError
from harness.gcs.prot import CombinedLayers, HResult, Layer, MappedVirtualDisk
from harness.guest.oci import complete_process, default_mounts
from harness.scenarios.disks import attach_disks
from harness.scenarios.pods import WAIT_FOREVER, Pod, attachments_of, close_clean
from harness.scenarios.scenario import Scenario, ScenarioContext
from harness.scsi import MountConfig
from harness.uvm import UtilityVm
from snapshotter.convert import convert_disk
from snapshotter.units import MIB
from snapshotter.vhd import FixedVhd

_EXT4 = MountConfig(ensure_filesystem=True, filesystem="ext4")
_SECTOR = 512
# A partition in the MBR: type, first sector, sectors; no CHS addresses, which nobody reads.
_ENTRY = struct.Struct("<4xB3xII")
_LINUX = 0x83
_TABLE_AT, _TABLE_SIZE = 446, 64


def _other_wishes(context: ScenarioContext) -> None:
    """As hcsshim's Reserve tests: who agrees shares, who does not is refused, its holder named."""
    with attach_disks(context, 1) as (vm, (disk,)):
        first = vm.scsi.acquire(disk, holder="first", mount=MountConfig(options=("a", "B")))
        with context.step("the same options in another order and spelling are the same mount"):
            second = vm.scsi.acquire(disk, holder="second", mount=MountConfig(options=("b", " A")))
            context.check_equal("path", second.guest_path, first.guest_path)
        with context.step("another file system on the same partition is refused"):
            with context.expect("a mount that might format it", DiskError) as refused:
                vm.scsi.acquire(disk, holder="third", mount=_EXT4)
            context.check("first" in refused.message, f"no holder is named: {refused.message}")
        context.check_equal("holders", vm.scsi.holders(disk), ("first", "second"))
        vm.scsi.release_all([first, second])


def _partitions(context: ScenarioContext) -> None:
    """As hcsshim's lcow-partitioned-layer: two partitions are one attachment and two mounts."""
    layer = disks_of(Pod(context).read_only_mounts()).layers[0]
    disk = context.lab.directory / "partitioned.vhdx"
    raw = disk.with_suffix(".raw")
    _write_partitioned(raw, layer)
    convert_disk(raw, disk)
    raw.unlink()
    vm = context.lab.boot_uvm()
    with context.step("mount both partitions"):
        shares = [
            vm.scsi.acquire(
                disk,
                holder=f"partition {number}",
                read_only=True,
                mount=MountConfig(partition=number, read_only=True),
            )
            for number in (1, 2, 2)
        ]
        context.check_equal("slots", len({share.slot for share in shares}), 1)
        context.check_equal("paths", len({share.guest_path for share in shares}), 2)
        names = [_names(vm, share.guest_path) for share in shares]
        context.check(bool(names[0]), "the first partition is empty")
        context.check_equal("the files of the other partition", names[1], names[0])
    with context.step("one goes, the other stays"):
        shares[0].release()
        context.check_equal("attachments", attachments_of(vm, disk), 1)
        context.check_equal("files", _names(vm, shares[1].guest_path), names[1])
    with context.step("a third that is not there is refused in bounded time"):
        config = MountConfig(partition=3, read_only=True)
        with context.expect("a mount of partition 3", DiskError) as refused:
            vm.scsi.acquire(disk, holder="third", read_only=True, mount=config)
        context.check("partition 3" in refused.message, f"said: {refused.message}")
        holders = vm.scsi.holders(disk)
        context.check_equal("holders", holders, ("partition 2", "partition 2"))
    with context.step("take everything down"):
        vm.scsi.release_all(shares)
        close_clean(context, vm)
        disk.unlink()


def _write_partitioned(target: Path, layer: Path) -> None:
    """Write a raw disk whose two partitions both hold a layer's file system (MBR)."""
    with FixedVhd.open(layer) as source, target.open("wb") as out:
        size = -(-source.size // MIB) * MIB
        entries = []
        for number in range(2):
            start = MIB + number * size
            entries.append(_ENTRY.pack(_LINUX, start // _SECTOR, size // _SECTOR))
            for offset in range(0, source.size, MIB):
                out.seek(start + offset)
                out.write(source.read_at(offset, MIB))
        out.truncate(MIB + 2 * size)
        out.seek(_TABLE_AT)
        out.write(b"".join(entries).ljust(_TABLE_SIZE, b"\0") + b"\x55\xaa")


def _names(vm: UtilityVm, path: str) -> list[str]:
    return sorted(vm.processes.start(["/bin/ls", path]).wait().text.split())


def _overlay_holds(context: ScenarioContext) -> None:
    """As hcsshim's hostMounts, and #566: a disk stays below every overlay that stands on it."""
    layer = disks_of(Pod(context).read_only_mounts()).layers[0]
    vm = context.lab.boot_uvm()
    held = vm.scsi.acquire(layer, holder="layer", read_only=True, mount=MountConfig(read_only=True))
    roots = [
        CombinedLayers(f"c{n}", f"/run/gcs/c/c{n}/rootfs", (Layer(path=held.guest_path),))
        for n in range(2)
    ]
    for root in roots:
        vm.guest.add_combined_layers(root)
    with context.step("the guest unmounts it under no spelling of its path"):
        for path in (held.guest_path, held.guest_path.replace("/run/", "/run/../run//")):
            with context.expect(f"an unmount of {path}", GuestError) as refused:
                vm.guest.unmount_disk(
                    MappedVirtualDisk(
                        mount_path=path,
                        lun=held.slot.lun,
                        controller=held.slot.controller,
                        read_only=True,
                    )
                )
            error = refused.error
            assert isinstance(error, GuestError)
            context.check_equal("HRESULT", error.hresult, HResult.INVALID_STATE)
            context.check("rootfs" in refused.message, f"no user is named: {refused.message}")
        with context.expect("an eject", GuestError):
            vm.guest.eject_disk(controller=held.slot.controller, lun=held.slot.lun)
    with context.step("one overlay goes, the other still holds it"):
        vm.guest.remove_combined_layers(roots[0])
        with context.expect("a release below an overlay", DiskError):
            held.release()
        context.check_equal("holders", vm.scsi.holders(layer), ("layer",))
    with context.step("without overlays the same release succeeds"):
        vm.guest.remove_combined_layers(roots[1])
        held.release()
        close_clean(context, vm)


def _missing_files(context: ScenarioContext) -> None:
    """As hcsshim's AllocateLayers: a layer or scratch does not resolve; nothing is attached."""
    pod = Pod.prepare(context, "c1")
    vm = context.lab.boot_uvm()
    layer, scratch = disks_of(pod.mounts["c1"]).layers[1], pod.scratch
    for what, file in (("layer", layer), ("scratch", scratch)):
        with context.step(f"a {what} that is not there"):
            aside = file.with_name("aside")
            file.rename(aside)
            try:
                with context.expect(f"a start without its {what}", UsageError) as refused:
                    pod.start(vm, "c1")
            finally:
                aside.rename(file)
            context.check("is not there" in refused.message, f"said: {refused.message}")
            context.check_equal("attachments", vm.scsi.snapshot().attachments, ())
    with context.step("and works when all is there"):
        pod.start(vm)
    pod.close(vm)


def _start_with(pod: Pod, vm: UtilityVm, name: str, mount: Mapping[str, Any]) -> None:
    """Start a container with one more mount, whose propagation its root must not cut off."""
    changes = {
        "mounts": [*default_mounts(), mount],
        "linux": {"rootfsPropagation": mount["options"][-1]},
    }
    config = ContainerConfig(WAIT_FOREVER, env=pod.image.config.env, spec_changes=changes)
    pod.containers[name] = Container.start(
        vm, name, mounts=pod.mounts[name], config=config, pod_id=pod.name
    )


def _as_administrator(context: ScenarioContext, vm: UtilityVm, name: str, script: str) -> None:
    """Run a script in a container with the right to mount, which its own processes lack."""
    rights = ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]
    process = {
        "args": ["/bin/sh", "-c", script],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), rights),
    }
    started = vm.processes.start(container_id=name, oci_process=complete_process(process))
    done = started.wait()
    said = done.stderr.decode(errors="replace").strip()
    context.check_equal(f"exit code of {script!r} ({said})", done.exit_code, 0)


def _bind(source: str, *options: str) -> dict[str, Any]:
    return {
        "destination": "/data",
        "type": "bind",
        "source": source,
        "options": ["rbind", *options],
    }


def _same_disk_in_two(context: ScenarioContext) -> None:
    """cri-containerd's MultipleContainersSameVhd (hcsshim #745): two see a disk, a third not."""
    _share_disk(context, MountConfig(ensure_filesystem=True, filesystem="ext4"), "rprivate")


def _rshared(context: ScenarioContext) -> None:
    """MultipleContainersSameVhd_RShared: what one mounts below it the other sees."""
    config = MountConfig(ensure_filesystem=True, filesystem="ext4", options=("rshared",))
    _share_disk(context, config, "rshared")


def _share_disk(context: ScenarioContext, config: MountConfig, propagation: str) -> None:
    pod = Pod.prepare(context, "c1", "c2")
    with attach_disks(context, 1) as (vm, (disk,)):
        shares = [vm.scsi.acquire(disk, holder=name, mount=config) for name in ("pod", "c1")]
        context.check_equal("paths", len({share.guest_path for share in shares}), 1)
        data = _bind(shares[0].guest_path, propagation)
        with context.step("two containers have the disk, a third has not"):
            _start_with(pod, vm, "pod", data)
            _start_with(pod, vm, "c1", data)
            pod.start(vm, "c2")
            pod.sh("pod", "echo shared > /data/file && sync")
            context.check_equal("the file in c1", pod.sh("c1", "cat /data/file"), "shared")
            context.check(pod.try_sh("c2", "ls /data").exit_code != 0, "c2 has /data, too")
        with context.step(f"a mount below it is {propagation}"):
            mount = "mkdir /data/sub && mount -t tmpfs none /data/sub && echo x > /data/sub/y"
            _as_administrator(context, vm, "pod", mount)
            seen = pod.try_sh("c1", "cat /data/sub/y").exit_code == 0
            context.check_equal("seen in c1", seen, propagation == "rshared")
            _as_administrator(context, vm, "pod", "umount /data/sub && rmdir /data/sub")
        pod.release()
        vm.scsi.release_all(shares)
    pod.close()


SCENARIOS = (
    Scenario(
        "other-wishes",
        "Who wants the same mount shares it; another file system is refused, its holder named.",
        ("scsi", "failure"),
        _other_wishes,
    ),
    Scenario(
        "partitions",
        "Two partitions of one disk: one attachment, two mounts, each with its own count.",
        ("scsi", "layers"),
        _partitions,
        needs=(Capability.KERNEL,),
    ),
    Scenario(
        "overlay-holds-disk",
        "A disk below overlays is neither unmounted nor ejected, however its path is spelled.",
        ("scsi", "layers", "failure"),
        _overlay_holds,
    ),
    Scenario(
        "missing-files",
        "A layer or scratch that is not there is told before anything is attached.",
        ("containers", "failure"),
        _missing_files,
    ),
    Scenario(
        "same-disk-in-two",
        "Two containers of a pod see one data disk, a third does not.",
        ("scsi", "sharing", "containers"),
        _same_disk_in_two,
        needs=(Capability.KERNEL,),
    ),
    Scenario(
        "rshared-disk",
        "On a disk that is mounted rshared one container sees what another mounts.",
        ("scsi", "sharing", "containers"),
        _rshared,
        needs=(Capability.KERNEL,),
    ),
)
