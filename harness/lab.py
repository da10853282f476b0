"""The lab: from configuration to a snapshotter, a compute service and utility VMs.

The composition root of the harness; both front doors (the command and the pytest plugin) open one.
Everything a lab makes lies in one private directory, which a later lab sweeps where its owner was
killed, and `audit` says what is still there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from harness.cachedir import LABS, TEMPLATES, cache_directory
from harness.errors import HarnessError, InfrastructureError, LeakError, UsageError
from harness.hcs.document import ComputeSystem, lcow_document
from harness.image.build import UvmImage, ensure_image
from harness.image.demo import ensure_demo_image
from harness.qemu.clones import TemplatePolicy, TemplateReport
from harness.qemu.hostfacts import HostFacts
from harness.qemu.kvm import Accelerator, AcceleratorChoice
from harness.qemu.service import QemuComputeService
from harness.uvm import UtilityVm
from snapshotter import Snapshotter
from snapshotter.errors import UnavailableError
from snapshotter.image import ImportedImage, import_image

BACKENDS = ("auto", "qemu")
OWNER = "lcowlab"
_LOCK_FILE = "lock"
_KEEP_FILE = "keep"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LabConfig:
    """How a lab is made: the compute service, what QEMU runs guest code with, a VM's size."""

    backend: str = "auto"
    accelerator: AcceleratorChoice = "auto"
    memory_mib: int = 512
    processors: int = 2
    root: Path | None = None
    boot_timeout_s: float = 60.0
    cold: bool = False
    """Boot every utility VM from its first instruction, not as a copy of a saved one."""


class Lab:
    """A private directory, a snapshot store and a compute service; a context manager."""

    def __init__(
        self,
        config: LabConfig,
        *,
        directory: Path,
        lock: FileLock,
        service: QemuComputeService,
        snapshotter: Snapshotter,
        image: UvmImage,
        progress: Progress,
    ) -> None:
        self.config = config
        self.directory = directory
        self.service = service
        self.snapshotter = snapshotter
        self.image = image
        self.keep = False
        self._lock = lock
        self._progress = progress
        self._vms: list[UtilityVm] = []
        self._images: dict[Path, ImportedImage] = {}

    @classmethod
    def open(cls, config: LabConfig | None = None, *, progress: Progress | None = None) -> Self:
        """Build the utility VM image where needed and open a store and a compute service.

        Raises UsageError (unknown backend), MissingProgramError, ImageBuildError,
        UnavailableError; nothing is left then.
        """
        config = config or LabConfig()
        tell = progress or (lambda _: None)
        if config.backend not in BACKENDS:
            raise UsageError(
                f"backend {config.backend} is not known here: choose one of {', '.join(BACKENDS)}"
            )
        with contextlib.ExitStack() as undo:
            service = undo.enter_context(_service(config, config.accelerator))
            service.host_facts()  # without QEMU nothing below is worth its time
            image = ensure_image(progress=tell)
            directory, lock = _make_directory(config.root)
            undo.callback(_remove_directory, directory, lock)
            snapshotter = undo.enter_context(Snapshotter.open(directory / "snapshotter"))
            undo.pop_all()
        return cls(
            config,
            directory=directory,
            lock=lock,
            service=service,
            snapshotter=snapshotter,
            image=image,
            progress=tell,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def backend(self) -> str:
        """The compute service's name."""
        return self.service.name

    @property
    def host(self) -> HostFacts:
        """What this host runs utility VMs with."""
        return self.service.host_facts()

    def demo_image(self) -> ImportedImage:
        """Return the demo image, made and imported at the first call."""
        return self.import_image(ensure_demo_image(progress=self._progress))

    def import_image(self, archive: Path) -> ImportedImage:
        """Import an image archive into the store; a second call for the same file costs nothing."""
        if archive not in self._images:
            self._images[archive] = import_image(self.snapshotter, archive)
        return self._images[archive]

    def document(self) -> ComputeSystem:
        """Return the HCS document of a utility VM with this lab's image."""
        return lcow_document(
            owner=OWNER,
            kernel=str(self.image.vmlinux),
            initrd=str(self.image.initrd),
            memory_mb=self.config.memory_mib,
            processors=self.config.processors,
            serial_pipe="console",
        )

    def boot_uvm(self) -> UtilityVm:
        """Boot a utility VM; closed with the lab if not before. Raises as `UtilityVm.boot`.

        The probe cannot prove that KVM runs a whole kernel: where the choice was ours and the
        guest does not answer on KVM, this lab goes on under emulation, and says so.
        """
        try:
            vm = self._boot()
        except InfrastructureError as error:
            if self.config.accelerator != "auto" or self.host.accelerator is not Accelerator.KVM:
                raise
            self._progress(f"no answer on KVM ({error}); going on under emulation")
            self.service.close_all()
            self.service = _service(self.config, "tcg")
            vm = self._boot()
        self._vms.append(vm)
        return vm

    def prepare_template(self) -> TemplateReport:
        """Return the template of this lab's utility VMs, built where it is missing.

        Raises ComputeServiceError or GuestError: why there is none.
        """
        return self.service.prepare_template(self.document())

    def _boot(self) -> UtilityVm:
        return UtilityVm.boot(self.service, self.document(), timeout_s=self.config.boot_timeout_s)

    def console(self) -> str:
        """Return the last console output of the utility VM booted last."""
        for vm in reversed(self._vms):
            with contextlib.suppress(HarnessError):
                return vm.console()
        return ""

    def reset(self) -> None:
        """Close every utility VM and remove every snapshot that is not an image layer."""
        for vm in reversed(self._vms):
            with contextlib.suppress(HarnessError):
                vm.close()
        self._vms.clear()
        layers = {layer.chain_id for image in self._images.values() for layer in image.layers}
        left = [info for info in self.snapshotter.walk() if info.name not in layers]
        while left:
            parents = {info.parent for info in left}
            leaves = [info for info in left if info.name not in parents]
            for info in leaves:
                self.snapshotter.remove(info.name)
            left = [info for info in left if info not in leaves]
        self.snapshotter.cleanup()

    def audit(self) -> tuple[str, ...]:
        """Return what is still there beside the imported image layers; empty when clean.

        Looks at systems of this lab's service, child processes, attached disks, store rows and
        directories of the store.
        """
        found = [
            f"compute system {system.id} ({system.state}) with {len(system.disks)} disks"
            for system in self.service.enumerate()
        ]
        found += [f"process {pid}: {command}" for pid, command in _emulators_of(os.getpid())]
        layers = {layer.chain_id for image in self._images.values() for layer in image.layers}
        found += [
            f"snapshot {info.name}" for info in self.snapshotter.walk() if info.name not in layers
        ]
        root = self.directory / "snapshotter"
        known = len(layers)
        directories = sorted(path.name for path in (root / "snapshots").iterdir())
        if len(directories) != known:
            found.append(f"snapshot directories: {', '.join(directories)} for {known} layers")
        scratch = root / "scratch"
        if scratch.is_dir():
            found += [f"scratch {path.name}" for path in scratch.iterdir() if path.is_dir()]
        found += [f"mount {target}" for target in _mounts_below(self.directory)]
        return tuple(found)

    def close(self) -> None:
        """Close utility VMs, service and store, and remove the directory unless `keep` is set."""
        with contextlib.ExitStack() as closing:
            closing.callback(self._leave_directory)
            closing.callback(self.snapshotter.close)
            closing.callback(self.service.close_all)
            for vm in self._vms:
                closing.callback(vm.close)
        self._vms.clear()

    def _leave_directory(self) -> None:
        if self.keep:
            (self.directory / _KEEP_FILE).touch()
            self._lock.release()
        else:
            _remove_directory(self.directory, self._lock)

    def require_clean(self) -> None:
        """Raise LeakError naming everything `audit` finds."""
        if leaks := self.audit():
            raise LeakError(leaks)


def _service(config: LabConfig, accelerator: AcceleratorChoice) -> QemuComputeService:
    templates = None if config.cold else TemplatePolicy(cache_directory(TEMPLATES))
    return QemuComputeService(accelerator=accelerator, templates=templates)


def _make_directory(root: Path | None) -> tuple[Path, FileLock]:
    base = root or cache_directory(LABS)
    try:
        base.mkdir(parents=True, exist_ok=True)
        _sweep(base)
        directory = Path(tempfile.mkdtemp(prefix="lab-", dir=base))
    except OSError as error:
        raise UnavailableError(f"cannot make a lab in {base}: {error.strerror}") from error
    lock = FileLock(directory / _LOCK_FILE)
    lock.acquire(timeout=0)
    return directory, lock


def _sweep(base: Path) -> None:
    """Remove labs whose owner died; a live owner holds its lock, a kept one has a mark."""
    for directory in base.glob("lab-*"):
        lock_file = directory / _LOCK_FILE
        if (directory / _KEEP_FILE).exists() or not lock_file.exists():
            continue
        lock = FileLock(lock_file)
        with contextlib.suppress(Timeout, OSError):
            lock.acquire(timeout=0)
            _remove_directory(directory, lock)


def _remove_directory(directory: Path, lock: FileLock) -> None:
    try:
        shutil.rmtree(directory)
    except OSError as error:
        raise InfrastructureError(f"cannot remove {directory}: {error}") from error
    finally:
        lock.release()


def _emulators_of(pid: int) -> list[tuple[int, str]]:
    """Return (pid, name) of QEMU processes among the descendants of `pid` (Linux)."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "stat").read_text()
        except OSError:
            continue
        name = text[text.index("(") + 1 : text.rindex(")")]
        fields = text[text.rindex(")") + 2 :].split()
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append((int(entry.name), name))
    found: list[tuple[int, str]] = []
    waiting = [pid]
    while waiting:
        for child, name in children.get(waiting.pop(), []):
            waiting.append(child)
            if name.startswith("qemu-system"):
                found.append((child, name))
    return found


def _mounts_below(directory: Path) -> list[str]:
    """Return mount points below a directory (Linux; empty elsewhere)."""
    table = Path("/proc/self/mounts")
    if not table.exists():
        return []
    targets = (line.split()[1] for line in table.read_text().splitlines())
    return [target for target in targets if target.startswith(f"{directory}/")]
