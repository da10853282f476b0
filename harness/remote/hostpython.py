"""Python scripts of ours on the host: sent on standard input, nothing of them in an argv.

The interpreter is told to read a length, then that much source, then to run it; what follows on
standard input belongs to the script. So a script may be of any size, cmd.exe never sees it, and
nothing has to be installed before. A script finds its parameters as `PARAMETERS` (from JSON) and
its streams as `INPUT` and `OUTPUT`, binary on every system.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

BOOTSTRAP: Final = (
    "import sys;exec(compile(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())),"
    "'<lcowlab>','exec'))"
)

_PRELUDE: Final = """\
import json, os, sys
INPUT, OUTPUT = sys.stdin.buffer, sys.stdout.buffer
if os.name == "nt":
    import msvcrt
    msvcrt.setmode(0, os.O_BINARY)
    msvcrt.setmode(1, os.O_BINARY)
PARAMETERS = json.loads(INPUT.read(int(INPUT.readline())))
"""


def python_argv(python: str) -> tuple[str, ...]:
    """Return the argv that runs what `script_input` gives it.

    Isolated (-I): no user site, no PYTHON* variables; UTF-8 whatever the code page; unbuffered.
    """
    return (python, "-I", "-u", "-X", "utf8", "-c", BOOTSTRAP)


def script_input(source: str, parameters: Mapping[str, object]) -> bytes:
    """Return what to send first on standard input."""
    program = (_PRELUDE + source).encode()
    values = json.dumps(parameters).encode()
    return b"%d\n%b%d\n%b" % (len(program), program, len(values), values)
