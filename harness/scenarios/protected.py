"""Layers that the guest verifies and a scratch that it encrypts, on the image that can."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.capabilities import Capability
from harness.containers import LAYER_FILE, Container, ContainerConfig, disks_of
from harness.errors import DiskError, GuestError
from harness.gcs.prot import DeviceVerityInfo, HResult
from harness.image.flavour import Flavour
from harness.machinekind import MachineKind
from harness.protection import DiskProtection, add_verity, verity_of
from harness.scenarios.pods import WAIT_FOREVER, Pod, close_clean
from harness.scenarios.scenario import Scenario, ScenarioContext
from harness.uvm import UtilityVm
from snapshotter import Mount
from snapshotter.vhd import FOOTER_SIZE

_PROTECTED = MachineKind(flavour=Flavour.PROTECTED)
_ENCRYPTED = DiskProtection(encrypted_scratch=True)
_SECRET = "a secret that no host may read"  # noqa: S105 - it is looked for on the disk
_CHUNK = 1 << 20


def _mapped(vm: UtilityVm) -> list[str]:
    """Return the names of the guest's mapped devices."""
    names = vm.processes.start(["/bin/ls", "/dev/mapper"]).wait().text.split()
    return sorted(name for name in names if name != "control")


def _contains(path: Path, text: bytes) -> bool:
    """Whether a file of the host has these bytes anywhere."""
    kept = b""
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            if text in kept + part:
                return True
            kept = part[-len(text) :]
    return False


def _encrypted_scratch(context: ScenarioContext) -> None:
    """Hcsshim's encrypted scratch: formatted once and shared by count; its key dies with it."""
    pod = Pod.prepare(context, "c1", "c2")
    pod.protection = _ENCRYPTED
    with context.step("boot the protected image"):
        vm = context.lab.boot_uvm(_PROTECTED)
        context.fact("ready_ms", round(vm.boot_s * 1000, 1))
    with context.step("the owner starts on an encrypted disk"):
        pod.start(vm, "pod")
        (mapping,) = (name for name in _mapped(vm) if not name.endswith("_dif"))
        context.check(mapping.startswith("dm-crypt-scsi-contr0-lun"), f"it is called {mapping}")
        pod.sh("pod", f"echo '{_SECRET}' > /root/secret && sync")
    with context.step("sharers do not format it again"):
        pod.start(vm, "c1", "c2")
        context.check_equal("the owner's file", pod.sh("pod", "cat /root/secret"), _SECRET)
        scratch = pod.containers["c1"].scratch
        assert scratch is not None, "an active snapshot has one"
        table = vm.processes.start(["/bin/cat", "/proc/mounts"]).wait().text.splitlines()
        rows = [row.split() for row in table if row.split()[1] == scratch.guest_path]
        context.check_equal(
            "mounts", [row[:3] for row in rows], [_row(mapping, scratch.guest_path)]
        )
    with context.step("the owner goes first, the sharers go on"):
        pod.release("pod")
        pod.sh("c1", f"echo '{_SECRET}' > /root/secret && sync")
        pod.sh("c2", "echo fine > /root/file && sync")
    with context.step("the last one closes it, and the host sees no word of it"):
        disk = pod.scratch
        pod.release()
        context.check_equal("mapped devices", _mapped(vm), [])
        context.check(not _contains(disk, _SECRET.encode()), "the secret is on the host's disk")
    with context.step("what comes next finds an empty disk"):
        pod.start(vm, "c1")
        context.check_equal("the old file", pod.try_sh("c1", "cat /root/secret").exit_code, 1)
    with context.step("take everything down"):
        pod.release()
        close_clean(context, vm)
        pod.close()


def _row(mapping: str, path: str) -> list[str]:
    return [f"/dev/mapper/{mapping}", path, "xfs"]


def _verified_copies(
    context: ScenarioContext, mounts: Sequence[Mount]
) -> tuple[Mount, Mapping[Path, DeviceVerityInfo]]:
    """Return a mount of copies of its layers that have trees, and what the guest is told."""
    disks = disks_of(mounts)
    folders, verity = [], {}
    for number, layer in enumerate(disks.layers):
        folder = context.lab.directory / f"verified-{number}"
        folder.mkdir()
        target = (folder / LAYER_FILE).resolve()
        verity[target] = add_verity(layer, target)
        context.check_equal("the tree read back", verity_of(target), verity[target])
        folders.append(str(folder))
    option = f"parentLayerPaths={json.dumps(folders)}"
    return dataclasses.replace(mounts[0], options=("rw", option)), verity


def _verity_layers(context: ScenarioContext) -> None:
    pod = Pod.prepare(context)
    mount, verity = _verified_copies(context, pod.mounts["pod"])
    config = ContainerConfig(args=WAIT_FOREVER, env=pod.image.config.env)
    layers = disks_of([mount]).layers
    with context.step("boot the protected image"):
        vm = context.lab.boot_uvm(_PROTECTED)

    def start(protection: DiskProtection) -> Container:
        return Container.start(vm, "pod", mounts=[mount], config=config, protection=protection)

    with context.step("a container runs on verified layers"):
        container = start(DiskProtection(verity=verity))
        names = _mapped(vm)
        digests = {name.rpartition("-")[2] for name in names}
        expected = {each.root_digest for each in verity.values()}
        context.check_equal("root digests of the mapped devices", digests, expected)
        done = container.run(["/bin/cat", "/etc/motd"])
        context.check_equal("exit code", done.exit_code, 0)
        context.fact("layers", len(layers))
    with context.step("the last one takes the devices down"):
        container.release()
        context.check_equal("mapped devices", _mapped(vm), [])
    with context.step("the digest of another layer is refused"):
        wrong = dataclasses.replace(verity[layers[0]], root_digest="ab" * 32)
        with context.expect("a wrong root digest", DiskError) as refused:
            start(DiskProtection(verity={**verity, layers[0]: wrong}))
        _check_refusal(context, refused.error, refused.message)
        context.check_equal("attachments", vm.scsi.snapshot().attachments, ())
        context.check_equal("mapped devices", _mapped(vm), [])
    with context.step("a layer whose first block was changed is refused"):
        _flip(layers[0], 1024 + 0x78)  # a byte of the volume's name, which no mount looks at
        with context.expect("a changed layer", DiskError) as refused:
            start(DiskProtection(verity=verity))
        _check_refusal(context, refused.error, refused.message)
        _flip(layers[0], 1024 + 0x78)
    with context.step("as it was, it is taken again"):
        start(DiskProtection(verity=verity)).release()
    with context.step("take everything down"):
        close_clean(context, vm)
        for layer in layers:
            layer.unlink()
            layer.parent.rmdir()
        pod.close()


def _check_refusal(context: ScenarioContext, error: BaseException | None, text: str) -> None:
    cause = error.__cause__ if error is not None else None
    context.check(isinstance(cause, GuestError), f"not refused by the guest: {text}")
    assert isinstance(cause, GuestError)
    context.check(cause.hresult == HResult.FILE_CORRUPT, f"not refused as corrupt: {text}")
    context.check("root digest" in text, f"the digest is not named: {text}")


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        assert offset < file.seek(0, 2) - FOOTER_SIZE
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


SCENARIOS = (
    Scenario(
        "encrypted-scratch",
        "A LUKS scratch is formatted once, shared by count, closed by the last, and then empty.",
        ("scratch", "sharing", "protection"),
        _encrypted_scratch,
        needs=(Capability.PROTECTED_DISKS,),
    ),
    Scenario(
        "verity-layers",
        "Layers are read through dm-verity; a wrong digest and a changed layer are refused.",
        ("layers", "protection", "failure"),
        _verity_layers,
        needs=(Capability.PROTECTED_DISKS,),
    ),
)
