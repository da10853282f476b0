"""The GCS bridge protocol, version 4: message types, HRESULTs, and every message's fields.

The type word of a frame: bits 31-28 kind, 27-20 category, 19-8 message number, 7-0 version. A
request's answer has the same word with the kind of a response, and the same id. Names and empty
values follow hcsshim internal/gcs/prot and internal/guest/prot.
"""

# ruff: noqa: RUF009 - `wire` returns what dataclasses.field does, no value

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from harness.gcs.codec import (
    FLAG,
    HRESULT,
    NUMBER,
    OBJECT,
    SIGNED,
    SIZE,
    TEXT,
    TEXT_MAP,
    TEXTS,
    optional,
    record,
    records,
    wire,
)

PROTOCOL_VERSION = 4
BRIDGE_PORT = 0x40000000  # hcsshim internal/gcs/prot: LinuxGcsVsockPort
LOG_PORT = 109
NULL_ID = "00000000-0000-0000-0000-000000000000"
"""The container id that stands for the utility VM itself; also an empty activity id."""
INFINITE = 0xFFFFFFFF
"""`WaitForProcess.timeout_ms` without an end."""

_KIND_MASK = 0xF0000000


class Kind(enum.IntEnum):
    """What a frame is: the four highest bits of its type word."""

    REQUEST = 0x10000000
    RESPONSE = 0x20000000
    NOTIFICATION = 0x30000000


class Request(enum.IntEnum):
    """The type word of each request."""

    CREATE = 0x10100101
    START = 0x10100201
    SHUTDOWN_GRACEFUL = 0x10100301
    SHUTDOWN_FORCED = 0x10100401
    EXECUTE_PROCESS = 0x10100501
    WAIT_FOR_PROCESS = 0x10100601
    SIGNAL_PROCESS = 0x10100701
    RESIZE_CONSOLE = 0x10100801
    GET_PROPERTIES = 0x10100901
    MODIFY_SETTINGS = 0x10100A01
    NEGOTIATE_PROTOCOL = 0x10100B01
    DUMP_STACKS = 0x10100C01
    DELETE_CONTAINER_STATE = 0x10100D01
    UPDATE_CONTAINER = 0x10100E01
    LIFECYCLE_NOTIFICATION = 0x10100F01
    MODIFY_SERVICE_SETTINGS = 0x10200101

    @property
    def response(self) -> int:
        """The type word of this request's answer."""
        return response_type(self)


class LabRequest(enum.IntEnum):
    """Requests of our QEMU service to our own guest, taken before a protocol is negotiated.

    Their category is none of Microsoft's: its guest answers UNKNOWN_MESSAGE. After one of them the
    bridge is a new one, on which nothing is negotiated.
    """

    PREPARE = 0x1FE00101
    """Do once what every utility VM does, and be still: the machine becomes a template."""
    RESUME = 0x1FE00201
    """This machine is a copy of a template: take entropy, the time and a name (`Resume`)."""


CONTAINER_NOTIFICATION = 0x30100101
"""The type word of the one notification the guest sends; its id is 0."""


def kind_of(type_word: int) -> Kind | None:
    """Return what a frame is, or None for a kind that does not exist."""
    try:
        return Kind(type_word & _KIND_MASK)
    except ValueError:
        return None


def response_type(request: int) -> int:
    """Return the type word that answers a request's, known or not."""
    return Kind.RESPONSE | (request & ~_KIND_MASK)


class HResult(enum.IntEnum):
    """The HRESULTs the guest answers with, unsigned."""

    OK = 0
    NOT_IMPLEMENTED = 0x80004001
    FAIL = 0x80004005
    ACCESS_DENIED = 0x80070005
    INVALID_ARGUMENT = 0x80070057
    FILE_CORRUPT = 0x80070570
    """A disk is not what its dm-verity root digest stands for. Microsoft's guest says FAIL."""
    NOT_FOUND = 0x80070490
    INVALID_STATE = 0x80370105  # this one has the 8-form upstream, too
    TIMEOUT = 0xC0370109
    UNKNOWN_MESSAGE = 0xC037010B
    UNSUPPORTED_PROTOCOL_VERSION = 0xC037010C
    INVALID_JSON = 0xC037010D
    SYSTEM_NOT_FOUND = 0xC037010E
    SYSTEM_ALREADY_EXISTS = 0xC037010F
    SYSTEM_ALREADY_STOPPED = 0xC0370110


class NotificationType(enum.StrEnum):
    """How a container's init ended."""

    GRACEFUL_EXIT = "GracefulExit"
    FORCED_EXIT = "ForcedExit"
    UNEXPECTED_EXIT = "UnexpectedExit"


class RequestType(enum.StrEnum):
    """What a modify request does; the Linux guest takes an empty one for Add."""

    ADD = "Add"
    REMOVE = "Remove"
    UPDATE = "Update"


class ResourceType(enum.StrEnum):
    """What a modify request is about; the ones our guest knows."""

    MAPPED_VIRTUAL_DISK = "MappedVirtualDisk"
    SCSI_DEVICE = "SCSIDevice"
    SCSI_DEVICES = "SCSIDevices"
    """Ours: several at once. Asked of a guest that says `eject_many`; no other knows it."""
    COMBINED_LAYERS = "CombinedLayers"


# -- what every message has ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestBase:
    """The part of a request that all have; alone it is Start, Shutdown and DeleteContainerState."""

    container_id: str = wire("ContainerId", TEXT, always=True)
    activity_id: str = wire("ActivityId", TEXT)


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """One step of a failure, as the guest tells it."""

    result: int = wire("Result", HRESULT, always=True)
    message: str = wire("Message", TEXT)
    stack_trace: str = wire("StackTrace", TEXT)
    module_name: str = wire("ModuleName", TEXT)
    file_name: str = wire("FileName", TEXT)
    line: int = wire("Line", NUMBER)
    function_name: str = wire("FunctionName", TEXT)


@dataclass(frozen=True, slots=True)
class ResponseBase:
    """The part of an answer that all have: an HRESULT (0 is success) and what went wrong."""

    result: int = wire("Result", HRESULT, always=True)
    error_message: str = wire("ErrorMessage", TEXT)
    activity_id: str = wire("ActivityId", TEXT)
    error_records: tuple[ErrorRecord, ...] = wire("ErrorRecords", records(ErrorRecord))


# -- negotiation ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NegotiateProtocol:
    """The first request on a bridge: the versions that the host speaks."""

    minimum_version: int = wire("MinimumVersion", NUMBER, always=True)
    maximum_version: int = wire("MaximumVersion", NUMBER, always=True)


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """A version of the HCS schema."""

    major: int = wire("Major", NUMBER)
    minor: int = wire("Minor", NUMBER)


@dataclass(frozen=True, slots=True)
class GuestCapabilities:
    """What a Linux guest can, beyond what HCS itself knows of."""

    namespace_add_request: bool = wire("NamespaceAddRequestSupported", FLAG)
    signal_process: bool = wire("SignalProcessSupported", FLAG)
    dump_stacks: bool = wire("DumpStacksSupported", FLAG)
    delete_container_state: bool = wire("DeleteContainerStateSupported", FLAG)
    eject_many: bool = wire("EjectManySupported", FLAG)
    """Ours: `ScsiDevices`; Microsoft's guest leaves it out, its host does not look."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the guest can; a Linux guest leaves the first two false, so no Create of the UVM."""

    send_host_create: bool = wire("SendHostCreateMessage", FLAG)
    send_host_start: bool = wire("SendHostStartMessage", FLAG)
    hv_socket_config_on_startup: bool = wire("HvSocketConfigOnStartup", FLAG)
    send_lifecycle_notifications: bool = wire("SendLifecycleNotifications", FLAG)
    modify_service_settings: bool = wire("ModifyServiceSettingsSupported", FLAG)
    schema_versions: tuple[SchemaVersion, ...] = wire(
        "SupportedSchemaVersions", records(SchemaVersion)
    )
    runtime_os: str = wire("RuntimeOsType", TEXT)
    guest: GuestCapabilities = wire("GuestDefinedCapabilities", record(GuestCapabilities))


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The answer to NegotiateProtocol."""

    version: int = wire("Version", NUMBER, always=True)
    capabilities: Capabilities = wire("Capabilities", record(Capabilities), always=True)


@dataclass(frozen=True, slots=True)
class Resume:
    """What a copy of a template must not share with its siblings, or cannot know."""

    seed: str = wire("Seed", TEXT, always=True)
    """Random bytes of the host, in hexadecimal."""
    unix_s: int = wire("UnixSeconds", NUMBER, always=True)
    unix_ns: int = wire("UnixNanoseconds", NUMBER, always=True)
    host_name: str = wire("HostName", TEXT, always=True)


# -- containers and processes --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """A container: its OCI specification, its bundle, and its directory on a scratch disk."""

    schema_version: SchemaVersion = wire("SchemaVersion", record(SchemaVersion), always=True)
    oci_bundle_path: str = wire("OciBundlePath", TEXT)
    oci_specification: dict[str, Any] | None = wire("OciSpecification", OBJECT)
    scratch_dir_path: str = wire("ScratchDirPath", TEXT, always=True)


@dataclass(frozen=True, slots=True)
class Create:
    """Makes a container that runs nothing yet."""

    config: ContainerConfig = wire("ContainerConfig", record(ContainerConfig), embedded=True)


@dataclass(frozen=True, slots=True)
class ProcessParameters:
    """A process: in the UVM by its arguments; in a container none (its init) or an OCI process."""

    command_line: str = wire("CommandLine", TEXT)
    command_args: tuple[str, ...] = wire("CommandArgs", TEXTS)
    working_directory: str = wire("WorkingDirectory", TEXT)
    environment: dict[str, str] = wire("Environment", TEXT_MAP)
    emulate_console: bool = wire("EmulateConsole", FLAG)
    create_stdin: bool = wire("CreateStdInPipe", FLAG)
    create_stdout: bool = wire("CreateStdOutPipe", FLAG)
    create_stderr: bool = wire("CreateStdErrPipe", FLAG)
    create_in_uvm: bool = wire("CreateInUtilityVM", FLAG)
    oci_specification: dict[str, Any] | None = wire("OciSpecification", OBJECT)
    oci_process: dict[str, Any] | None = wire("OciProcess", OBJECT)


@dataclass(frozen=True, slots=True)
class StdioPorts:
    """The host's ports that the guest dials for a process; 0 is none."""

    stdin: int = wire("StdIn", NUMBER)
    stdout: int = wire("StdOut", NUMBER)
    stderr: int = wire("StdErr", NUMBER)


@dataclass(frozen=True, slots=True)
class ExecuteSettings:
    """What ExecuteProcess starts, and where its standard streams go."""

    parameters: ProcessParameters = wire(
        "ProcessParameters", record(ProcessParameters), embedded=True
    )
    stdio: StdioPorts = wire("VsockStdioRelaySettings", record(StdioPorts))


@dataclass(frozen=True, slots=True)
class ExecuteProcess:
    """Starts a process in the UVM, a container's init, or one more process in a container."""

    settings: ExecuteSettings = wire("Settings", record(ExecuteSettings), always=True)


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    """The answer to ExecuteProcess."""

    process_id: int = wire("ProcessId", NUMBER, always=True)


@dataclass(frozen=True, slots=True)
class WaitForProcess:
    """Asks for a process's exit code; answered once it has ended and its output is delivered."""

    process_id: int = wire("ProcessId", NUMBER, always=True)
    timeout_ms: int = wire("TimeoutInMs", NUMBER, always=True)


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """The answer to WaitForProcess: 0-255, or 128 + signal."""

    exit_code: int = wire("ExitCode", NUMBER, always=True)


@dataclass(frozen=True, slots=True)
class SignalOptions:
    """Which signal; 0 stands for SIGKILL."""

    signal: int = wire("Signal", SIGNED, always=True)


@dataclass(frozen=True, slots=True)
class SignalProcess:
    """Sends a signal to one process."""

    process_id: int = wire("ProcessId", NUMBER, always=True)
    options: SignalOptions = wire("Options", record(SignalOptions))


@dataclass(frozen=True, slots=True)
class ResizeConsole:
    """Sets a terminal's size, in characters."""

    process_id: int = wire("ProcessId", NUMBER, always=True)
    height: int = wire("Height", NUMBER, always=True)
    width: int = wire("Width", NUMBER, always=True)


@dataclass(frozen=True, slots=True)
class PropertyQuery:
    """Which properties are asked for: `ProcessList`, `Statistics`."""

    property_types: tuple[str, ...] = wire("PropertyTypes", TEXTS)


@dataclass(frozen=True, slots=True)
class GetProperties:
    """Asks for a container's properties."""

    query: PropertyQuery = wire("Query", record(PropertyQuery), embedded=True)


@dataclass(frozen=True, slots=True)
class ProcessDetails:
    """One process of a container, by its process id in the UVM."""

    process_id: int = wire("ProcessId", NUMBER, always=True)


@dataclass(frozen=True, slots=True)
class Properties:
    """What a container is doing; `statistics` is there when it was asked for."""

    process_list: tuple[ProcessDetails, ...] = wire("ProcessList", records(ProcessDetails))
    statistics: dict[str, Any] | None = wire("LCOWMetrics", OBJECT)


@dataclass(frozen=True, slots=True)
class PropertiesAnswer:
    """The answer to GetProperties."""

    properties: Properties = wire("Properties", record(Properties), embedded=True)


@dataclass(frozen=True, slots=True)
class StacksAnswer:
    """The answer to DumpStacks."""

    stacks: str = wire("GuestStacks", TEXT, always=True)


@dataclass(frozen=True, slots=True)
class ContainerNotification:
    """Sent by the guest when a container's init has ended."""

    container_id: str = wire("ContainerId", TEXT, always=True)
    activity_id: str = wire("ActivityId", TEXT)
    type: str = wire("Type", TEXT, always=True)
    operation: str = wire("Operation", TEXT, always=True)
    result: int = wire("Result", HRESULT, always=True)
    result_info: str = wire("ResultInfo", TEXT)
    """JSON inside the string; ours says `OutOfMemoryKills` where there were some."""


# -- modify settings -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceVerityInfo:
    """The dm-verity tree that follows a layer's file system on its disk; sizes in bytes.

    Newer Microsoft guests read it themselves and take the digest from their policy; the message is
    the same (hcsshim internal/protocol/guestresource).
    """

    ext4_size: int = wire("Ext4SizeInBytes", SIZE)
    version: int = wire("Version", NUMBER)
    algorithm: str = wire("Algorithm", TEXT)
    super_block: bool = wire("SuperBlock", FLAG)
    """Whether one block of superblock stands before the tree."""
    root_digest: str = wire("RootDigest", TEXT)
    salt: str = wire("Salt", TEXT)
    block_size: int = wire("BlockSize", NUMBER)


@dataclass(frozen=True, slots=True)
class MappedVirtualDisk:
    """A SCSI disk and where it is mounted; Remove gets exactly what Add got."""

    mount_path: str = wire("MountPath", TEXT)
    lun: int = wire("Lun", NUMBER)
    controller: int = wire("Controller", NUMBER)
    partition: int = wire("Partition", NUMBER)
    read_only: bool = wire("ReadOnly", FLAG)
    encrypted: bool = wire("Encrypted", FLAG)
    options: tuple[str, ...] = wire("Options", TEXTS)
    block_dev: bool = wire("BlockDev", FLAG)
    verity: DeviceVerityInfo | None = wire("VerityInfo", optional(DeviceVerityInfo))
    ensure_filesystem: bool = wire("EnsureFilesystem", FLAG)
    filesystem: str = wire("Filesystem", TEXT)


@dataclass(frozen=True, slots=True)
class ScsiDevice:
    """A SCSI disk that the host is about to detach."""

    controller: int = wire("Controller", NUMBER)
    lun: int = wire("Lun", NUMBER)


@dataclass(frozen=True, slots=True)
class ScsiDevices:
    """SCSI disks that the host is about to detach together."""

    devices: tuple[ScsiDevice, ...] = wire("Devices", records(ScsiDevice))


@dataclass(frozen=True, slots=True)
class ScsiRefusal:
    """A disk that the guest did not let go, and why."""

    controller: int = wire("Controller", NUMBER)
    lun: int = wire("Lun", NUMBER)
    result: int = wire("Result", HRESULT, always=True)
    message: str = wire("Message", TEXT, always=True)


@dataclass(frozen=True, slots=True)
class ScsiDevicesAnswer:
    """The answer to `ScsiDevices`: every disk that is not named takes no I/O any more.

    The guest may remember it for a while: the host ejects a slot again before it attaches there.
    """

    refusals: tuple[ScsiRefusal, ...] = wire("Refusals", records(ScsiRefusal))


@dataclass(frozen=True, slots=True)
class Layer:
    """One read-only layer: a directory of the guest."""

    id: str = wire("Id", TEXT)
    path: str = wire("Path", TEXT)


@dataclass(frozen=True, slots=True)
class CombinedLayers:
    """An overlay: the first layer is topmost; without a scratch path it is read-only."""

    container_id: str = wire("ContainerID", TEXT)
    container_root_path: str = wire("ContainerRootPath", TEXT)
    layers: tuple[Layer, ...] = wire("Layers", records(Layer))
    scratch_path: str = wire("ScratchPath", TEXT)


@dataclass(frozen=True, slots=True)
class Modification:
    """A change: of what kind, of which resource; `settings` is one of the classes above as JSON."""

    request_type: str = wire("RequestType", TEXT)
    resource_type: str = wire("ResourceType", TEXT)
    settings: dict[str, Any] | None = wire("Settings", OBJECT)


@dataclass(frozen=True, slots=True)
class ModifySettings:
    """Changes the UVM (null container id) or a container."""

    request: Modification = wire("Request", record(Modification), always=True)
