"""A machine that others are copied from, and the first moments of a copy.

::

    boot ──Prepare──> warm and idle ══ the host saves the machine ══ copy ──Resume──> own machine

The host saves the machine while the agent waits in read(2). All copies wake with the same random
generator, the time of the template and its name; `resume` comes before anything else they do. The
kernel makes its boot id at the first read, which must not happen in a template.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import gc

from harness.gcs.codec import MessageError
from harness.gcs.prot import (
    CombinedLayers,
    ContainerConfig,
    HResult,
    Layer,
    ProcessParameters,
    Resume,
    SchemaVersion,
    StdioPorts,
)
from harness.guest.containers import Containers
from harness.guest.errors import GuestFailure
from harness.guest.layers import Layers
from harness.guest.mounts import MountTable
from harness.guest.system import GuestSystem

_WARM_ID = "lcowlab-template"
_WARM_S = 60.0
_MIN_SEED = 32


def warm_up(system: GuestSystem, mounts: MountTable, *, crun: str) -> None:
    """Run one container and remove it, so that copies find all they need in memory.

    Its root is an overlay over the utility VM's own. Raises GuestFailure; nothing is left of it.
    """
    bundle = f"/run/gcs/c/{_WARM_ID}"
    scratch = f"/run/{_WARM_ID}"
    root = CombinedLayers(
        container_id=_WARM_ID,
        container_root_path=f"{bundle}/rootfs",
        layers=(Layer(path="/"),),
        scratch_path=scratch,
    )
    layers = Layers(system, mounts)
    containers = Containers(system, mounts, lambda _: None, crun=crun)
    layers.add(root)
    try:
        containers.create(
            _WARM_ID,
            "",
            ContainerConfig(
                schema_version=SchemaVersion(major=2, minor=1),
                oci_bundle_path=bundle,
                oci_specification={"process": {"args": ["/bin/true"], "cwd": "/"}},
                scratch_dir_path=scratch,
            ),
        )
        try:
            init = containers.execute(_WARM_ID, ProcessParameters(), StdioPorts())
            code = init.wait(_WARM_S)
            if code != 0:
                raise GuestFailure(HResult.FAIL, f"the warm-up container ended with {code}")
        finally:
            layers.remove(root)
            containers.delete_state(_WARM_ID)
    finally:
        layers.remove(root)
    gc.collect()
    gc.freeze()  # a collection in a copy would write to, and so copy, every object's page


def resume(system: GuestSystem, message: Resume) -> None:
    """Make a copy a machine of its own. Raises MessageError, OSError."""
    try:
        seed = bytes.fromhex(message.seed)
    except ValueError as error:
        raise MessageError("Seed", "not hexadecimal") from error
    if len(seed) < _MIN_SEED or len(seed) % 4:
        raise MessageError("Seed", f"{len(seed)} bytes, not {_MIN_SEED} or more whole words")
    system.add_entropy(seed)
    system.set_clock(message.unix_s, message.unix_ns)
    if message.host_name:
        system.set_host_name(message.host_name)
