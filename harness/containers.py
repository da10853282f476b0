"""Containers in a utility VM, from the snapshotter's mounts to running processes.

::

    start:   layers attached and mounted read-only ─> scratch attached and mounted (shared: once)
             ─> CombinedLayers (upper and work in scratch/<container>) ─> Create ─> init starts
    release: init ends ─> CombinedLayers removed ─> DeleteContainerState (removes
             scratch/<container> while the scratch is still mounted) ─> scratch ─> layers

A failure on the way up undoes what was done. `release` attempts every step, keeps what failed,
raises the first error, and may be called again. Where the way back of a start fails too, the
machine keeps it: the next start, or `UtilityVm.reclaim`, finishes it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from harness.errors import GuestError, HarnessError, UsageError
from harness.gcs.guest import is_not_found
from harness.gcs.prot import CombinedLayers, Layer
from harness.guest.oci import complete_process, complete_spec
from harness.processes import Completed, GuestProcess
from harness.protection import ENCRYPTED_FILE_SYSTEM, UNPROTECTED, DiskProtection
from harness.scsi import MountConfig, ScsiManager, ScsiMount
from harness.uvm import UtilityVm
from snapshotter import Mount

LAYER_FILE = "layer.vhd"
SCRATCH_FILE = "sandbox.vhdx"
_GUEST_ROOT = "/run/gcs/c"
_KILL = 9
_DISKS_AT_ONCE = 8
_MAX_HOSTNAME = 63


@dataclass(frozen=True, slots=True)
class LcowDisks:
    """The files an `lcow-layer` mount stands for; `layers` topmost first, `scratch` resolved."""

    layers: tuple[Path, ...]
    scratch: Path | None


def disks_of(mounts: Sequence[Mount]) -> LcowDisks:
    """Return the disks of the one `lcow-layer` mount of a snapshot (hcsshim `ParseLCOWLayers`).

    The scratch's symbolic link is resolved here, so that sharers meet in one path. Raises
    UsageError for mounts of another shape or a file that is not there.
    """
    if len(mounts) != 1 or mounts[0].type != "lcow-layer":
        kinds = ", ".join(mount.type for mount in mounts) or "none"
        raise UsageError(f"a container needs exactly one lcow-layer mount, not: {kinds}")
    mount = mounts[0]
    prefix = "parentLayerPaths="
    parents: list[str] = []
    for option in mount.options:
        if option.startswith(prefix):
            parents = json.loads(option.removeprefix(prefix)) or []
    layers = tuple(_existing(Path(parent) / LAYER_FILE) for parent in parents)
    if "ro" in mount.options:
        return LcowDisks((_existing(Path(mount.source) / LAYER_FILE), *layers), None)
    return LcowDisks(layers, _existing(Path(mount.source) / SCRATCH_FILE))


def _existing(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path, strict=True))
    except OSError as error:
        raise UsageError(f"{path} is not there: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """How a container's init runs; `env` as KEY=VALUE."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    hostname: str = ""
    with_stdin: bool = False
    spec_changes: Mapping[str, Any] = field(default_factory=dict)


class LayerGuest(Protocol):
    """What a root file system needs of a guest, beside its disks."""

    def add_combined_layers(self, layers: CombinedLayers) -> None:
        """Mount a container's root; on failure nothing is left in the guest."""
        ...

    def remove_combined_layers(self, layers: CombinedLayers) -> None:
        """Unmount a container's root; can be repeated."""
        ...


class ContainerRootfs:
    """A container's disks and its combined layers in a guest; every release can be repeated."""

    def __init__(self, scsi: ScsiManager, guest: LayerGuest, container_id: str) -> None:
        self._scsi = scsi
        self._guest = guest
        self._id = container_id
        self._layers: list[ScsiMount] = []
        self.scratch: ScsiMount | None = None
        self.combined: CombinedLayers | None = None
        self.leftover = ""
        """A directory in the scratch that nobody has removed yet."""

    def build(
        self,
        disks: LcowDisks,
        pod_id: str,
        *,
        timeout_s: float,
        protection: DiskProtection = UNPROTECTED,
    ) -> None:
        """Attach, mount and combine. After a failure `unmount` and `release_disks` undo it."""
        self._acquire_disks(disks, pod_id, timeout_s=timeout_s, protection=protection)
        self.leftover = self.scratch_directory
        combined = CombinedLayers(
            container_id=self._id,
            container_root_path=f"{_GUEST_ROOT}/{self._id}/rootfs",
            layers=tuple(Layer(path=layer.guest_path) for layer in self._layers),
            scratch_path=self.scratch_directory,
        )
        # Noted before it is known: after silence the overlay may be there, and must go first.
        self.combined = combined
        try:
            self._guest.add_combined_layers(combined)
        except GuestError:
            self.combined = None  # refused, so nothing is left of it
            raise

    def _acquire_disks(
        self, disks: LcowDisks, pod_id: str, *, timeout_s: float, protection: DiskProtection
    ) -> None:
        """Attach and mount all disks at the same time; what succeeded is held, even on failure."""
        holder = f"container {self._id}"
        acquire = partial(self._scsi.acquire, holder=holder, timeout_s=timeout_s)
        encrypted = protection.encrypted_scratch
        with ThreadPoolExecutor(_DISKS_AT_ONCE, thread_name_prefix=holder) as pool:
            layers = [
                pool.submit(
                    acquire,
                    path,
                    read_only=True,
                    mount=MountConfig(
                        read_only=True, options=("ro",), verity=protection.verity.get(path)
                    ),
                )
                for path in disks.layers
            ]
            scratch = None
            if disks.scratch is not None:
                scratch = pool.submit(
                    acquire,
                    disks.scratch,
                    read_only=False,
                    mount=MountConfig(
                        ensure_filesystem=True,
                        filesystem=ENCRYPTED_FILE_SYSTEM if encrypted else "ext4",
                        encrypted=encrypted,
                    ),
                    guest_path=f"{_GUEST_ROOT}/{pod_id}",
                )
        self._layers += [layer.result() for layer in layers if layer.exception() is None]
        if scratch is not None and scratch.exception() is None:
            self.scratch = scratch.result()
        for attempt in (*layers, *((scratch,) if scratch else ())):
            attempt.result()

    @property
    def scratch_directory(self) -> str:
        """Where the upper and work directories are in the guest; "" without a scratch."""
        return f"{self.scratch.guest_path}/scratch/{self._id}" if self.scratch else ""

    @property
    def path(self) -> str:
        """The merged root file system's path in the guest; "" once unmounted."""
        return self.combined.container_root_path if self.combined else ""

    def unmount(self) -> None:
        """Remove the combined layers, if they are there."""
        if self.combined is not None:
            self._guest.remove_combined_layers(self.combined)
            self.combined = None

    def release_disks(self) -> None:
        """Give the disks back, waiting once for all."""
        held = [*([self.scratch] if self.scratch else []), *self._layers]
        self._scsi.release_all(held)
        self.scratch = None
        self._layers.clear()

    def forget(self) -> None:
        """Note that the machine is gone, and everything with it."""
        self.combined = None
        self.leftover = ""
        self.scratch = None
        self._layers.clear()


class Container:
    """A container in a utility VM; a context manager that releases it."""

    def __init__(self, vm: UtilityVm, container_id: str) -> None:
        self.id = container_id
        self.init: GuestProcess | None = None
        self._vm = vm
        self._root = ContainerRootfs(vm.scsi, vm.guest, container_id)
        self._created = False

    @classmethod
    def start(
        cls,
        vm: UtilityVm,
        container_id: str,
        *,
        mounts: Sequence[Mount],
        config: ContainerConfig,
        pod_id: str | None = None,
        timeout_s: float = 60.0,
        protection: DiskProtection = UNPROTECTED,
    ) -> Self:
        """Attach, mount, combine and start; on failure everything is undone, now or later.

        `pod_id` says whose scratch directory this container's lies in (its own by default); the
        disk itself is shared by being the same file, with the same `protection`. Raises UsageError,
        DiskError, GuestError, BridgeClosedError, or what the compute service raises.
        """
        container = cls(vm, container_id)
        vm.unfinished.finish()  # what still fails stays kept, and says so when it is in the way
        try:
            container._root.build(
                disks_of(mounts),
                pod_id or container_id,
                timeout_s=timeout_s,
                protection=protection,
            )
            container._create(config, timeout_s=timeout_s)
        except BaseException as error:
            try:
                container.release()
            except HarnessError as failure:
                error.add_note(f"and on the way back: {failure}")
                vm.unfinished.keep(container.release)
            raise
        return container

    @property
    def scratch_directory(self) -> str:
        """Where this container's upper and work directories are in the guest; "" without one."""
        return self._root.scratch_directory

    @property
    def scratch(self) -> ScsiMount | None:
        """The hold on the scratch disk; None once released, or for a read-only container."""
        return self._root.scratch

    @property
    def rootfs(self) -> str:
        """The merged root file system's path in the guest; "" once released."""
        return self._root.path

    def _create(self, config: ContainerConfig, *, timeout_s: float) -> None:
        # Microsoft's guest takes a whole specification only, so nothing is left for ours to add.
        spec = complete_spec(
            {
                "process": _process(config.args, env=config.env, cwd=config.cwd),
                "hostname": config.hostname or self.id[:_MAX_HOSTNAME],
                **config.spec_changes,
            },
            root=self.rootfs,
        )
        self._vm.guest.create_container(
            self.id,
            spec,
            bundle=f"{_GUEST_ROOT}/{self.id}",
            scratch_dir=self.scratch_directory,
        )
        self._created = True
        self._vm.guest.start_container(self.id)
        self.init = self._vm.processes.start(
            container_id=self.id,
            with_stdin=config.with_stdin,
            timeout_s=timeout_s,
        )

    def run(
        self,
        args: Sequence[str],
        *,
        env: Sequence[str] = (),
        cwd: str = "/",
        stdin: bytes | None = None,
        timeout_s: float = 60.0,
    ) -> Completed:
        """Run one more process in the container and return its code and output."""
        process = self._vm.processes.start(
            container_id=self.id,
            oci_process=complete_process(_process(args, env=env, cwd=cwd)),
            with_stdin=stdin is not None,
            timeout_s=timeout_s,
        )
        if stdin is not None:
            process.write_stdin(stdin)
            process.close_stdin()
        return process.wait(timeout_s=timeout_s)

    def stop(self, *, timeout_s: float = 30.0) -> Completed | None:
        """Kill the init and return how it ended; None where it was never started."""
        if self.init is None:
            return None
        if self.init.completed is not None:
            return self.init.completed
        with contextlib.suppress(GuestError):  # it may have ended by itself
            self.init.signal(_KILL)
        return self.init.wait(timeout_s=timeout_s)

    def release(self) -> None:
        """Stop the container and give everything back; may be called again after a failure.

        Every step is attempted; the first error is raised at the end. In a machine that is gone
        everything counts as released.
        """
        errors: list[HarnessError] = []

        def attempt(action: Callable[[], None]) -> None:
            try:
                action()
            except HarnessError as error:
                errors.append(error)

        attempt(self._stop_quietly)
        attempt(self._root.unmount)
        if self._root.combined is None:
            attempt(self._delete_state)
            attempt(self._root.release_disks)
        if errors and self._vm.running:
            raise errors[0]
        if errors:
            self._forget()

    def _forget(self) -> None:
        self.init = None
        self._created = False
        self._root.forget()

    def _stop_quietly(self) -> None:
        if self.init is not None:
            self.stop()
            self.init = None

    def _delete_state(self) -> None:
        if self._created:
            try:
                self._vm.guest.delete_container_state(self.id)
            except GuestError as error:
                if not is_not_found(error):
                    raise
            self._created = False
        elif self._root.leftover:
            # The container was never created, so no state names the directory that the
            # combined layers made in the shared disk: without this it would stay there.
            self._vm.processes.start(["/bin/rm", "-rf", self._root.leftover]).wait()
        self._root.leftover = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _process(args: Sequence[str], *, env: Sequence[str], cwd: str) -> dict[str, Any]:
    return {"args": list(args), "env": list(env), "cwd": cwd, "noNewPrivileges": True}
