"""What the utility VMs of a lab boot from: images built here, an exported one, or played ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.exportedimage import demo_in, root_in
from harness.image.build import UvmImage, ensure_image
from harness.image.demo import ensure_demo_image
from harness.image.flavour import Flavour
from harness.image.rootdisk import ensure_root_disk
from harness.machinekind import MachineKind, RootSource


@dataclass(frozen=True, slots=True)
class BootFiles:
    """Paths of a document; "" for what there is none of."""

    kernel: str = ""
    initrd: str = ""
    root_disk: str = ""


class BootImages:
    """Images by flavour, each built at its first use. Every method raises as `ensure_image`."""

    def __init__(
        self,
        standard: UvmImage | None,
        *,
        exported: Path | None,
        directory: Path,
        progress: Callable[[str], None],
    ) -> None:
        """`standard` is None where guests are played; `exported` is the folder it came from.

        `directory` is the lab's own.
        """
        self._by_flavour = {Flavour.STANDARD: standard} if standard else {}
        self._exported = exported
        self._directory = directory
        self._progress = progress

    def __bool__(self) -> bool:
        """Whether guests are booted; else they are played."""
        return bool(self._by_flavour)

    def image(self, flavour: Flavour = Flavour.STANDARD) -> UvmImage:
        """Return kernel and initrd. Raises UsageError, too, where guests are played.

        An exported image serves for each flavour: what that lacks, its guests refuse.
        """
        if not self._by_flavour:
            raise UsageError("this backend boots no image: its guests are played")
        if self._exported is not None:
            flavour = Flavour.STANDARD
        if flavour not in self._by_flavour:
            self._by_flavour[flavour] = ensure_image(progress=self._progress, flavour=flavour)
        return self._by_flavour[flavour]

    def of(self, kind: MachineKind) -> BootFiles:
        """Return what a machine of a kind boots from."""
        on_disk = kind.root is RootSource.DISK
        if not self:
            return BootFiles(root_disk=str(self._played_root()) if on_disk else "")
        image = self.image(kind.flavour)
        if not on_disk:
            return BootFiles(str(image.vmlinux), str(image.initrd))
        if self._exported is not None:
            made = root_in(self._exported)
        else:
            made = ensure_root_disk(image, progress=self._progress)
        return BootFiles(str(image.vmlinux), str(made.bootstrap), str(made.disk))

    def demo_archive(self) -> Path:
        """Return the archive of the demo image, made where no exported image holds it."""
        if self._exported is not None:
            return demo_in(self._exported)
        return ensure_demo_image(progress=self._progress)

    def _played_root(self) -> Path:
        """Return a disk with what the model's guests have, made at its first use."""
        path = self._directory / "root.vhd"
        if sys.platform == "linux" and not path.exists():
            from harness.model.rootdisk import write_root_disk

            write_root_disk(path)
        return path
