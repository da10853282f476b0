"""Combined layers: a container's root file system as an overlay of its layers.

With a scratch path the overlay is writable and keeps its upper and work directories there; the
same scratch disk holds those of many containers. Without one the root is read-only.
"""

from __future__ import annotations

from harness.gcs.prot import CombinedLayers, HResult
from harness.guest.disks import unmount
from harness.guest.errors import GuestFailure
from harness.guest.mounts import MountTable
from harness.guest.system import MS_BIND, MS_RDONLY, MS_REMOUNT, GuestSystem


class Layers:
    """Mounts and unmounts combined layers."""

    def __init__(self, system: GuestSystem, mounts: MountTable) -> None:
        self._system = system
        self._mounts = mounts

    def add(self, layers: CombinedLayers) -> None:
        """Mount the layers at the root path. On failure nothing is left. Raises GuestFailure."""
        root = layers.container_root_path
        lower = [layer.path for layer in layers.layers]
        if not root.startswith("/") or not lower:
            raise GuestFailure(
                HResult.INVALID_ARGUMENT, f"root path {root!r} of {len(lower)} layers"
            )
        needs = [*lower, layers.scratch_path] if layers.scratch_path else lower
        with self._mounts.claim(root, None, needs):
            for path in lower:
                if not self._system.exists(path):
                    raise GuestFailure(HResult.NOT_FOUND, f"layer {path} is not mounted")
            created = self._system.make_dirs(root, 0o755)
            try:
                self._mount(root, lower, layers.scratch_path)
            except OSError as error:
                if created:
                    self._system.remove_dir(root)
                raise GuestFailure(
                    HResult.FAIL, f"overlay of {len(lower)} layers at {root}: {error.strerror}"
                ) from error

    def remove(self, layers: CombinedLayers) -> None:
        """Unmount combined layers; ones that are gone are fine. Raises GuestFailure."""
        with self._mounts.release(layers.container_root_path):
            unmount(self._system, layers.container_root_path)

    def _mount(self, root: str, lower: list[str], scratch: str) -> None:
        if scratch:
            upper, work = f"{scratch}/upper", f"{scratch}/work"
            self._system.make_dirs(upper, 0o755)
            self._system.make_dirs(work, 0o755)
            self._system.mount_overlay(root, lower, upper=upper, work=work)
        elif len(lower) > 1:
            self._system.mount_overlay(root, lower, upper=None, work=None)
        else:
            # An overlay without an upper directory needs two lower ones.
            self._system.mount(lower[0], root, "", MS_BIND, "")
            try:
                self._system.mount("", root, "", MS_BIND | MS_REMOUNT | MS_RDONLY, "")
            except OSError:
                self._system.unmount(root)
                raise
