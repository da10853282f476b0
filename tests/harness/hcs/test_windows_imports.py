"""What a Windows host imports needs nothing of POSIX: seen by importing it, and noting who asks."""

from __future__ import annotations

import json
import subprocess
import sys

# Chosen by sys.platform where they are imported.
POSIX_TWINS = {"snapshotter.blockio.posix", "snapshotter.blockio.lock"}

PROGRAM = """
import builtins, importlib, json, sys

POSIX = {"fcntl", "pwd", "grp", "termios", "resource", "tty", "pty"}
asked = []
genuine = builtins.__import__

def noting(name, globals=None, locals=None, fromlist=(), level=0):
    who = (globals or {}).get("__name__", "")
    if level == 0 and name.split(".")[0] in POSIX and who.startswith(("harness.", "snapshotter.")):
        asked.append(who)
    return genuine(name, globals, locals, fromlist, level)

builtins.__import__ = noting
for name in ("harness.smoke", "harness.cli.app", "harness.pytest_plugin", "harness.hcs.hcsservice"):
    importlib.import_module(name)
linux = [
    name
    for name, module in sys.modules.items()
    if name.startswith("harness.")
    and getattr(module, "__file__", None)
    and 'assert sys.platform == "linux"' in open(module.__file__, encoding="utf-8").read()
]
print(json.dumps({"asked": asked, "linux": linux}))
"""


def test_command_lab_and_smoke_import_nothing_of_posix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(done.stdout)
    assert set(found["asked"]) <= POSIX_TWINS
    assert found["linux"] == []
