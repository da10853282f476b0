"""Our packages on a host: wheels of a bundle, unpacked side by side, and proved by importing them.

A deployment is a folder named by the hashes of its wheels; `current.json` names the one in use and
changes last. A deployment that does not import leaves the former one in use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from harness.errors import ProvisionError, UsageError
from harness.hosts.bundle import Bundle, BundleFile, Pushed, push_files
from harness.hosts.hostscripts import HostScripts
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM


@dataclass(frozen=True, slots=True)
class Deployed:
    """What a deployment came to: whether it was new, what was copied, which modules import."""

    name: str
    new: bool
    pushed: Pushed
    modules: tuple[str, ...]


def wheels_of(bundle: Bundle) -> tuple[BundleFile, ...]:
    """Return the wheels of a bundle."""
    return tuple(each for each in bundle.part("wheels") if each.path.endswith(".whl"))


def deployment_name(bundle: Bundle) -> str:
    """Return what the deployment of a bundle's wheels is called: it says their hashes."""
    listed = "\n".join(sorted(f"{each.sha256} {each.path}" for each in wheels_of(bundle)))
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def deploy_wheels(
    winrm: WinRM,
    root: ProtectedRoot,
    scripts: HostScripts,
    bundle: Bundle,
    *,
    deadline: Deadline,
    report: Callable[[str], None],
    imports: tuple[str, ...] = (),
    pull_address: str | None = None,
) -> Deployed:
    """Make a bundle's wheels the host's deployment; only what changed is copied.

    `imports` are modules to import beside every native one. Raises UsageError for a bundle without
    wheels, ProvisionError naming each module that does not import, RemoteError.
    """
    wheels = wheels_of(bundle)
    if not wheels:
        raise UsageError(f"the bundle {bundle.folder} has no wheels: bundle create --wheels DIR")
    pushed = push_files(
        winrm,
        root,
        scripts,
        bundle,
        files=wheels,
        deadline=deadline,
        report=report,
        pull_address=pull_address,
    )
    name = deployment_name(bundle)
    root.verify(winrm, deadline=deadline)
    answer = scripts.ask(
        "unpack",
        {
            "name": name,
            "wheels": ["/".join(PurePosixPath(each.path).parts[1:]) for each in wheels],
            "imports": list(imports),
        },
        {"wheelhouse": root.inside("bundle", "wheels"), "folder": root.inside("deploy")},
        deadline=deadline,
    )
    if answer["failed"]:
        told = "; ".join(f"{module}: {why}" for module, why in answer["failed"].items())
        raise ProvisionError(
            f"deployed, but does not import, so the former stays: {told}", host=winrm.host
        )
    return Deployed(name, answer["state"] == "installed", pushed, tuple(answer["modules"]))
