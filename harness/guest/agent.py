"""The guest agent: answers the host's requests on the bridge.

One thread reads the bridge; each request but the negotiation has a thread of its own, so a slow
one holds nobody up, and answers come in any order. Nothing is answered before the protocol is
negotiated, save what makes templates and their copies, and every new bridge starts without a
negotiated version. Exit notifications wait for a negotiated bridge.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TypeAlias

from harness.gcs.codec import (
    GUEST_MAX_FRAME,
    HEADER_SIZE,
    HOST_MAX_FRAME,
    Frame,
    FrameDecoder,
    FrameError,
    MessageError,
    decode_body,
    encode_body,
    encode_frame,
    from_json,
    to_json,
)
from harness.gcs.prot import (
    CONTAINER_NOTIFICATION,
    LOG_PORT,
    NULL_ID,
    PROTOCOL_VERSION,
    Capabilities,
    CombinedLayers,
    ContainerNotification,
    Create,
    ErrorRecord,
    ExecuteProcess,
    GetProperties,
    GuestCapabilities,
    HResult,
    Kind,
    LabRequest,
    MappedVirtualDisk,
    ModifySettings,
    Negotiated,
    NegotiateProtocol,
    ProcessExited,
    ProcessStarted,
    PropertiesAnswer,
    Request,
    RequestBase,
    RequestType,
    ResizeConsole,
    ResourceType,
    ResponseBase,
    SchemaVersion,
    ScsiDevice,
    ScsiDevices,
    ScsiDevicesAnswer,
    SignalProcess,
    StacksAnswer,
    WaitForProcess,
    kind_of,
    response_type,
)
from harness.guest import template
from harness.guest.containers import Containers
from harness.guest.disks import Disks
from harness.guest.errors import GuestFailure
from harness.guest.layers import Layers
from harness.guest.log import Log
from harness.guest.mounts import MountTable
from harness.guest.processes import ProcessTable, start_in_uvm
from harness.guest.system import ByteStream, GuestSystem

_READ_SIZE = 64 * 1024
_MESSAGE_MAX = 4096  # characters of an error's text, so that its answer fits a frame
_STACKS_MAX = 32 * 1024

CAPABILITIES = Capabilities(
    schema_versions=(SchemaVersion(major=2, minor=1),),
    runtime_os="Linux",
    guest=GuestCapabilities(
        signal_process=True, dump_stacks=True, delete_container_state=True, eject_many=True
    ),
)

_Body: TypeAlias = Mapping[str, object]
_Handler: TypeAlias = Callable[[RequestBase, _Body], object | None]


class _NoAnswer(Exception):  # noqa: N818 - no failure: the host expects no answer
    """Raised by a handler whose request is not answered."""


class _Bridge:
    """One connection of the host: what is written, and whether the version is agreed."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.negotiated = False
        self._lock = threading.Lock()

    def write(self, frame: Frame) -> None:
        """Write a frame whole. Raises OSError once the host is gone."""
        with self._lock:
            self.stream.write(encode_frame(frame))


class Agent:
    """Serves one bridge after the other; containers and mounts outlive a bridge."""

    def __init__(
        self,
        system: GuestSystem,
        log: Log,
        *,
        crun: str = "crun",
        setup: Callable[[], None] = lambda: None,
    ) -> None:
        """`setup` is called, again and again, before what needs more than the bridge."""
        self._setup = setup
        self._system = system
        self._log = log
        self._mounts = MountTable()
        self._disks = Disks(system, self._mounts)
        self._layers = Layers(system, self._mounts)
        self._containers = Containers(system, self._mounts, self._publish, crun=crun)
        self._crun = crun
        self._processes = ProcessTable()
        self._sleeper: template.Sleeper | None = None  # from Prepare to the next negotiation
        self._lock = threading.Lock()
        self._bridge: _Bridge | None = None  # the negotiated one
        self._unsent: deque[ContainerNotification] = deque()
        self._handlers: dict[int, _Handler] = {
            Request.CREATE: self._create,
            Request.START: self._start,
            Request.SHUTDOWN_GRACEFUL: self._shutdown_graceful,
            Request.SHUTDOWN_FORCED: self._shutdown_forced,
            Request.EXECUTE_PROCESS: self._execute,
            Request.WAIT_FOR_PROCESS: self._wait,
            Request.SIGNAL_PROCESS: self._signal,
            Request.RESIZE_CONSOLE: self._resize,
            Request.GET_PROPERTIES: self._properties,
            Request.MODIFY_SETTINGS: self._modify,
            Request.DUMP_STACKS: self._dump_stacks,
            Request.DELETE_CONTAINER_STATE: self._delete_state,
        }
        self._lab_handlers: dict[int, _Handler] = {
            LabRequest.PREPARE: self._prepare,
            LabRequest.RESUME: self._resume,
        }

    def serve(self, stream: ByteStream) -> None:
        """Answer requests until the host is gone or breaks the protocol."""
        bridge = _Bridge(stream)
        decoder = FrameDecoder(max_frame=GUEST_MAX_FRAME)
        try:
            while data := stream.read(_READ_SIZE):
                if self._sleeper is not None and self._answer_awaking(bridge, data):
                    continue
                for frame in decoder.feed(data):
                    self._take(bridge, frame)
        except FrameError as error:
            self._log.error("the host broke the protocol", {"error": str(error)})
        except OSError as error:
            self._log.warning("the bridge failed", {"error": str(error)})
        finally:
            self._forget(bridge)

    def _answer_awaking(self, bridge: _Bridge, data: bytes) -> bool:
        """Whether `data` was what a copy of a template is asked first; it is answered then."""
        assert self._sleeper is not None
        if (answer := self._sleeper.wake(data)) is not None:
            bridge.stream.write(answer)
            return True
        answer = self._sleeper.negotiate(data)
        self._sleeper = None
        if answer is None:
            return False
        bridge.negotiated = True
        bridge.stream.write(answer)
        self._adopt(bridge)
        return True

    def _forget(self, bridge: _Bridge) -> None:
        """Nothing is agreed with this bridge's host any more."""
        bridge.negotiated = False
        with self._lock:
            if self._bridge is bridge:
                self._bridge = None

    # -- requests and answers --------------------------------------------------------------------

    def _take(self, bridge: _Bridge, frame: Frame) -> None:
        if kind_of(frame.type) is not Kind.REQUEST:
            self._log.warning("not a request", {"type": f"{frame.type:#010x}"})
        elif frame.type == Request.NEGOTIATE_PROTOCOL or frame.type in self._lab_handlers:
            self._answer(bridge, frame)
        else:
            threading.Thread(
                target=self._answer,
                args=(bridge, frame),
                name=f"request-{frame.type:#010x}-{frame.id}",
                daemon=True,
            ).start()

    def _answer(self, bridge: _Bridge, frame: Frame) -> None:
        base = RequestBase()
        try:
            body = decode_body(frame.body)
            base = from_json(RequestBase, body)
            status, answer = ResponseBase(), self._handle(bridge, frame.type, base, body)
        except _NoAnswer:
            return
        except MessageError as error:
            status, answer = _failure(HResult.INVALID_JSON, str(error)), None
        except GuestFailure as error:
            status, answer = _failure(error.result, str(error)), None
        except OSError as error:  # the disk's or the kernel's fault, and the host's to know
            status, answer = _failure(HResult.FAIL, str(error)), None
        except Exception as error:  # noqa: BLE001 - the boundary of a request
            import traceback  # imports much, and is needed for a bug of ours alone

            self._log.error("request failed", {"stack": traceback.format_exc()})
            status, answer = _failure(HResult.FAIL, f"{type(error).__name__}: {error}"), None
        if status.result:
            fields = {"type": f"{frame.type:#010x}", "error": status.error_message}
            self._log.info("request refused", fields)
        encoded = _encode(status, answer, base.activity_id)
        if HEADER_SIZE + len(encoded) > HOST_MAX_FRAME:
            status = _failure(HResult.FAIL, f"an answer of {len(encoded)} bytes is too long")
            encoded = _encode(status, None, base.activity_id)
        try:
            bridge.write(Frame(response_type(frame.type), frame.id, encoded))
        except OSError as error:
            self._log.info("nobody takes the answer", {"error": str(error)})
            return
        if frame.type == Request.NEGOTIATE_PROTOCOL and bridge.negotiated:
            self._adopt(bridge)

    def _handle(
        self, bridge: _Bridge, type_word: int, base: RequestBase, body: _Body
    ) -> object | None:
        if type_word == Request.NEGOTIATE_PROTOCOL:
            return self._negotiate(bridge, body)
        if (lab_handler := self._lab_handlers.get(type_word)) is not None:
            self._forget(bridge)
            self._setup()
            return lab_handler(base, body)
        if not bridge.negotiated:
            raise GuestFailure(HResult.NOT_IMPLEMENTED, "the protocol is not negotiated yet")
        handler = self._handlers.get(type_word)
        if handler is None:
            raise GuestFailure(HResult.UNKNOWN_MESSAGE, f"unknown request {type_word:#010x}")
        self._setup()
        return handler(base, body)

    def _publish(self, notification: ContainerNotification) -> None:
        """Send a notification, or keep it until the host has negotiated."""
        if notification.result_info:
            fields = {"container": notification.container_id, "info": notification.result_info}
            self._log.warning("the container ran out of memory", fields)
        with self._lock:
            self._unsent.append(notification)
        self._send_notifications()

    def _send_notifications(self) -> None:
        with self._lock:
            while self._bridge is not None and self._unsent:
                frame = Frame(CONTAINER_NOTIFICATION, 0, encode_body(to_json(self._unsent[0])))
                try:
                    self._bridge.write(frame)
                except OSError:
                    return  # kept for the next bridge
                self._unsent.popleft()

    def _adopt(self, bridge: _Bridge) -> None:
        """Use a bridge that has just been negotiated for notifications, and log to its host."""
        with self._lock:
            self._bridge = bridge
        self._send_notifications()
        threading.Thread(target=self._follow_up, name="follow-up", daemon=True).start()

    def _follow_up(self) -> None:
        """Do what the negotiation's answer did not wait for."""
        try:
            self._setup()
        except OSError as error:  # the first request is told, too
            self._log.error("the machine is not set up", {"error": str(error)})
        try:
            connection = self._system.dial(LOG_PORT)
        except OSError:
            return  # the host does not want it
        self._log.forward(connection.send)

    # -- handlers, one a request -----------------------------------------------------------------

    def _negotiate(self, bridge: _Bridge, body: _Body) -> Negotiated:
        wanted = from_json(NegotiateProtocol, body)
        bridge.negotiated = wanted.minimum_version <= PROTOCOL_VERSION <= wanted.maximum_version
        if not bridge.negotiated:
            raise GuestFailure(
                HResult.UNSUPPORTED_PROTOCOL_VERSION,
                f"versions {wanted.minimum_version} to {wanted.maximum_version} are offered, "
                f"version {PROTOCOL_VERSION} is spoken",
            )
        return Negotiated(version=PROTOCOL_VERSION, capabilities=CAPABILITIES)

    def _create(self, base: RequestBase, body: _Body) -> None:
        if base.container_id == NULL_ID:
            raise GuestFailure(HResult.INVALID_ARGUMENT, "the utility VM is not created")
        config = from_json(Create, body).config
        self._containers.create(base.container_id, base.activity_id, config)

    def _start(self, base: RequestBase, _: _Body) -> None:
        # A container runs from its first process on, which brings the stdio ports.
        self._containers.get(base.container_id)

    def _shutdown_graceful(self, base: RequestBase, _: _Body) -> None:
        self._shutdown(base.container_id, force=False)

    def _shutdown_forced(self, base: RequestBase, _: _Body) -> None:
        self._shutdown(base.container_id, force=True)

    def _shutdown(self, container_id: str, *, force: bool) -> None:
        if container_id == NULL_ID:
            self._log.info("the host asks for power off")
            self._system.power_off()
            raise _NoAnswer
        self._containers.stop(container_id, force=force)

    def _execute(self, base: RequestBase, body: _Body) -> ProcessStarted:
        settings = from_json(ExecuteProcess, body).settings
        if base.container_id == NULL_ID or settings.parameters.create_in_uvm:
            self._disks.settle()  # what runs here sees no disk that the host was told is let go
            process = start_in_uvm(self._system, settings.parameters, settings.stdio)
            self._processes.add(process)
            process.watch()
        else:
            process = self._containers.execute(
                base.container_id, settings.parameters, settings.stdio
            )
        return ProcessStarted(process_id=process.pid)

    def _wait(self, base: RequestBase, body: _Body) -> ProcessExited:
        request = from_json(WaitForProcess, body)
        code = self._table(base).wait(request.process_id, request.timeout_ms)
        return ProcessExited(exit_code=code)

    def _signal(self, base: RequestBase, body: _Body) -> None:
        request = from_json(SignalProcess, body)
        self._table(base).signal(request.process_id, request.options.signal)

    def _resize(self, base: RequestBase, body: _Body) -> None:
        request = from_json(ResizeConsole, body)
        process = self._table(base).get(request.process_id)
        process.resize(height=request.height, width=request.width)

    def _table(self, base: RequestBase) -> ProcessTable:
        if base.container_id == NULL_ID:
            return self._processes
        return self._containers.get(base.container_id).processes

    def _properties(self, base: RequestBase, body: _Body) -> PropertiesAnswer:
        if base.container_id == NULL_ID:
            raise GuestFailure(HResult.FAIL, "the utility VM has no properties")
        query = from_json(GetProperties, body).query
        return PropertiesAnswer(properties=self._containers.properties(base.container_id, query))

    def _modify(self, _: RequestBase, body: _Body) -> ScsiDevicesAnswer | None:
        change = from_json(ModifySettings, body).request
        settings = change.settings or {}
        match change.request_type or RequestType.ADD, change.resource_type:
            case RequestType.ADD, ResourceType.MAPPED_VIRTUAL_DISK:
                self._disks.add(from_json(MappedVirtualDisk, settings))
            case RequestType.REMOVE, ResourceType.MAPPED_VIRTUAL_DISK:
                self._disks.remove(from_json(MappedVirtualDisk, settings))
            case RequestType.REMOVE, ResourceType.SCSI_DEVICE:
                self._disks.eject(from_json(ScsiDevice, settings))
            case RequestType.REMOVE, ResourceType.SCSI_DEVICES:
                devices = from_json(ScsiDevices, settings).devices
                return ScsiDevicesAnswer(self._disks.eject_all(devices))
            case RequestType.ADD, ResourceType.COMBINED_LAYERS:
                self._layers.add(from_json(CombinedLayers, settings))
            case RequestType.REMOVE, ResourceType.COMBINED_LAYERS:
                self._layers.remove(from_json(CombinedLayers, settings))
            case kind, resource:
                raise GuestFailure(HResult.NOT_IMPLEMENTED, f"{kind} of {resource!r}")
        return None

    def _dump_stacks(self, _: RequestBase, __: _Body) -> StacksAnswer:
        import traceback

        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = [
            f"{names.get(ident, ident)}\n" + "".join(traceback.format_stack(frame))
            for ident, frame in sys._current_frames().items()
        ]
        return StacksAnswer(stacks="\n".join(stacks)[:_STACKS_MAX])

    def _delete_state(self, base: RequestBase, _: _Body) -> None:
        self._containers.delete_state(base.container_id)

    def _prepare(self, _: RequestBase, __: _Body) -> None:
        template.warm_up(self._system, self._mounts, crun=self._crun)
        negotiated = Negotiated(version=PROTOCOL_VERSION, capabilities=CAPABILITIES)
        self._sleeper = template.Sleeper(self._system, negotiated)

    def _resume(self, _: RequestBase, body: _Body) -> None:
        template.resume(self._system, body)


def _failure(result: HResult, message: str) -> ResponseBase:
    message = message[:_MESSAGE_MAX]
    record = ErrorRecord(result=result, message=message, module_name="gcs")
    return ResponseBase(result=result, error_message=message, error_records=(record,))


def _encode(status: ResponseBase, answer: object | None, activity_id: str) -> bytes:
    values = to_json(status)
    if activity_id:
        values["ActivityId"] = activity_id
    if answer is not None:
        values |= to_json(answer)
    return encode_body(values)
