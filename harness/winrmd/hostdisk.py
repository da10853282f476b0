"""What every Windows host has from the start: its folders and its environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.winrmd.config import EndpointConfig


def host_environment(config: EndpointConfig, user: str) -> Mapping[str, str]:
    """Return the variables that every new process of that user has, as Windows names them."""
    return {
        "ALLUSERSPROFILE": "C:\\ProgramData",
        "COMPUTERNAME": config.machine,
        "COMSPEC": "C:\\Windows\\system32\\cmd.exe",
        "NUMBER_OF_PROCESSORS": str(os.cpu_count() or 1),
        "OS": "Windows_NT",
        "PATH": "C:\\Windows\\system32;C:\\Windows",
        "PATHEXT": ".COM;.EXE;.BAT;.CMD",
        "PROCESSOR_ARCHITECTURE": "AMD64",
        "ProgramData": "C:\\ProgramData",
        "ProgramFiles": "C:\\Program Files",
        "PROMPT": "$P$G",
        "SystemDrive": "C:",
        "SystemRoot": "C:\\Windows",
        "TEMP": "C:\\Windows\\Temp",
        "TMP": "C:\\Windows\\Temp",
        "USERDOMAIN": config.machine,
        "USERNAME": user,
        "USERPROFILE": f"C:\\Users\\{user}",
        "windir": "C:\\Windows",
        **config.environment,
    }


def make_folders(root: Path, users: Sequence[str]) -> None:
    """Make the folders below `root` that every Windows has."""
    for name in (
        "Windows/System32",
        "Windows/Temp",
        "ProgramData",
        "Program Files",
        *(f"Users/{user}" for user in users),
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
