"""The agent's real operating system, in processes of its own: it collects every child of its own.

Mounts need root and happen in a mount namespace that goes with the process.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import os
import subprocess
import textwrap
from pathlib import Path

import pytest

from harness.guest.linux import overlay_options

PRELUDE = """
import os, sys, threading, time
from harness.guest.linux import LinuxSystem
from harness.guest.system import ChildStdio
def dial(port): raise ConnectionRefusedError(port)
system = LinuxSystem(dial)
system.start()
null = os.open("/dev/null", os.O_RDWR)
quiet = ChildStdio(null, null, null)
def spawn(*argv):
    return system.spawn(argv, cwd="/", env=dict(os.environ), stdio=quiet, terminal=False)
work = sys.argv[1]
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


def run(script: str, work: Path, *, namespace: bool = False) -> str:
    """Run a script beside a `LinuxSystem` and return what it prints."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(work)]
    if namespace:
        command = ["unshare", "--mount", "--propagation", "private", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_exit_codes_and_signals_are_exact(tmp_path: Path) -> None:
    script = """
    print(spawn("sh", "-c", "exit 7").wait(), spawn("sh", "-c", "kill -11 $$").wait())
    child = spawn("sleep", "60")
    print(child.wait(0.05), child.signal(9), child.wait(5), child.signal(9))
    try:
        spawn("/no/such")
    except FileNotFoundError:
        print("missing")
    print(spawn("true").wait(5))
    """
    assert run(script, tmp_path) == "7 139\nNone True 137 False\nmissing\n0\n"


def test_a_process_that_a_command_left_behind_is_adopted_even_if_it_has_died(
    tmp_path: Path,
) -> None:
    script = """
    leave = '''
    import os, sys, time
    pid = os.fork()
    if not pid:
        os.execvp("sh", ["sh", "-c", sys.argv[2]])
    open(sys.argv[1], "w").write(str(pid))
    time.sleep(float(sys.argv[3]))
    '''
    import textwrap
    leave = textwrap.dedent(leave)
    path = work + "/pid"
    for left, pause in (("sleep 0.2; exit 5", 0), ("exit 6", 0.2), ("kill -9 $$", 0)):
        command = [sys.executable, "-c", leave, path, left, str(pause)]
        print(system.adopt(command, pid_file=path, stdio=quiet).wait(5))
    print(system.adopt(["sh", "-c", "exit 3"], pid_file=path, stdio=quiet))
    """
    assert run(script, tmp_path) == "5\n6\n137\n3\n"


def test_a_process_whose_parent_outlives_the_command_is_waited_for(tmp_path: Path) -> None:
    script = """
    helper = 'import os,sys,time; pid = os.fork(); pid or os.execvp("sh", ["sh", "-c", "exit 8"]);'
    helper += 'open(sys.argv[1], "w").write(str(pid)); time.sleep(0.3)'
    path = work + "/pid"
    open(path, "w").close()
    command = f"'{sys.executable}' -c '{helper}' {path} & while ! test -s {path}; do :; done"
    print(system.adopt(["sh", "-c", command], pid_file=path, stdio=quiet).wait(5))
    """
    assert run(script, tmp_path) == "8\n"


def test_a_process_that_somebody_else_reaped_is_an_error_and_no_endless_wait(
    tmp_path: Path,
) -> None:
    script = """
    path = work + "/pid"
    command = ["sh", "-c", f"sh -c 'exit 6' & echo $! > {path}; wait"]
    try:
        system.adopt(command, pid_file=path, stdio=quiet)
    except ChildProcessError:
        print("not ours")
    """
    assert run(script, tmp_path) == "not ours\n"


def test_many_children_at_once_each_get_their_own_code(tmp_path: Path) -> None:
    script = """
    codes = {}
    def one(n): codes[n] = spawn("sh", "-c", f"exit {n}").wait(20)
    threads = [threading.Thread(target=one, args=(n,)) for n in range(40)]
    [t.start() for t in threads]; [t.join() for t in threads]
    print(all(codes[n] == n for n in range(40)))
    """
    assert run(script, tmp_path) == "True\n"


def test_a_command_is_run_to_its_end_or_its_deadline(tmp_path: Path) -> None:
    script = """
    result = system.run(["sh", "-c", "echo out; echo err >&2; exit 4"], timeout_s=5)
    print(result.exit_code, result.output.split())
    print(len(system.run(["seq", "100000"], timeout_s=20).output) <= 65536)
    try:
        system.run(["sleep", "60"], timeout_s=0.1)
    except TimeoutError as error:
        print(error.args[1])
    """
    assert run(script, tmp_path) == ("4 ['out', 'err']\nTrue\nsleep did not end within 0.1 s\n")


def test_files_and_directories_behave_as_the_agent_expects(tmp_path: Path) -> None:
    script = """
    print(system.make_dirs(work + "/a/b", 0o700), system.make_dirs(work + "/a/b", 0o700))
    system.write_file(work + "/a/b/f", b"0123456789")
    print(system.read_at(work + "/a/b/f", 4, 3), system.read_at(work + "/a/b/f", 0, 2))
    print(system.remove_dir(work + "/a/b"), system.remove_dir(work + "/none"))
    system.symlink(work + "/link", "/nowhere")
    print(system.exists(work + "/link"), system.list_dir(work + "/a"))
    system.remove_file(work + "/link"); system.remove_file(work + "/link")
    system.remove_tree(work + "/a"); system.remove_tree(work + "/a")
    print(system.list_dir(work))
    """
    assert run(script, tmp_path) == ("True False\nb'456' b'01'\nFalse True\nTrue ['b']\n[]\n")


def test_separators_in_overlay_paths_are_escaped() -> None:
    options = overlay_options(["/a:b", "/c,d"], upper="/u\\", work="/w")
    assert options == "lowerdir=/a\\:b:/c\\,d,upperdir=/u\\\\,workdir=/w"


@pytest.mark.root
@needs_root
def test_mounts_are_seen_and_trees_with_mounts_are_not_removed(tmp_path: Path) -> None:
    script = """
    inner = work + "/with space/inner"
    system.make_dirs(inner, 0o755)
    system.mount("t", inner, "tmpfs", 0, "size=1m")
    print(system.is_mount_point(inner), system.mounts_below(work) == [inner])
    try:
        system.remove_tree(work + "/with space")
    except OSError as error:
        print(error.strerror == inner + " is mounted below", system.is_mount_point(inner))
    print(system.remove_dir(inner))
    system.unmount(inner)
    try:
        system.unmount(inner)
    except OSError as error:
        print(error.errno)
    try:
        system.mount("t", work + "/none", "tmpfs", 0, "")
    except FileNotFoundError as error:
        print(error.filename == work + "/none")
    """
    assert run(script, tmp_path, namespace=True) == ("True True\nTrue True\nFalse\n22\nTrue\n")


@pytest.mark.root
@needs_root
def test_an_overlay_of_more_layers_than_a_page_of_options_holds(tmp_path: Path) -> None:
    script = """
    os.makedirs(work + "/t")
    system.mount("t", work + "/t", "tmpfs", 0, "")
    base = work + "/t/layers-in-a-directory-with-a-long-name"
    lower = [f"{base}/{n:03}" for n in range(400)]
    for path in lower:
        os.makedirs(path)
        open(path + "/top", "w").write(path[-3:])
        open(path + "/only" + path[-3:], "w").close()
    for name in ("upper", "work", "root"):
        os.makedirs(f"{work}/t/{name}")
    here = os.getcwd()
    system.mount_overlay(f"{work}/t/root", lower, upper=f"{work}/t/upper", work=f"{work}/t/work")
    print(open(f"{work}/t/root/top").read(), len(os.listdir(f"{work}/t/root")), os.getcwd() == here)
    """
    assert run(script, tmp_path, namespace=True) == "000 401 True\n"
