"""Python scripts of ours on the host: sent on standard input, nothing of them in an argv.

The interpreter is told to read a length, then that much source, then to run it; what follows on
standard input belongs to the script. So a script may be of any size, cmd.exe never sees it, and
nothing has to be installed before. A script has a function `main`, which is called with its
parameters (from JSON), standard input and standard output, both binary on every system.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Final

BOOTSTRAP: Final = (
    "import sys;exec(compile(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())),"
    "'<lcowlab>','exec'))"
)

# Behind the source, where `from __future__` lines may stand first.
_CALL: Final = """
import json, os, sys
if os.name == "nt":
    import msvcrt
    msvcrt.setmode(0, os.O_BINARY)
    msvcrt.setmode(1, os.O_BINARY)
_read = sys.stdin.buffer
main(json.loads(_read.read(int(_read.readline()))), _read, sys.stdout.buffer)
"""


def python_argv(python: str) -> tuple[str, ...]:
    """Return the argv that runs what `script_input` gives it.

    Isolated (-I): no user site, no PYTHON* variables; UTF-8 whatever the code page; unbuffered.
    """
    return (python, "-I", "-u", "-X", "utf8", "-c", BOOTSTRAP)


def load_script(name: str) -> str:
    """Return the source of a script of `harness.remote.onhost`."""
    return resources.files("harness.remote.onhost").joinpath(f"{name}.py").read_text("utf-8")


def script_input(source: str, parameters: Mapping[str, object]) -> bytes:
    """Return what to send first on standard input: `source` has a `main` to be called."""
    program = (source + _CALL).encode()
    values = json.dumps(parameters).encode()
    return b"%d\n%b%d\n%b" % (len(program), program, len(values), values)
