"""Registry, files, access control lists and the WSMan: drive, through the item commands."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, get_args

from harness.winrmd.acl import NAMES
from harness.winrmd.cmdlets.binding import Bound, Cmdlet, CmdletError, Item, Output
from harness.winrmd.host import BadPathError, find_key, registry_path
from harness.winrmd.hoststate import HostState, RegistryData, RegistryKey, RegistryType

_REGISTRY: Final = ("hklm:", "hkey_local_machine\\", "hklm\\", "registry::")
_WSMAN: Final = "wsman:\\localhost\\"
_HASHES: Final = {"SHA1": "sha1", "SHA256": "sha256", "SHA384": "sha384", "SHA512": "sha512"}
_KINDS: Final[Mapping[str, RegistryType]] = {kind.lower(): kind for kind in get_args(RegistryType)}
_EXISTS: Final = {"directory": "DirectoryExist", "file": "NewItemIOError"}
_RUN: Final = "Microsoft.PowerShell.Commands."


def _is_registry(path: str) -> bool:
    return path.lower().startswith(_REGISTRY)


def _local(call: Bound, path: str, command: str) -> Path:
    try:
        return call.host.local_path(path)
    except BadPathError as error:
        drive = path.partition(":")[0]
        raise CmdletError(
            f"Cannot find drive. A drive with the name '{drive}' does not exist."
            if ":" in path
            else str(error),
            id=f"DriveNotFound,{_RUN}{command}",
            category="ObjectNotFound",
            reason="DriveNotFoundException",
            target=drive,
        ) from error


def _missing(path: str, command: str) -> CmdletError:
    return CmdletError(
        f"Cannot find path '{path}' because it does not exist.",
        id=f"PathNotFound,{_RUN}{command}",
        category="ObjectNotFound",
        reason="ItemNotFoundException",
        target=path,
    )


def _test_path(call: Bound) -> Iterator[Output]:
    for path in call.texts("LiteralPath"):
        if _is_registry(path):
            yield _exists(call.host.read(), path)
        else:
            try:
                yield os.path.lexists(call.host.local_path(path))
            except BadPathError:
                yield False


def _exists(state: HostState, path: str) -> bool:
    """Return whether a key exists, or one below it: the keys between are not kept."""
    wanted = registry_path(path).lower()
    return any(
        each.lower() == wanted or each.lower().startswith(wanted + "\\") for each in state.registry
    )


def _provider_path(call: Bound, path: str) -> str:
    if _is_registry(path):
        inner = registry_path(path).removeprefix("HKLM:\\")
        return f"Microsoft.PowerShell.Core\\Registry::HKEY_LOCAL_MACHINE\\{inner}"
    return f"Microsoft.PowerShell.Core\\FileSystem::{call.host.windows_path(path)}"


def _get_item_property(call: Bound) -> Iterator[Output]:
    command = "GetItemPropertyCommand"
    for path in call.texts("LiteralPath"):
        state = call.host.read()
        if not _is_registry(path) or not _exists(state, path):
            raise _missing(path, command)
        found = find_key(state, path)
        values = state.registry[found].values if found else {}
        names = call.texts("Name") if call.has("Name") else tuple(values)
        shown: dict[str, object] = {}
        for name in names:
            spelled = _spelled(values, name)
            if spelled is None:
                raise _no_property(name, path, command)
            kind, data = values[spelled]
            shown[spelled] = bytes.fromhex(str(data)) if kind == "Binary" else data
        if not names:
            continue  # a key without values puts out nothing
        shown["PSPath"] = _provider_path(call, path)
        yield Item("System.Management.Automation.PSCustomObject", shown)


def _spelled(values: Mapping[str, object], name: str) -> str | None:
    return next((each for each in values if each.lower() == name.lower()), None)


def _set_item_property(call: Bound) -> Iterable[Output]:
    for path in call.texts("LiteralPath"):
        with call.host.change() as state:
            if not _is_registry(path) or not _exists(state, path):
                raise _missing(path, "SetItemPropertyCommand")
            found = find_key(state, path) or registry_path(path)
            values = state.registry.setdefault(found, RegistryKey()).values
            name = _spelled(values, call.text("Name")) or call.text("Name")
            given = call.text("Type") if call.has("Type") else ""
            values[name] = _typed(call, given, values.get(name), call.raw("Value"))
    return ()


def _remove_item_property(call: Bound) -> Iterable[Output]:
    command = "RemoveItemPropertyCommand"
    for path in call.texts("LiteralPath"):
        with call.host.change() as state:
            if not _is_registry(path) or not _exists(state, path):
                raise _missing(path, command)
            found = find_key(state, path)
            values = state.registry[found].values if found else {}
            for name in call.texts("Name"):
                spelled = _spelled(values, name)
                if spelled is None:
                    raise _no_property(name, path, command)
                del values[spelled]
    return ()


def _no_property(name: str, path: str, command: str) -> CmdletError:
    inner = registry_path(path).removeprefix("HKLM:\\")
    return CmdletError(
        f"Property {name} does not exist at path HKEY_LOCAL_MACHINE\\{inner}.",
        id=f"System.Management.Automation.PSArgumentException,{_RUN}{command}",
        category="InvalidArgument",
        reason="PSArgumentException",
        target=name,
    )


def _typed(
    call: Bound, given: str, present: tuple[RegistryType, RegistryData] | None, value: object
) -> tuple[RegistryType, RegistryData]:
    """Return the value as its type asks; without one it keeps what it has, else by its own."""
    guess: RegistryType = "DWord" if isinstance(value, int) else "String"
    if isinstance(value, tuple):
        guess = "MultiString"
    kind = _KINDS.get(given.lower()) if given else present[0] if present else guess
    try:
        if kind in ("DWord", "QWord"):
            number = int(value) if isinstance(value, int | str) else int("")
            bits = 32 if kind == "DWord" else 64
            if not -(1 << (bits - 1)) <= number < 1 << bits:
                raise ValueError(number)
            return kind, number & ((1 << bits) - 1)
        if kind == "MultiString":
            return kind, [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
        if kind in ("String", "ExpandString"):
            return kind, " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    except ValueError:
        pass
    raise CmdletError(
        "The type of the value does not match the specified type, or no such type is known: "
        f"{given or kind} for {call.text('Name')}.",
        id=f"System.ArgumentException,{_RUN}SetItemPropertyCommand",
        category="WriteError",
        reason="ArgumentException",
        target=call.text("Name"),
    )


def _new_item(call: Bound) -> Iterator[Output]:
    command = "NewItemCommand"
    for path in call.texts("Path"):
        if _is_registry(path):
            yield _new_key(call, path, command)
            continue
        local = _local(call, path, command)
        kind = call.text("ItemType").lower()
        if kind not in ("directory", "file"):
            raise CmdletError(
                f"The type is not a known type for the file system: '{kind}'. Only \"file\" or "
                '"directory" can be specified.',
                id=f"Argument,{_RUN}{command}",
                category="InvalidArgument",
                reason="ArgumentException",
            )
        if os.path.lexists(local) and not (kind == "directory" and call.switch("Force")):
            raise CmdletError(
                f"An item with the specified name {call.host.windows_path(path)} already exists.",
                id=f"{_EXISTS[kind]},{_RUN}{command}",
                category="ResourceExists",
                reason="IOException",
                target=call.host.windows_path(path),
            )
        if kind == "directory":
            local.mkdir(parents=True, exist_ok=True)
        else:
            local.touch()
        name = "DirectoryInfo" if kind == "directory" else "FileInfo"
        yield Item(
            f"System.IO.{name}",
            {"FullName": call.host.windows_path(path), "PSPath": _provider_path(call, path)},
        )


def _new_key(call: Bound, path: str, command: str) -> Item:
    with call.host.change() as state:
        found = find_key(state, path)
        if _exists(state, path) and not call.switch("Force"):
            raise CmdletError(
                "A key in this path already exists.",
                id=f"System.IO.IOException,{_RUN}{command}",
                category="ResourceExists",
                reason="IOException",
                target=path,
            )
        # -Force makes the key anew: its values are gone (and its subkeys, which we refuse to lose).
        state.registry[found or registry_path(path)] = RegistryKey()
    return Item("Microsoft.Win32.RegistryKey", {"PSPath": _provider_path(call, path)})


def _set_item(call: Bound) -> Iterable[Output]:
    for path in call.texts("LiteralPath"):
        name = path[len(_WSMAN) :] if path.lower().startswith(_WSMAN) else ""
        with call.host.change() as state:
            spelled = _spelled(state.wsman, name)
            if spelled is None:
                raise _missing(path, "SetItemCommand")
            state.wsman[spelled] = call.text("Value")
        if spelled.startswith("Shell\\"):
            call.streams.warning(
                "The updated configuration might affect the operation of the plugins having a per "
                f"plugin quota value greater than {call.text('Value')}. Verify the configuration "
                "of all the registered plugins and change the per plugin quota values for the "
                "affected plugins."
            )
    return ()


def _get_acl(call: Bound) -> Iterator[Output]:
    for path in call.texts("LiteralPath"):
        _local(call, path, "GetAclCommand")
        try:
            found = call.host.acl(path)
        except FileNotFoundError as error:
            raise _missing(path, "GetAclCommand") from error
        yield Item(
            "System.Security.AccessControl.DirectorySecurity",
            {
                "Path": _provider_path(call, path),
                "Owner": NAMES.get(found.owner, f"O:{found.owner}"),
                "Sddl": found.sddl,
                "AreAccessRulesProtected": found.protected,
            },
        )


def _add_content(call: Bound) -> Iterable[Output]:
    command = "AddContentCommand"
    if call.text("Encoding").lower() != "byte":
        raise CmdletError(
            "Cannot proceed with byte encoding. When using byte encoding the content must be of "
            "type byte.",
            id=f"System.Exception,{_RUN}{command}",
            category="InvalidArgument",
        )
    value = call.raw("Value")
    assert isinstance(value, bytes)
    for path in call.texts("LiteralPath"):
        local = _local(call, path, command)
        if not local.parent.is_dir():
            raise CmdletError(
                f"Could not find a part of the path '{call.host.windows_path(path)}'.",
                id=f"GetContentWriterDirectoryNotFoundError,{_RUN}{command}",
                category="ObjectNotFound",
                reason="DirectoryNotFoundException",
                target=call.host.windows_path(path),
            )
        with local.open("ab") as stream:
            stream.write(value)
    return ()


def _get_file_hash(call: Bound) -> Iterator[Output]:
    algorithm = call.text("Algorithm").upper()
    if algorithm not in _HASHES:
        raise CmdletError(
            f"Cannot validate argument on parameter 'Algorithm'. \"{algorithm}\" is no member of "
            f'the set "{",".join(_HASHES)}".',
            id="ParameterArgumentValidationError,Get-FileHash",
            category="InvalidData",
            reason="ParameterBindingValidationException",
            terminating=True,
        )
    for path in call.texts("LiteralPath"):
        local = _local(call, path, "GetFileHashCommand")
        if not local.is_file():
            raise CmdletError(
                f"Cannot find path '{call.host.windows_path(path)}' because it does not exist.",
                id="FileNotFound,Get-FileHash",
                category="ObjectNotFound",
                reason="ItemNotFoundException",
                target=call.host.windows_path(path),
            )
        with local.open("rb") as stream:
            digest = hashlib.file_digest(stream, _HASHES[algorithm]).hexdigest().upper()
        yield Item(
            "Microsoft.Powershell.Utility.FileHash",
            {"Algorithm": algorithm, "Hash": digest, "Path": call.host.windows_path(path)},
        )


def _expand_archive(call: Bound) -> Iterable[Output]:
    command = "Expand-Archive"
    source = _local(call, call.text("LiteralPath"), command)
    target = _local(call, call.text("DestinationPath"), command)
    if not source.is_file():
        raise CmdletError(
            f"The path '{call.text('LiteralPath')}' either does not exist or is not a valid file "
            "system path.",
            id=f"ArchiveCmdletPathNotFound,{command}",
            category="InvalidArgument",
            reason="ArgumentException",
            terminating=True,
        )
    try:
        with zipfile.ZipFile(source) as archive:
            names = [info for info in archive.infolist() if not info.is_dir()]
            folder = call.text("DestinationPath").rstrip("\\")
            places = [_local(call, f"{folder}\\{info.filename}", command) for info in names]
            if any(not place.is_relative_to(target) for place in places):
                raise zipfile.BadZipFile("an entry leads out of the destination")
            present = [place for place in places if place.exists()]
            if present and not call.switch("Force"):
                raise CmdletError(
                    f"Failed to create file '{present[0]}' while expanding the archive file "
                    "contents as the file already exists. Use the -Force parameter if you want to "
                    "overwrite the existing files.",
                    id=f"ExpandArchiveFileExists,{command}",
                    category="InvalidOperation",
                    reason="IOException",
                )
            target.mkdir(parents=True, exist_ok=True)
            for number, (info, place) in enumerate(zip(names, places, strict=True)):
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as packed, place.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                if info.external_attr >> 16 & 0o111:
                    # A zip made on Unix keeps the mode: a stand-in program must stay runnable.
                    place.chmod(0o755)
                call.streams.progress(command, 100 * (number + 1) // len(names))
                if call.streams.stopped():
                    return ()
    except zipfile.BadZipFile as error:
        raise CmdletError(
            f"The archive file '{call.text('LiteralPath')}' is damaged: {error}",
            id=f"InvalidArchiveFilePath,{command}",
            category="InvalidArgument",
            reason="InvalidDataException",
            terminating=True,
        ) from error
    return ()


CMDLETS: Final = (
    Cmdlet("Test-Path", _test_path, {"LiteralPath": "texts"}),
    Cmdlet("Get-ItemProperty", _get_item_property, {"LiteralPath": "texts"}, {"Name": "texts"}),
    Cmdlet(
        "Set-ItemProperty",
        _set_item_property,
        {"LiteralPath": "texts", "Name": "text", "Value": "scalar"},
        {"Type": "text"},
    ),
    Cmdlet("Remove-ItemProperty", _remove_item_property, {"LiteralPath": "texts", "Name": "texts"}),
    Cmdlet("New-Item", _new_item, {"Path": "texts"}, {"ItemType": "text", "Force": "switch"}),
    Cmdlet("Set-Item", _set_item, {"LiteralPath": "texts", "Value": "scalar"}, {"Force": "switch"}),
    Cmdlet("Get-Acl", _get_acl, {"LiteralPath": "texts"}),
    Cmdlet(
        "Add-Content",
        _add_content,
        {"LiteralPath": "texts", "Value": "bytes", "Encoding": "text"},
        pipeline="Value",
    ),
    Cmdlet("Get-FileHash", _get_file_hash, {"LiteralPath": "texts", "Algorithm": "text"}),
    Cmdlet(
        "Expand-Archive",
        _expand_archive,
        {"LiteralPath": "text", "DestinationPath": "text"},
        {"Force": "switch"},
    ),
)
