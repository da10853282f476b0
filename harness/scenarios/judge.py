"""The judge of a play: plain counters beside the tables of the SCSI manager and the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.errors import CheckFailedError
from harness.scenarios.stage import Held, PlayedVm, PlaySetting
from harness.scsi import AttachmentState, MountState


def judge(setting: PlaySetting, vm: PlayedVm, here: Sequence[Held]) -> None:
    """Raise CheckFailedError unless a machine's disks and counts are those of its containers."""
    if vm.violations():
        raise CheckFailedError(f"{vm.name}: {'; '.join(vm.violations())}")
    sure = [each for each in here if each.sure]
    snapshot = vm.scsi.snapshot()
    if waiting := [str(each.path) for each in snapshot.attachments if each.waiting]:
        raise CheckFailedError(f"{vm.name}: somebody still waits for {waiting}")
    attached = Counter(vm.disks())
    if doubled := [str(path) for path, count in attached.items() if count > 1]:
        raise CheckFailedError(f"{vm.name}: attached twice: {doubled}")
    infos = {each.path: each for each in snapshot.attachments}
    if unknown := set(attached) - set(infos):
        raise CheckFailedError(f"{vm.name}: attached, but nobody knows: {unknown}")
    users = _users(setting, sure), _users(setting, here)
    for path in {*setting.layers, *setting.scratches}:
        info = infos.get(path)
        count = 0 if info is None else info.refcount
        least, most = users[0][path], users[1][path]
        if not least <= count <= most:
            raise CheckFailedError(
                f"{vm.name}: {path} is counted {count} times, held {least} to {most} times"
            )
        if not least:
            continue
        assert info is not None, "it is counted"
        if info.state is not AttachmentState.ATTACHED or path not in attached:
            raise CheckFailedError(f"{vm.name}: {path} is held and {info.state}")
        mounts = [each for each in info.mounts if each.state is MountState.MOUNTED]
        if not any(each.refcount >= least for each in mounts):
            raise CheckFailedError(f"{vm.name}: {path} is held and mounted {info.mounts}")


def judge_mounts(vm: PlayedVm, here: Sequence[Held]) -> None:
    """Raise CheckFailedError unless the guest has the root of every container."""
    mounted = vm.mounts()
    for each in here:
        if each.sure and each.root.path not in mounted:
            raise CheckFailedError(f"{vm.name}: {each.root.path} is not mounted")


def _users(setting: PlaySetting, containers: Sequence[Held]) -> Counter[Path]:
    users: Counter[Path] = Counter()
    for each in containers:
        users.update({*setting.layers, setting.scratches[each.pod]})
    return users
