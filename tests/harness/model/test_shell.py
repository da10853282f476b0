"""The model's shell against this machine's own: the same scripts, the same words and codes."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import itertools
import subprocess
import threading
from pathlib import Path

import pytest

from harness.model.applets import APPLETS
from harness.model.files import FileSystem, Kind, Node, directory
from harness.model.namespace import Mounted, Namespace
from harness.model.process import Buffer, Ended, Process, Streams
from harness.model.shell import run_command


def played(script: str) -> tuple[int, str]:
    """Run a script in the model and return its code and output."""
    root = FileSystem(directory(), name="root")
    for folder in ("/bin", "/dev", "/work"):
        root.put(folder, directory())
    root.put("/dev/null", Node(Kind.CHARACTER, 0o666, device=(1, 3)))
    for name in ("sh", *APPLETS):
        root.put(f"/bin/{name}", Node(Kind.FILE, 0o755))
    output = Buffer()
    process = Process(
        pid=1000,
        namespace=Namespace(Mounted("/", root)),
        streams=Streams(Buffer(), output, Buffer()),
        env={"PATH": "/bin"},
        cwd="/work",
        argv=("sh", "-c", script),
        lock=threading.RLock(),
        pids=itertools.count(1001),
        shown_pid=1000,
    )
    try:
        code = run_command(process)
    except Ended as ended:
        code = ended.code
    return code, output.data.decode()


SCRIPTS = (
    "echo a  b 'c  d' \"e  f\"",
    "x=1; echo $x ${x} \"$x\" '$x'",
    "true && echo yes || echo no",
    "false && echo yes || echo no",
    "echo a; exit 3",
    "(exit 4); echo $?",
    "! false; echo $?",
    "for i in 1 2 3; do echo $i; done",
    "for i in $(seq 1 4); do [ $i -eq 3 ] && break; echo $i; done",
    "n=0; while [ $n -lt 3 ]; do n=$((n+1)); echo $n; done",
    "n=2; until [ $n -eq 0 ]; do n=$((n-1)); done; echo $n $((2*(3+4)/2%5))",
    "if [ -e none ]; then echo there; elif true; then echo second; else echo last; fi",
    "echo one > f; echo two >> f; cat f; wc -l < f",
    "mkdir -p a/b && echo x > a/b/c && ls a && cat a/b/c && rm -rf a && ls",
    "ln -s target link; [ -L link ] && echo link; echo data > target; cat link",
    "echo out; echo err >&2",
    "cat missing 2>/dev/null; echo $?",
    "cat missing 2>/dev/null || exit 9",
    "echo a b c | wc -c",
    "{ echo 1; echo 2; } > f; cat f",
    "cd /; cd work; echo here > f; cat /work/f",
    "x=$(echo inner); echo \"<$x>\"",
    "touch b a; for f in *; do echo $f; done",
    "trap 'echo bye; exit 5' TERM; echo ready",
    "sleep 0.01 & wait $!; echo $?",
    "[ a = a ] && [ a != b ] && [ -n x ] && [ -z '' ] && echo good",
    "dd if=/dev/zero of=z bs=1k count=3 2>/dev/null; wc -c < z",
    "printf 'a%sc\\n' b",
    "exec echo done; echo never",
)  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_does_what_it_does_in_the_shell_of_this_machine(
    script: str, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    real = script.replace("/work", str(work)).replace("cd /; cd work", f"cd /; cd {work}")
    done = subprocess.run(
        ["sh", "-c", real], cwd=work, capture_output=True, text=True, timeout=10, check=False
    )
    assert played(script) == (done.returncode, done.stdout)


def test_what_the_model_does_not_play_says_so() -> None:
    code, _ = played("awk 1")
    assert code == 127
    assert played("case x in x) echo a;; esac")[0] == 2
