"""What the host asks of a guest, as typed calls on a `Bridge`.

Every method raises GuestError when the guest refuses and BridgeClosedError when the bridge is
closed or closes meanwhile. `None` as a container id means the utility VM itself.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

from harness.errors import GuestError, ProtocolError
from harness.gcs.bridge import DEFAULT_TIMEOUT_S, Bridge
from harness.gcs.codec import MessageError, from_json, to_json
from harness.gcs.prot import (
    INFINITE,
    NULL_ID,
    PROTOCOL_VERSION,
    Capabilities,
    CombinedLayers,
    ContainerConfig,
    ContainerNotification,
    Create,
    ExecuteProcess,
    ExecuteSettings,
    GetProperties,
    HResult,
    MappedVirtualDisk,
    Modification,
    ModifySettings,
    Negotiated,
    NegotiateProtocol,
    ProcessExited,
    ProcessParameters,
    ProcessStarted,
    Properties,
    PropertiesAnswer,
    PropertyQuery,
    Request,
    RequestType,
    ResizeConsole,
    ResourceType,
    SchemaVersion,
    ScsiDevice,
    ScsiDevices,
    ScsiDevicesAnswer,
    SignalOptions,
    SignalProcess,
    StacksAnswer,
    StdioPorts,
    WaitForProcess,
)

_M = TypeVar("_M")
_WAIT_MARGIN_S = 30.0  # what the guest may take to say that its own timeout has passed
_MS_MAX = INFINITE - 1
_NO_STDIO = StdioPorts()
_Body = Mapping[str, object]
Call = Callable[[], _Body]
"""Sends a request and returns its answer."""
CallGate = Callable[[Request, object | None, Call], _Body]
"""What every request of a client passes through: returns what the call does, or meets a fault."""


def is_not_found(error: GuestError) -> bool:
    """Whether the guest says that what was named does not exist (any more)."""
    return error.hresult in (HResult.NOT_FOUND, HResult.SYSTEM_NOT_FOUND)


def _open_gate(_request: Request, _message: object | None, call: Call) -> _Body:
    return call()


class GuestClient:
    """The guest of one utility VM. Use it as a context manager, or close it."""

    def __init__(self, bridge: Bridge, *, gate: CallGate = _open_gate) -> None:
        self._bridge = bridge
        self._gate = gate
        self._capabilities: Capabilities | None = None

    @classmethod
    def connect(cls, connected: socket.socket) -> Self:
        """Return a client that owns the socket, which is the bridge; `negotiate` comes next."""
        bridge = Bridge(connected)
        bridge.start()
        return cls(bridge)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bridge."""
        self.close()

    def close(self) -> None:
        """Close the bridge; may be repeated."""
        self._bridge.close()

    @property
    def bridge(self) -> Bridge:
        """The bridge below."""
        return self._bridge

    @property
    def capabilities(self) -> Capabilities:
        """What the guest said it can; `negotiate` was called."""
        assert self._capabilities is not None, "negotiate first"
        return self._capabilities

    def negotiate(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Capabilities:
        """Agree on the protocol's version and return what the guest can."""
        request = NegotiateProtocol(
            minimum_version=PROTOCOL_VERSION, maximum_version=PROTOCOL_VERSION
        )
        answer = self._call(Request.NEGOTIATE_PROTOCOL, request, Negotiated, timeout_s=timeout_s)
        self._capabilities = answer.capabilities
        return answer.capabilities

    # -- disks and layers ------------------------------------------------------------------------

    def mount_disk(self, disk: MappedVirtualDisk) -> None:
        """Mount an attached disk; on failure nothing is left in the guest."""
        self._modify(RequestType.ADD, ResourceType.MAPPED_VIRTUAL_DISK, disk)

    def unmount_disk(self, disk: MappedVirtualDisk) -> None:
        """Unmount a disk, given exactly what it was mounted with; can be repeated."""
        self._modify(RequestType.REMOVE, ResourceType.MAPPED_VIRTUAL_DISK, disk)

    def eject_disk(self, *, controller: int, lun: int) -> None:
        """Have the guest forget a disk that the host is about to detach; can be repeated."""
        device = ScsiDevice(controller=controller, lun=lun)
        self._modify(RequestType.REMOVE, ResourceType.SCSI_DEVICE, device)

    def eject_disks(self, slots: Sequence[tuple[int, int]]) -> dict[tuple[int, int], GuestError]:
        """Eject disks by (controller, LUN) together, if the guest can; return what it refused."""
        if not self.capabilities.guest.eject_many:
            refused = {}
            for controller, lun in slots:
                try:
                    self.eject_disk(controller=controller, lun=lun)
                except GuestError as error:
                    refused[controller, lun] = error
            return refused
        devices = tuple(ScsiDevice(controller, lun) for controller, lun in slots)
        answer = self._call(
            Request.MODIFY_SETTINGS,
            _modification(RequestType.REMOVE, ResourceType.SCSI_DEVICES, ScsiDevices(devices)),
            ScsiDevicesAnswer,
        )
        return {
            (each.controller, each.lun): GuestError(
                each.message, hresult=each.result, request=Request.MODIFY_SETTINGS.name
            )
            for each in answer.refusals
        }

    def add_combined_layers(self, layers: CombinedLayers) -> None:
        """Mount a container's root; on failure nothing is left in the guest."""
        self._modify(RequestType.ADD, ResourceType.COMBINED_LAYERS, layers)

    def remove_combined_layers(self, layers: CombinedLayers) -> None:
        """Unmount a container's root; can be repeated."""
        self._modify(RequestType.REMOVE, ResourceType.COMBINED_LAYERS, layers)

    # -- containers ------------------------------------------------------------------------------

    def create_container(
        self,
        container_id: str,
        spec: Mapping[str, Any],
        *,
        bundle: str,
        scratch_dir: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Make a container of an OCI specification; it runs with its first process."""
        self._bridge.expect_notifications(container_id)
        config = ContainerConfig(
            schema_version=SchemaVersion(major=2, minor=1),
            oci_bundle_path=bundle,
            oci_specification=dict(spec),
            scratch_dir_path=scratch_dir,
        )
        self._ask(
            Request.CREATE, Create(config=config), container_id=container_id, timeout_s=timeout_s
        )
        # A refusal may mean that the earlier one is still there. The new one has no init yet, so
        # nothing of its own is lost.
        self._bridge.forget_notifications(container_id)

    def start_container(self, container_id: str) -> None:
        """Send Start, which a Linux guest takes without running anything."""
        self._ask(Request.START, container_id=container_id)

    def shutdown_container(self, container_id: str, *, force: bool = False) -> None:
        """Send SIGTERM to a container's init, or SIGKILL."""
        request = Request.SHUTDOWN_FORCED if force else Request.SHUTDOWN_GRACEFUL
        self._ask(request, container_id=container_id)

    def delete_container_state(self, container_id: str) -> None:
        """Remove a container, its bundle and its scratch directory; the scratch is mounted."""
        self._ask(Request.DELETE_CONTAINER_STATE, container_id=container_id)

    def wait_container_exit(
        self, container_id: str, *, timeout_s: float | None = None
    ) -> ContainerNotification:
        """Return the notification of a container's end. Raises TimeoutError, too."""
        return self._bridge.wait_notification(container_id, timeout_s=timeout_s)

    def get_properties(
        self, container_id: str, *, types: Sequence[str] = ("ProcessList",)
    ) -> Properties:
        """Return a container's processes and, for `Statistics`, what it uses."""
        query = GetProperties(query=PropertyQuery(property_types=tuple(types)))
        answer = self._call(
            Request.GET_PROPERTIES, query, PropertiesAnswer, container_id=container_id
        )
        return answer.properties

    # -- processes -------------------------------------------------------------------------------

    def execute_process(
        self,
        container_id: str | None,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        oci_process: Mapping[str, Any] | None = None,
        terminal: bool = False,
        stdio: StdioPorts = _NO_STDIO,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> int:
        """Start a process and return its id in the guest.

        Of the UVM: `args`, `env`, `cwd`, `terminal`. Of a container: its init, when there is
        neither `args` nor `oci_process`; else one more process, of `oci_process` or made of
        `args` and the rest. `stdio` names the host's ports that are listened on; 0 is none.
        """
        if container_id is not None and args and oci_process is None:
            oci_process = {"args": list(args), "terminal": terminal}
            if env:
                oci_process["env"] = [f"{name}={value}" for name, value in env.items()]
            if cwd:
                oci_process["cwd"] = cwd
        in_uvm = container_id is None
        parameters = ProcessParameters(
            command_args=tuple(args) if in_uvm else (),
            working_directory=cwd if in_uvm else "",
            environment=dict(env or {}) if in_uvm else {},
            emulate_console=terminal,
            create_stdin=bool(stdio.stdin),
            create_stdout=bool(stdio.stdout),
            create_stderr=bool(stdio.stderr),
            create_in_uvm=in_uvm,
            oci_process=dict(oci_process) if oci_process is not None else None,
        )
        request = ExecuteProcess(settings=ExecuteSettings(parameters=parameters, stdio=stdio))
        answer = self._call(
            Request.EXECUTE_PROCESS,
            request,
            ProcessStarted,
            container_id=container_id,
            timeout_s=timeout_s,
        )
        return answer.process_id

    def wait_process(
        self, container_id: str | None, process_id: int, *, timeout_s: float | None = None
    ) -> int:
        """Return the exit code, 128 + signal for a killed process; its output is delivered by then.

        Raises GuestError of HResult.TIMEOUT after the timeout.
        """
        timeout_ms = INFINITE if timeout_s is None else min(int(timeout_s * 1000), _MS_MAX)
        answer = self._call(
            Request.WAIT_FOR_PROCESS,
            WaitForProcess(process_id=process_id, timeout_ms=timeout_ms),
            ProcessExited,
            container_id=container_id,
            timeout_s=None if timeout_s is None else timeout_s + _WAIT_MARGIN_S,
        )
        return answer.exit_code

    def signal_process(self, container_id: str | None, process_id: int, signal: int = 0) -> None:
        """Send a signal; 0 stands for SIGKILL."""
        self._ask(
            Request.SIGNAL_PROCESS,
            SignalProcess(process_id=process_id, options=SignalOptions(signal=signal)),
            container_id=container_id,
        )

    def resize_console(
        self, container_id: str | None, process_id: int, *, height: int, width: int
    ) -> None:
        """Set the size of a process's terminal, in characters."""
        self._ask(
            Request.RESIZE_CONSOLE,
            ResizeConsole(process_id=process_id, height=height, width=width),
            container_id=container_id or NULL_ID,
        )

    # -- the utility VM --------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Have the guest power off; it does not answer. Watch the compute system for its exit."""

        def send() -> _Body:
            self._bridge.send(Request.SHUTDOWN_GRACEFUL, timeout_s=None)
            return {}

        self._gate(Request.SHUTDOWN_GRACEFUL, None, send)

    def dump_stacks(self) -> str:
        """Return what every thread of the agent is doing."""
        return self._call(Request.DUMP_STACKS, None, StacksAnswer).stacks

    # -- below -----------------------------------------------------------------------------------

    def _ask(
        self,
        request: Request,
        message: object | None = None,
        *,
        container_id: str | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> _Body:
        def call() -> _Body:
            return self._bridge.call(
                request, message, container_id=container_id or NULL_ID, timeout_s=timeout_s
            )

        return self._gate(request, message, call)

    def _modify(self, kind: RequestType, resource: ResourceType, settings: object) -> None:
        self._ask(Request.MODIFY_SETTINGS, _modification(kind, resource, settings))

    def _call(
        self,
        request: Request,
        message: object | None,
        answer: type[_M],
        *,
        container_id: str | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> _M:
        body = self._ask(request, message, container_id=container_id, timeout_s=timeout_s)
        try:
            return from_json(answer, body)
        except MessageError as error:
            cause = ProtocolError(f"{request.name}: the guest's answer: {error}")
            self._bridge.kill(cause)
            raise cause from error


def _modification(kind: RequestType, resource: ResourceType, settings: object) -> ModifySettings:
    return ModifySettings(
        request=Modification(request_type=kind, resource_type=resource, settings=to_json(settings))
    )
