"""A Samba server of our own on a loopback port: the administrative share of a pretend host."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_PATH = os.environ.get("PATH", "") + os.pathsep + os.pathsep.join(("/usr/sbin", "/sbin"))
_START_S = 20.0


def lacking() -> str:
    """Return what these tests need and is not here; empty when all of it is."""
    for program in ("smbd", "pdbedit"):
        if shutil.which(program, path=_PATH) is None:
            return f"{program} is not installed: apt-get install samba"
    if importlib.util.find_spec("smbprotocol") is None:
        return "smbprotocol is not installed: pip install lcowlab[smb]"
    return ""


@contextlib.contextmanager
def samba(folder: Path, disk: Path, *, password: str) -> Iterator[tuple[str, int]]:
    """Serve `disk` as C$ to the user that runs the tests; give that user's name and the port."""
    user = getpass.getuser()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    for name in ("private", "lock", "state", "cache", "pid", "ncalrpc"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "smb.conf"
    configuration.write_text(
        f"""[global]
server role = standalone server
interfaces = 127.0.0.1
bind interfaces only = yes
smb ports = {port}
private dir = {folder}/private
lock directory = {folder}/lock
state directory = {folder}/state
cache directory = {folder}/cache
pid directory = {folder}/pid
ncalrpc dir = {folder}/ncalrpc
log file = {folder}/log
disable spoolss = yes
load printers = no
server min protocol = SMB3
smb encrypt = required
passdb backend = tdbsam:{folder}/private/passdb.tdb
[C$]
path = {disk}
read only = no
"""
    )
    environment = {**os.environ, "PATH": _PATH}
    subprocess.run(
        ["pdbedit", "-s", configuration, "-t", "-a", "-u", user],
        input=f"{password}\n{password}\n",
        text=True,
        check=True,
        capture_output=True,
        env=environment,
    )
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            ["smbd", "-F", "--no-process-group", "-s", configuration, "--debug-stdout"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert process.poll() is None, (folder / "out").read_text()
            assert time.monotonic() < deadline, (folder / "out").read_text()
            time.sleep(0.05)
        yield user, port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
