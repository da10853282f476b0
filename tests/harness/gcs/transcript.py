"""A container's life as hcsshim's host asks for it and Microsoft's Linux guest answers it.

Written by hand from the structures of hcsshim's `internal/gcs/prot`, `internal/guest/prot` and
`internal/protocol/guestresource`: the order of fields is that of the Go structures, empty fields
are there or not as their tags say. Both of our ends are held against it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from harness.gcs.prot import Request

POD = "/run/gcs/c/pod"
CONTAINER = "c1"
ZERO = "00000000-0000-0000-0000-000000000000"
_UVM = f'"ContainerId":"{ZERO}","ActivityId":"{ZERO}"'
_C1 = f'"ContainerId":"{CONTAINER}","ActivityId":"{ZERO}"'
_OK = f'{{"Result":0,"ActivityId":"{ZERO}"}}'
_LAYER = '{"MountPath":"/run/mounts/scsi/m0","Lun":1,"ReadOnly":true,"Options":["ro"]}'
_SCRATCH = (
    f'{{"MountPath":"{POD}","Lun":3,"Controller":1,"EnsureFilesystem":true,"Filesystem":"ext4"}}'
)
_ROOT = f"/run/gcs/c/{CONTAINER}/rootfs"
_LAYERS = (
    f'{{"ContainerID":"{CONTAINER}","ContainerRootPath":"{_ROOT}",'
    f'"Layers":[{{"Path":"/run/mounts/scsi/m0"}}],"ScratchPath":"{POD}/scratch/{CONTAINER}"}}'
)
_CONFIG = json.dumps(
    {
        "SchemaVersion": {"Major": 2, "Minor": 1},
        "OciBundlePath": f"/run/gcs/c/{CONTAINER}",
        "OciSpecification": {
            "ociVersion": "1.0.2",
            "process": {"args": ["sh", "-c", "exec sleep 60"], "cwd": "/"},
            "root": {"path": _ROOT},
        },
        "ScratchDirPath": f"{POD}/scratch/{CONTAINER}",
    },
    separators=(",", ":"),
)


@dataclass(frozen=True)
class Exchange:
    """What is asked, and what is answered; `$PID` stands for the id of the process started last."""

    request: Request
    asked: str
    answered: str = _OK


def _modify(kind: str, resource: str, settings: str) -> str:
    change = f'{{"RequestType":"{kind}","ResourceType":"{resource}","Settings":{settings}}}'
    return f'{{{_UVM},"Request":{change}}}'


def _execute(container: str, parameters: str, ports: str) -> str:
    text = json.dumps(parameters)
    settings = f'"ProcessParameters":{text},"VsockStdioRelaySettings":{ports}'
    return f'{{{container},"Settings":{{{settings}}}}}'


_STARTED = f'{{"Result":0,"ActivityId":"{ZERO}","ProcessId":$PID}}'
NEGOTIATE = Exchange(
    Request.NEGOTIATE_PROTOCOL,
    f'{{{_UVM},"MinimumVersion":4,"MaximumVersion":4}}',
    f'{{"Result":0,"ActivityId":"{ZERO}","Version":4,"Capabilities":{{'
    '"SupportedSchemaVersions":[{"Major":2,"Minor":1}],"RuntimeOsType":"Linux",'
    '"GuestDefinedCapabilities":{"SignalProcessSupported":true,"DumpStacksSupported":true,'
    '"DeleteContainerStateSupported":true}}}',
)
MOUNT_LAYER = Exchange(Request.MODIFY_SETTINGS, _modify("Add", "MappedVirtualDisk", _LAYER))
MOUNT_SCRATCH = Exchange(Request.MODIFY_SETTINGS, _modify("Add", "MappedVirtualDisk", _SCRATCH))
COMBINE = Exchange(Request.MODIFY_SETTINGS, _modify("Add", "CombinedLayers", _LAYERS))
CREATE = Exchange(Request.CREATE, f'{{{_C1},"ContainerConfig":{json.dumps(_CONFIG)}}}')
START = Exchange(Request.START, f"{{{_C1}}}")
EXECUTE_INIT = Exchange(
    Request.EXECUTE_PROCESS,
    _execute(
        _C1,
        '{"CreateStdOutPipe":true,"CreateStdErrPipe":true}',
        '{"StdOut":1073741825,"StdErr":1073741826}',
    ),
    _STARTED,
)
PROPERTIES = Exchange(
    Request.GET_PROPERTIES,
    f'{{{_C1},"Query":"{{\\"PropertyTypes\\":[\\"ProcessList\\"]}}"}}',
    f'{{"Result":0,"ActivityId":"{ZERO}",'
    '"Properties":"{\\"ProcessList\\":[{\\"ProcessId\\":77}]}"}',
)
RESIZE_REFUSED = Exchange(
    Request.RESIZE_CONSOLE,
    f'{{{_C1},"ProcessId":$PID,"Height":24,"Width":80}}',
    f'{{"Result":-2143878907,"ActivityId":"{ZERO}","ErrorMessage":"process $PID has no terminal",'
    '"ErrorRecords":[{"Result":-2143878907,"Message":"process $PID has no terminal",'
    '"ModuleName":"gcs"}]}',
)
SIGNAL = Exchange(Request.SIGNAL_PROCESS, f'{{{_C1},"ProcessId":$PID,"Options":{{"Signal":15}}}}')
WAIT = Exchange(
    Request.WAIT_FOR_PROCESS,
    f'{{{_C1},"ProcessId":$PID,"TimeoutInMs":4294967295}}',
    f'{{"Result":0,"ActivityId":"{ZERO}","ExitCode":143}}',
)
EXITED = (
    f'{{"ContainerId":"{CONTAINER}","ActivityId":"{ZERO}","Type":"UnexpectedExit",'
    '"Operation":"None","Result":0}'
)
UNCOMBINE = Exchange(Request.MODIFY_SETTINGS, _modify("Remove", "CombinedLayers", _LAYERS))
DELETE = Exchange(Request.DELETE_CONTAINER_STATE, f"{{{_C1}}}")
DELETE_AGAIN = Exchange(
    Request.DELETE_CONTAINER_STATE,
    f"{{{_C1}}}",
    f'{{"Result":-1070137074,"ActivityId":"{ZERO}","ErrorMessage":"no container {CONTAINER}",'
    f'"ErrorRecords":[{{"Result":-1070137074,"Message":"no container {CONTAINER}",'
    '"ModuleName":"gcs"}]}',
)
UNMOUNT_SCRATCH = Exchange(
    Request.MODIFY_SETTINGS, _modify("Remove", "MappedVirtualDisk", _SCRATCH)
)
UNMOUNT_LAYER = Exchange(Request.MODIFY_SETTINGS, _modify("Remove", "MappedVirtualDisk", _LAYER))
EJECT = Exchange(
    Request.MODIFY_SETTINGS, _modify("Remove", "SCSIDevice", '{"Controller":1,"Lun":3}')
)
EXECUTE_IN_UVM = Exchange(
    Request.EXECUTE_PROCESS,
    _execute(
        _UVM,
        '{"CommandArgs":["sleep","60"],"WorkingDirectory":"/","Environment":{"A":"b"},'
        '"CreateInUtilityVm":true}',
        "{}",
    ),
    _STARTED,
)
"""The host's structure says `CreateInUtilityVm`, the guest's `CreateInUtilityVM`: Go takes both."""
KILL_IN_UVM = Exchange(Request.SIGNAL_PROCESS, f'{{{_UVM},"ProcessId":$PID,"Options":{{}}}}')
"""No signal is SIGKILL."""
WAIT_IN_UVM = Exchange(
    Request.WAIT_FOR_PROCESS,
    f'{{{_UVM},"ProcessId":$PID,"TimeoutInMs":4294967295}}',
    f'{{"Result":0,"ActivityId":"{ZERO}","ExitCode":137}}',
)
STACKS = Exchange(
    Request.DUMP_STACKS,
    f"{{{_UVM}}}",
    f'{{"Result":0,"ActivityId":"{ZERO}","GuestStacks":"$TEXT"}}',
)
UNKNOWN = Exchange(
    Request.LIFECYCLE_NOTIFICATION,
    f"{{{_UVM}}}",
    f'{{"Result":-1070137077,"ActivityId":"{ZERO}","ErrorMessage":"unknown request 0x10100f01",'
    '"ErrorRecords":[{"Result":-1070137077,"Message":"unknown request 0x10100f01",'
    '"ModuleName":"gcs"}]}',
)
