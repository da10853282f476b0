"""The lab: from configuration to a snapshotter, a compute service and utility VMs.

The composition root of the harness; both front doors (the command and the pytest plugin) open one.
Everything a lab makes lies in one private directory, and `audit` says what is still there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

from harness.audit import Baseline, held_in, mounts_below, store_leftovers
from harness.bootfiles import BootImages
from harness.cachedir import LABS, TEMPLATES, cache_directory
from harness.capabilities import Capability, missing
from harness.diskfiles import DiskFiles, files_in_vhdx
from harness.errors import (
    CheckFailedError,
    HarnessError,
    InfrastructureError,
    LeakError,
    UsageError,
)
from harness.exportedimage import VARIABLE, open_image
from harness.faults import FaultPlan
from harness.faults.guest import faulty_connection
from harness.faults.service import FaultyComputeService
from harness.hcs.crosscheck import EVERY_RUN, CrossCheck
from harness.hcs.document import ComputeSystem, lcow_document
from harness.hcs.hcsservice import HcsComputeService
from harness.hcs.service import ComputeService
from harness.hcs.streams import listen_hyperv
from harness.hcs.windowshost import WindowsHost, this_windows
from harness.hosts.onhost.agent import identity
from harness.image.build import UvmImage, ensure_image
from harness.labdirectory import LabDirectory
from harness.machinekind import STANDARD_MACHINE, MachineKind
from harness.qemu.clones import TemplatePolicy, TemplateReport
from harness.qemu.hostfacts import HostFacts
from harness.qemu.kvm import Accelerator, AcceleratorChoice
from harness.qemu.service import QemuComputeService
from harness.scsi import DiskClaims
from harness.uvm import UtilityVm
from snapshotter import Snapshotter
from snapshotter.image import ImportedImage, import_image

BACKENDS = ("auto", "qemu", "hcs", "model")
OWNER = "lcowlab"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LabConfig:
    """How a lab is made: the compute service, what QEMU runs guest code with, a VM's size."""

    backend: str = "auto"
    """`auto` is `hcs` on Windows and `qemu` elsewhere."""
    accelerator: AcceleratorChoice = "auto"
    memory_mib: int = 512
    processors: int = 2
    root: Path | None = None
    boot_timeout_s: float = 60.0
    cold: bool = False
    """Boot every utility VM from its first instruction, not as a copy of a saved one."""
    image: Path | None = None
    """Folder of an exported utility VM image, else that of LCOWLAB_IMAGE; hcs needs one."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """What is to fail, by boundary, in the grammar of `harness.faults`; anew in each scenario."""


class LabService(ComputeService, Protocol):
    """A compute service of this process."""

    def prepare(self) -> None:
        """Open what the service itself holds until `close_all`."""
        ...

    def close_all(self) -> None:
        """Close every system and the service; may be repeated."""
        ...


class Lab:
    """A private directory, a snapshot store and a compute service; a context manager."""

    def __init__(
        self,
        config: LabConfig,
        *,
        directory: LabDirectory,
        service: LabService,
        snapshotter: Snapshotter,
        image: UvmImage | None,
        progress: Progress,
        windows: WindowsHost | None = None,
    ) -> None:
        self.config = config
        self._directory = directory
        self.snapshotter = snapshotter
        self.faults = FaultPlan.parse(config.faults)
        self.claims = DiskClaims()
        self.keep = False
        self.owner = f"{OWNER}:{self.run}"
        """Whom the systems made from now on belong to: `lcowlab:RUN`, `:SCENARIO` within one."""
        self._boot_images = BootImages(
            image, exported=config.image, directory=directory.path, progress=progress
        )
        self._windows = windows
        self._real_service = service
        self._baseline = Baseline.take()
        self._progress = progress
        self._vms: list[UtilityVm] = []
        self._vms_before = 0  # of earlier scenarios
        self._images: dict[Path, ImportedImage] = {}

    @classmethod
    def open(
        cls,
        config: LabConfig | None = None,
        *,
        progress: Progress | None = None,
        windows: WindowsHost | None = None,
    ) -> Self:
        """Build the utility VM image where needed and open a store and a compute service.

        `windows` stands for this machine on backend `hcs`. Raises UsageError (unknown backend, or
        one that is not for this system), MissingProgramError, ImageBuildError, UnavailableError;
        nothing is left then.
        """
        config = config or LabConfig()
        if config.image is None and (named := os.environ.get(VARIABLE)):
            config = replace(config, image=Path(named))
        tell = progress or (lambda _: None)
        if config.backend not in BACKENDS:
            raise UsageError(
                f"backend {config.backend} is not known here: choose one of {', '.join(BACKENDS)}"
            )
        FaultPlan.parse(config.faults)  # wrong words are told before anything is made
        with contextlib.ExitStack() as undo:
            service: LabService
            image = None
            backend = native_backend() if config.backend == "auto" else config.backend
            if backend == "model":
                service = _open_model()
                undo.callback(service.close_all)
            elif backend == "hcs":
                windows = windows or this_windows()
                service = undo.enter_context(HcsComputeService(windows))
                image = _exported_image(config)
            else:
                service = qemu = undo.enter_context(_service(config, config.accelerator))
                qemu.host_facts()  # without QEMU nothing below is worth its time
                image = open_image(config.image) if config.image else ensure_image(progress=tell)
            base = config.root or cache_directory(LABS)
            directory = LabDirectory.create(base, tell=tell)
            undo.callback(directory.remove)
            snapshotter = undo.enter_context(Snapshotter.open(directory.path / "snapshotter"))
            undo.pop_all()
        return cls(
            config,
            directory=directory,
            service=service,
            snapshotter=snapshotter,
            image=image,
            progress=tell,
            windows=windows,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        """Everything that the lab makes is in there."""
        return self._directory.path

    @property
    def run(self) -> str:
        """The lab's own name, which no other lab of this user has as long as it is there."""
        return self._directory.name

    @property
    def backend(self) -> str:
        """The compute service's name."""
        return self._real_service.name

    @property
    def service(self) -> ComputeService:
        """The compute service, behind the faults of `faults`, now none or some."""
        return FaultyComputeService(self._real_service, self.faults)

    @property
    def host(self) -> HostFacts:
        """What this host runs utility VMs with. Raises UsageError on a backend that uses none."""
        return self._qemu().host_facts()

    def _qemu(self) -> QemuComputeService:
        if not isinstance(self._real_service, QemuComputeService):
            raise UsageError(f"backend {self.backend} uses nothing of this host")
        return self._real_service

    @property
    def image(self) -> UvmImage:
        """Kernel and initrd of the standard utility VM. Raises UsageError where there is none."""
        return self._boot_images.image()

    @property
    def accelerator(self) -> str:
        """What guest code runs with: `kvm`, `tcg`, `hyper-v`, or `none` where none runs."""
        if self.backend == "hcs":
            return "hyper-v"
        return self.host.accelerator.value if self._boot_images else "none"

    def environment(self) -> dict[str, str]:
        """Return versions and facts that a report states; `identity` is who runs this."""
        facts = {"identity": str(identity()["user"]), "run": self.run}
        if not self._boot_images:
            return facts | {"accelerator": "none: the guest's operating system is played"}
        if isinstance(self._real_service, HcsComputeService):
            facts |= {
                "accelerator": self.accelerator,
                "hcs schemas": ", ".join(self._real_service.schema_versions()),
            }
        else:
            facts |= {
                "accelerator": f"{self.accelerator}: {self.host.accelerator_reason}",
                "qemu": self.host.version,
            }
        return facts | {"kernel": self.image.kernel_version, "image": self.image.key}

    def has(self, capability: Capability) -> bool:
        """Whether this lab's backend can do something that not every backend can."""
        return not missing(self.backend, [capability])

    @contextlib.contextmanager
    def files_on(self, disk: Path) -> Iterator[DiskFiles]:
        """Open the file system on a disk that no virtual machine has attached."""
        if sys.platform == "linux":
            from harness.model.service import ModelComputeService

            if isinstance(self._real_service, ModelComputeService):
                yield self._real_service.disks.open_files(disk)
                return
        with files_in_vhdx(disk) as files:
            yield files

    def check_disks(self) -> None:
        """Hold disk files of ours against what Windows reads in them, on backend `hcs`.

        Raises CheckFailedError naming what differs. Does nothing where there is nobody to ask.
        """
        if self._windows is None or self._windows.virtual_disks is None:
            return
        if wrong := CrossCheck(self._windows.virtual_disks, disks=EVERY_RUN).run(self.directory):
            raise CheckFailedError(
                f"Windows reads our disks otherwise: {'; '.join(map(str, wrong))}; "
                "`lcowlab run native-disks` compares every kind"
            )

    def demo_image(self) -> ImportedImage:
        """Return the demo image, made and imported at the first call."""
        return self.import_image(self.demo_archive())

    def demo_archive(self) -> Path:
        """Return the archive of the demo image, made where no exported image holds it."""
        return self._boot_images.demo_archive()

    def import_image(self, archive: Path) -> ImportedImage:
        """Import an image archive into the store; a second call for the same file costs nothing."""
        if archive not in self._images:
            self._images[archive] = import_image(self.snapshotter, archive)
        return self._images[archive]

    def document(self, kind: MachineKind = STANDARD_MACHINE) -> ComputeSystem:
        """Return the HCS document of a utility VM with this lab's image of that kind."""
        files = self._boot_images.of(kind)
        return lcow_document(
            owner=self.owner,
            kernel=files.kernel,
            initrd=files.initrd,
            memory_mb=self.config.memory_mib,
            processors=self.config.processors,
            serial_pipe="console",
            root_disk=files.root_disk,
            init_options=("-w",) if kind.writable else (),
        )

    def boot_uvm(self, kind: MachineKind = STANDARD_MACHINE) -> UtilityVm:
        """Boot a utility VM; closed with the lab if not before. Raises as `UtilityVm.boot`.

        The probe cannot prove that KVM runs a whole kernel: where the choice was ours and the
        guest does not answer on KVM, this lab goes on under emulation, and says so.
        """
        try:
            vm = self._boot(kind)
        except InfrastructureError as error:
            if self.config.accelerator != "auto" or self.accelerator != Accelerator.KVM:
                raise
            self._progress(f"no answer on KVM ({error}); going on under emulation")
            self._real_service.close_all()
            self._real_service = _service(self.config, "tcg")
            vm = self._boot(kind)
        self._vms.append(vm)
        return vm

    def prepare_template(self) -> TemplateReport:
        """Return the template of this lab's utility VMs, built where it is missing.

        Raises ComputeServiceError or GuestError: why there is none; UsageError on a backend that
        knows no templates.
        """
        return self._qemu().prepare_template(self.document())

    def _boot(self, kind: MachineKind) -> UtilityVm:
        return UtilityVm.boot(
            self.service,
            self.document(kind),
            timeout_s=self.config.boot_timeout_s,
            connect=faulty_connection(self.faults),
            claims=self.claims,
            listen=self._windows.listen if self._windows else listen_hyperv,
        )

    def death(self) -> str:
        """Return why a utility VM of this lab ended without being asked to; "" where none did."""
        return next((death for vm in self._vms if (death := vm.death())), "")

    def pauses(self) -> tuple[str, ...]:
        """Return each time the host held a utility VM since `begin`, in words."""
        return tuple(pause for vm in self._vms[self._vms_before :] for pause in vm.pauses)

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
        self._vms_before = 0
        layers = {layer.chain_id for image in self._images.values() for layer in image.layers}
        left = [info for info in self.snapshotter.walk() if info.name not in layers]
        while left:
            parents = {info.parent for info in left}
            leaves = [info for info in left if info.name not in parents]
            for info in leaves:
                self.snapshotter.remove(info.name)
            left = [info for info in left if info not in leaves]
        self.snapshotter.cleanup()

    def begin(self, owner: str) -> None:
        """Begin a scenario: what it makes belongs to `owner`, faults and the audit begin anew."""
        self.owner = f"{OWNER}:{self.run}:{owner}"
        self.faults = FaultPlan.parse(self.config.faults)
        self._vms_before = len(self._vms)
        self._real_service.prepare()
        self._baseline = Baseline.take()

    def audit(self) -> tuple[str, ...]:
        """Return what is still there beside the imported image layers; empty when clean.

        Looks at systems of this lab's service, at disks and mounts in them, at processes below it,
        at the sockets, memory files and disk files it holds open, at mounts, and at the rows and
        directories of the store. What other labs of other processes have is not looked at.
        """
        layers = {layer.chain_id for image in self._images.values() for layer in image.layers}
        found = [
            f"compute system {system.id} of {system.owner} ({system.state}) with "
            f"{len(system.disks)} disks"
            for system in self._real_service.enumerate()
        ]
        found += [held for vm in self._vms if vm.running for held in held_in(vm)]
        found += self._baseline.added()
        found += store_leftovers(self.snapshotter, self.directory / "snapshotter", layers)
        found += [f"mount {target}" for target in mounts_below(self.directory)]
        return tuple(found)

    def close(self) -> None:
        """Close utility VMs, service and store, and remove the directory unless `keep` is set."""
        with contextlib.ExitStack() as closing:
            closing.callback(self._directory.keep if self.keep else self._directory.remove)
            closing.callback(self.snapshotter.close)
            closing.callback(self._real_service.close_all)
            for vm in self._vms:
                closing.callback(vm.close)
        self._vms.clear()
        self._vms_before = 0

    def require_clean(self) -> None:
        """Raise LeakError naming everything `audit` finds."""
        if leaks := self.audit():
            raise LeakError(leaks)


def native_backend() -> str:
    """Return the backend that this system has of its own."""
    return "hcs" if sys.platform == "win32" else "qemu"


def _exported_image(config: LabConfig) -> UvmImage:
    if config.image is None:
        raise UsageError(
            "backend hcs boots an image that was built on Linux: `lcowlab uvm build --export DIR` "
            f"there, then --image DIR (or {VARIABLE}) here"
        )
    return open_image(config.image)


def _service(config: LabConfig, accelerator: AcceleratorChoice) -> QemuComputeService:
    templates = None if config.cold else TemplatePolicy(cache_directory(TEMPLATES))
    return QemuComputeService(accelerator=accelerator, templates=templates)


def _open_model() -> LabService:
    if sys.platform == "linux":
        from harness.model.service import ModelComputeService

        return ModelComputeService()
    raise UsageError("backend model needs Linux: the guest agent runs in this process")
