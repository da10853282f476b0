"""A machine that others are copied from, and the first moments of a copy.

::

    boot ──Prepare──> warm and idle ══ the host saves the machine ══ copy ──Resume──> own machine

The host saves the machine while the agent waits in read(2). All copies wake with the same random
generator, the time of the template and its name; `resume` comes before anything else they do. The
kernel makes its boot id at the first read, which must not happen in a template.

An emulated copy has translated nothing yet: what it runs for the first time costs far more than
what it runs again. So its first two answers are made ahead (`Sleeper`).
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import gc
import time
from collections.abc import Mapping

from harness.gcs.codec import (
    HEADER_SIZE,
    Frame,
    MessageError,
    decode_body,
    encode_body,
    encode_frame,
    to_json,
)
from harness.gcs.prot import (
    NULL_ID,
    PROTOCOL_VERSION,
    CombinedLayers,
    ContainerConfig,
    HResult,
    LabRequest,
    Layer,
    Negotiated,
    NegotiateProtocol,
    ProcessParameters,
    Request,
    RequestBase,
    ResponseBase,
    SchemaVersion,
    StdioPorts,
    response_type,
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
    rehearsal: dict[str, object] = {
        "Seed": bytes(_MIN_SEED).hex(),
        "UnixSeconds": int(time.time()),
        "UnixNanoseconds": 0,
        "HostName": _WARM_ID,
    }
    resume(system, rehearsal)  # opens what a copy's own uses
    gc.collect()
    gc.freeze()  # a collection in a copy would write to, and so copy, every object's page


def resume(system: GuestSystem, body: Mapping[str, object]) -> None:
    """Make a copy a machine of its own; `body` is a `prot.Resume`. Raises MessageError, OSError."""
    seed, seconds, nanoseconds, name = (
        body.get(field) for field in ("Seed", "UnixSeconds", "UnixNanoseconds", "HostName")
    )
    # By hand, and not as the dataclass it is: that costs a copy as much as all the rest.
    if not isinstance(seed, str) or not isinstance(name, str):
        raise MessageError("Seed, HostName", "text is needed")
    if not isinstance(seconds, int) or not isinstance(nanoseconds, int):
        raise MessageError("UnixSeconds, UnixNanoseconds", "whole numbers are needed")
    try:
        entropy = bytes.fromhex(seed)
    except ValueError as error:
        raise MessageError("Seed", "not hexadecimal") from error
    if len(entropy) < _MIN_SEED or len(entropy) % 4:
        raise MessageError("Seed", f"{len(entropy)} bytes, not {_MIN_SEED} or more whole words")
    system.add_entropy(entropy)
    system.set_clock(seconds, nanoseconds)
    if name:
        system.set_host_name(name)


class Sleeper:
    """Answers a copy's first two requests, Resume and the negotiation, with the least of steps.

    It takes frames that are exactly what our host sends, and compares instead of decoding; whatever
    differs is left to the agent. Made in the template, it has both answers ready.
    """

    def __init__(self, system: GuestSystem, answer: Negotiated) -> None:
        self._system = system
        self._resume = LabRequest.RESUME.to_bytes(4, "little")
        self._negotiation = _frame(
            Request.NEGOTIATE_PROTOCOL,
            RequestBase(container_id=NULL_ID, activity_id=NULL_ID),
            NegotiateProtocol(minimum_version=PROTOCOL_VERSION, maximum_version=PROTOCOL_VERSION),
        )
        # With id 0, which the real one is put in for.
        self._resumed = _frame(response_type(LabRequest.RESUME), ResponseBase())
        self._negotiated = _frame(
            response_type(Request.NEGOTIATE_PROTOCOL), ResponseBase(activity_id=NULL_ID), answer
        )

    def wake(self, data: bytes) -> bytes | None:
        """Return the answer to a Resume that was carried out; None for all else, and a bad one.

        A Resume that failed half-way can be carried out again.
        """
        whole = int.from_bytes(data[4:8], "little") == len(data)
        if not whole or data[:4] != self._resume:
            return None
        try:
            resume(self._system, decode_body(data[HEADER_SIZE:]))
        except (MessageError, OSError):
            return None
        return self._resumed[:8] + data[8:HEADER_SIZE] + self._resumed[HEADER_SIZE:]

    def negotiate(self, data: bytes) -> bytes | None:
        """Return the answer to a negotiation of this version; None for anything else."""
        ident = data[8:HEADER_SIZE]
        if data != self._negotiation[:8] + ident + self._negotiation[HEADER_SIZE:]:
            return None
        return self._negotiated[:8] + ident + self._negotiated[HEADER_SIZE:]


def _frame(type_word: int, *parts: object) -> bytes:
    body: dict[str, object] = {}
    for part in parts:
        body |= to_json(part)
    return encode_frame(Frame(type_word, 0, encode_body(body)))
