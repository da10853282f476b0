"""Values of the pretend host as PSRP objects, and back; error records. Pure.

Source: [MS-PSRP] 2.2.5 (serialization), 2.2.3.15 (error records).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Final

from psrpcore.types import (
    ErrorCategory,
    ErrorCategoryInfo,
    ErrorRecord,
    NETException,
    PSCustomObject,
    PSInt64,
    PSNoteProperty,
    PSObject,
    PSUInt,
)

from harness.winrmd.cmdlets import CmdletError, Item, Output

_CUSTOM: Final = "System.Management.Automation.PSCustomObject"
_STOPPED: Final = (
    'The running command stopped because the preference variable "ErrorActionPreference" or '
    "common parameter is set to Stop: "
)


def to_psrp(value: Output | object) -> object:
    """Return what psrpcore serialises: properties of .NET objects are adapted ones, as on Windows.

    Integers keep the width that .NET gives them (Int32, UInt32, Int64).
    """
    if isinstance(value, Item):
        return _object(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        if -(1 << 31) <= value < 1 << 31:
            return value
        return PSUInt(value) if 0 <= value < 1 << 32 else PSInt64(value)
    if isinstance(value, list | tuple):
        return [to_psrp(each) for each in value]
    return value


def _object(item: Item) -> PSObject:
    if item.type_name == _CUSTOM:
        return PSCustomObject(**{name: to_psrp(each) for name, each in item.properties.items()})
    made = PSObject()
    made.PSObject.type_names = [item.type_name, "System.Object"]
    made.PSObject.to_string = item.type_name
    for name, each in item.properties.items():
        made.PSObject.adapted_properties.append(PSNoteProperty(name, to_psrp(each)))
    return made


def from_psrp(value: object) -> object:
    """Return a deserialised parameter as plain Python: str, int, bool, bytes, tuple, dict, None.

    What is none of these stays what it is: the parameter binder refuses it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, Mapping):
        return {str(key): from_psrp(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return tuple(from_psrp(each) for each in value)
    return value


def error_record(error: CmdletError, *, stopped: bool) -> ErrorRecord:
    """Return the record of an error.

    `stopped` is what -ErrorAction Stop makes of it: the exception is another and its text wraps
    the first, while id and category stay (System.Management.Automation.ErrorRecord's copy).
    """
    name = "ActionPreferenceStopException" if stopped else error.reason
    # HResult is an Int32 in .NET: 0x80… is negative there.
    hresult = 0x80131501 if stopped else error.hresult
    exception = NETException(
        Message=(_STOPPED if stopped else "") + error.message,
        HResult=hresult - (1 << 32) if hresult >= 1 << 31 else hresult,
    )
    exception.PSObject.type_names = [
        name if "." in name else f"System.Management.Automation.{name}",
        "System.Exception",
        "System.Object",
    ]
    return ErrorRecord(
        Exception=exception,
        CategoryInfo=ErrorCategoryInfo(
            Category=ErrorCategory[error.category],
            Reason=error.reason,
            TargetName=error.target,
            TargetType="String" if error.target else "",
        ),
        TargetObject=error.target or None,
        FullyQualifiedErrorId=error.id,
    )
