"""Steps that bring what a bundle holds: our packages, and what utility VMs boot from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from harness.hosts.bundle import Bundle, BundleFile, differing_files, push_files
from harness.hosts.deploy import deploy_wheels, deployment_name, wheels_of
from harness.hosts.hostfile import path_exists, read_file
from harness.hosts.hostscripts import HostScripts
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.pythonstep import describe_python, host_python
from harness.hosts.steps import Assessment, Look, State
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM

_BOOT_PARTS = ("image", "boot")


@dataclass(frozen=True, slots=True)
class DeployWheels:
    """Copies wheels, unpacks them, imports every native module; an `Action`."""

    root: ProtectedRoot
    scripts: HostScripts
    bundle: Bundle
    report: Callable[[str], None]

    @property
    def text(self) -> str:
        """See `Action.text`."""
        return (
            f"deploy {len(wheels_of(self.bundle))} wheels of {self.bundle.folder.name} to "
            f"{self.root.inside('deploy', deployment_name(self.bundle))}; "
            "import every native module"
        )

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """See `Action.run`."""
        deploy_wheels(
            winrm, self.root, self.scripts, self.bundle, deadline=deadline, report=self.report
        )


@dataclass(frozen=True, slots=True)
class Packages:
    """Our wheels and those that they need are deployed, and every native module imports."""

    name: str = "packages"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        root, bundle = look.options.root, look.options.bundle
        if bundle is None or not wheels_of(bundle):
            return Assessment(State.FINE, "none given: lcowlab deploy brings them")
        wanted = deployment_name(bundle)
        text = read_file(look.winrm, root.inside("deploy", "current.json"), deadline=look.deadline)
        try:
            # The host's own path of the folder: only its name is compared.
            current = str(json.loads(text or b"{}").get("name", ""))
        except ValueError:
            current = ""
        if current == wanted and path_exists(
            look.winrm, root.inside("deploy", wanted), deadline=look.deadline
        ):
            return Assessment(State.FINE, wanted)
        action = DeployWheels(root, look.scripts(host_python(look)), bundle, look.report)
        return Assessment(State.CHANGE, current or "not deployed", (action,))


@dataclass(frozen=True, slots=True)
class PushFiles:
    """Copies files of a bundle that the host does not have as listed; an `Action`."""

    root: ProtectedRoot
    scripts: HostScripts
    bundle: Bundle
    files: tuple[BundleFile, ...]
    report: Callable[[str], None]

    @property
    def text(self) -> str:
        """See `Action.text`."""
        return (
            f"copy what differs of {len(self.files)} boot files of {self.bundle.folder.name} to "
            f"{self.root.inside('bundle')}"
        )

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """See `Action.run`."""
        push_files(
            winrm,
            self.root,
            self.scripts,
            self.bundle,
            files=self.files,
            deadline=deadline,
            report=self.report,
        )


@dataclass(frozen=True, slots=True)
class BootFiles:
    """The utility VM's image, or boot files of the user's, are there as listed."""

    name: str = "boot-files"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        root, bundle = look.options.root, look.options.bundle
        files = tuple(
            each for part in _BOOT_PARTS for each in (bundle.part(part) if bundle else ())
        )
        if bundle is None or not files:
            return Assessment(State.FINE, "none given")
        python = host_python(look)
        action = PushFiles(root, look.scripts(python), bundle, files, look.report)
        if root.read(look.winrm, deadline=look.deadline).wrong or not describe_python(
            look.winrm, python, deadline=look.deadline
        ):
            return Assessment(State.CHANGE, "nothing there yet", (action,))
        differing = differing_files(
            HostScripts(look.winrm, python), root, files, deadline=look.deadline
        )
        if differing:
            return Assessment(State.CHANGE, f"{len(differing)} files differ", (action,))
        return Assessment(State.FINE, f"{len(files)} files")
