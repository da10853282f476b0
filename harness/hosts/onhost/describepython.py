"""What this Python is: whether it can run what we bring."""

from __future__ import annotations

import json
import pathlib
import struct
import sys
from typing import IO, Any


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Report `version`, `bits` and `embeddable` of the interpreter that runs this."""
    del parameters, source
    folder = pathlib.Path(sys.executable).parent
    values = {
        "version": list(sys.version_info[:3]),
        "bits": struct.calcsize("P") * 8,
        "embeddable": any(folder.glob("*._pth")),
    }
    report.write(json.dumps(values).encode() + b"\n")
    report.flush()
