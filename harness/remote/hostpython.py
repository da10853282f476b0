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
_parameters = json.loads(_read.read(int(_read.readline())))
_parameters.update(each.split("=", 1) for each in sys.argv[1:])
main(_parameters, _read, sys.stdout.buffer)
"""


def python_argv(
    python: str, paths: Mapping[str, str] | None = None, *, packages: bool = False
) -> tuple[str, ...]:
    """Return the argv that runs what `script_input` gives it.

    `paths` are parameters as well: paths of the host stay visible in the argv, where a pretend
    host finds them and knows what they mean on its disk.

    Isolated (-I): no user site, no PYTHON* variables; UTF-8 whatever the code page; unbuffered.
    Without `packages` there is no `site` (-S): scripts import the standard library alone, and it
    starts sooner.
    """
    named = (f"{name}={path}" for name, path in (paths or {}).items())
    site = () if packages else ("-S",)
    return (python, "-I", *site, "-u", "-X", "utf8", "-c", BOOTSTRAP, *named)


def load_script(name: str) -> str:
    """Return the source of a script of `harness.remote.onhost`."""
    return resources.files("harness.remote.onhost").joinpath(f"{name}.py").read_text("utf-8")


def script_input(source: str, parameters: Mapping[str, object]) -> bytes:
    """Return what to send first on standard input: `source` has a `main` to be called."""
    program = (source + _CALL).encode()
    values = json.dumps(parameters).encode()
    return b"%d\n%b%d\n%b" % (len(program), program, len(values), values)
