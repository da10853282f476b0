"""Random acquires, releases, faults and deaths, with plain counters as the oracle."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from harness.errors import ComputeServiceError, ComputeTimeoutError, DiskError, GuestError
from harness.scsi import AttachmentState, MountConfig, MountState, ScsiManager, ScsiMount
from tests.fakes.scsi_host import FakeScsiHost

CONFIGS = [None, MountConfig(), MountConfig(partition=1), MountConfig(options=("rshared",))]
HOST = ("attach", "detach", "attached")
GUEST = ("mount", "unmount", "eject")


class ScsiModel(RuleBasedStateMachine):
    """Counters: who holds each disk, and each (disk, config)."""

    shares = Bundle("shares")

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.disks = [Path(self.directory.name, f"{n}.vhdx") for n in range(3)]
        for disk in self.disks:
            disk.touch()
        self.boot()

    def boot(self) -> None:
        self.vm = FakeScsiHost()
        self.manager = ScsiManager(self.vm, self.vm, controllers=1)
        self.held: dict[ScsiMount, tuple[Path, MountConfig | None]] = {}
        self.stuck: set[ScsiMount] = set()  # their release failed: half of it may be done

    def teardown(self) -> None:
        if not hasattr(self, "vm"):
            return
        self.vm.clear_faults()
        self.manager.release_all(self.held)
        self.manager.reclaim()
        assert self.manager.snapshot().attachments == ()
        assert self.vm.empty
        assert self.vm.violations == []
        self.directory.cleanup()

    @rule(
        target=shares,
        disk=st.integers(0, 2),
        config=st.sampled_from(CONFIGS),
        read_only=st.booleans(),
    )
    def acquire(self, disk: int, config: MountConfig | None, read_only: bool) -> object:
        path = self.disks[disk]
        users = [each for each, (held, _) in self.held.items() if held == path]
        faulty = self.faulty
        try:
            share = self.manager.acquire(
                path, holder=f"h{len(self.held)}", read_only=read_only, mount=config
            )
        except DiskError:
            conflict = any(each.read_only != read_only for each in users)
            assert conflict or faulty, "refused without a reason"
            return multiple()
        self.held[share] = (path, config)
        return share

    @rule(share=consumes(shares))
    def release(self, share: ScsiMount) -> None:
        self.release_batch([share])

    @rule(data=st.data())
    def release_several(self, data: st.DataObject) -> None:
        if self.held:
            chosen = data.draw(st.lists(st.sampled_from(list(self.held)), max_size=4))
            self.release_batch(chosen)

    def release_batch(self, shares: list[ScsiMount]) -> None:
        faulty = self.faulty
        try:
            self.manager.release_all(shares)
        except DiskError:
            assert faulty, "failed without a reason"
            self.stuck.update(each for each in shares if not each.released)
        else:
            assert all(each.released for each in shares)
        for share in shares:
            if share.released:
                self.held.pop(share, None)
                self.stuck.discard(share)

    @property
    def faulty(self) -> bool:
        return any(self.vm._faults.values())

    @rule(operation=st.sampled_from(HOST), silent=st.booleans(), happens=st.booleans())
    def fail_next_host_call(self, operation: str, silent: bool, happens: bool) -> None:
        error = ComputeTimeoutError("silence") if silent else ComputeServiceError("refused")
        self.vm.fail(operation, error, happens=happens and (silent or operation == "detach"))

    @rule(operation=st.sampled_from(GUEST), silent=st.booleans(), happens=st.booleans())
    def fail_next_guest_call(self, operation: str, silent: bool, happens: bool) -> None:
        if silent:
            self.vm.fail(operation, ComputeTimeoutError("silence"), happens=happens)
        else:
            error = GuestError("refused", hresult=0x80004005, request=operation)
            self.vm.fail(operation, error, happens=happens and operation != "mount")

    @rule()
    def reclaim(self) -> None:
        self.vm.clear_faults()
        self.manager.reclaim()

    @rule()
    def die(self) -> None:
        self.vm.die()
        self.manager.abandon("the model killed it")
        assert all(each.released for each in self.held)
        assert self.vm.violations == []
        self.boot()

    @invariant()
    def no_rule_is_broken(self) -> None:
        if hasattr(self, "vm"):
            assert self.vm.violations == []

    @invariant()
    def counts_agree_with_the_plain_counters(self) -> None:
        if not hasattr(self, "vm"):
            return
        snapshot = self.manager.snapshot()
        sure = {each: use for each, use in self.held.items() if each not in self.stuck}
        disks = Counter(path for path, _ in sure.values())
        most = Counter(path for path, _ in self.held.values())
        for path in self.disks:
            attachment = snapshot.of(path)
            count = 0 if attachment is None else attachment.refcount
            assert disks[path] <= count <= most[path]
            if disks[path]:
                assert attachment is not None
                assert attachment.state is AttachmentState.ATTACHED
                assert attachment.slot in self.vm.disks
        for share, (path, config) in sure.items():
            attachment = snapshot.of(path)
            assert attachment is not None
            if config is None:
                continue
            (mount,) = (m for m in attachment.mounts if m.guest_path == share.guest_path)
            assert mount.state is MountState.MOUNTED
            assert share.guest_path in self.vm.mounts
            users = Counter(share.guest_path for share in sure if sure[share][1] is not None)
            assert mount.refcount >= users[share.guest_path]
        assert all(each.waiting == 0 for each in snapshot.attachments)
        known = {each.slot for each in snapshot.attachments}
        assert set(self.vm.disks) <= known, "the VM has a disk that nobody knows about"


TestScsiModel = ScsiModel.TestCase
TestScsiModel.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
