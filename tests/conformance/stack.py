"""A real containerd with our service as its proxy plugin, in one folder; nothing outside of it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PLUGIN = "lcow"
NAMESPACE = "test"

_DEADLINE_S = 30.0
_CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "{folder}/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"

[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "{first_collection}"

"""
_PROXY = """\
[proxy_plugins.{name}]
  type = "snapshot"
  address = "{socket}"

"""


def missing_programs() -> str | None:
    """Why there is no containerd here; None where there is one."""
    absent = [name for name in ("containerd", "ctr") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)}: apt-get install containerd" if absent else None


class Daemon:
    """A process that a test starts, stops and kills; its output goes to a file."""

    def __init__(self, command: Sequence[str], log: Path, socket: Path) -> None:
        self._command = command
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = socket

    def start(self) -> None:
        """Start it, and return when its socket takes calls."""
        self.socket.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + _DEADLINE_S
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self._command[0]} did not start:\n{self.log()}")
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def log(self) -> str:
        """What it said so far, the end of it."""
        return self._log.read_text(errors="replace")[-8000:]

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self._command[0]} does not end:\n{self.log()}") from None


class Stack:
    """containerd, the service, and `ctr`."""

    def __init__(
        self,
        folder: Path,
        mounts: str,
        proxies: dict[str, Path],
        *,
        first_collection: str = "100ms",
    ) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.service = Daemon(
            [
                *(str(Path(sys.executable).with_name("lcow-snapshotter")), "serve"),
                *("--root", str(self.store), "--mounts", mounts),
                *("--address", f"unix://{folder}/{PLUGIN}.sock"),
                *("--config", str(folder / "service.toml")),
            ],
            folder / "service.log",
            folder / f"{PLUGIN}.sock",
        )
        (folder / "service.toml").write_text(
            f'[containerd]\naddress = "unix://{folder}/containerd.sock"\n'
        )
        config = folder / "config.toml"
        config.write_text(
            _CONFIG.format(folder=folder, first_collection=first_collection)
            + "".join(
                _PROXY.format(name=name, socket=socket)
                for name, socket in {PLUGIN: self.service.socket, **proxies}.items()
            )
        )
        self.containerd = Daemon(
            ["containerd", "--config", str(config), "--log-level", "warn"],
            folder / "containerd.log",
            folder / "containerd.sock",
        )

    @classmethod
    @contextlib.contextmanager
    def running(
        cls,
        folder: Path,
        *,
        mounts: str,
        proxies: dict[str, Path] | None = None,
        first_collection: str = "100ms",
    ) -> Iterator[Stack]:
        """Yield a stack that runs; `proxies` are further proxy plugins by name.

        `first_collection` is when containerd collects garbage after its start; with `0s` it does
        so only after something was removed.
        """
        stack = cls(folder, mounts, proxies or {}, first_collection=first_collection)
        try:
            stack.service.start()
            stack.containerd.start()
            yield stack
            assert stack.containerd.stop() == 0, stack.containerd.log()
            assert stack.service.stop() == 0, stack.service.log()
        finally:
            # A killed service leaves its mounts to the next one; here there is none.
            stack.containerd.stop()
            stack.service.stop()

    def ctr(self, *arguments: str, fails: bool = False) -> str:
        """What `ctr` prints; with `fails`, its error."""
        command = ["ctr", "-a", str(self.containerd.socket), "-n", NAMESPACE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if (done.returncode != 0) is not fails:
            raise AssertionError(
                f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}\n"
                f"{self.containerd.log()}\n{self.service.log()}"
            )
        return done.stderr if fails else done.stdout

    def snapshots(self, *arguments: str, fails: bool = False) -> str:
        """`ctr snapshots` on our plugin."""
        return self.ctr("snapshots", "--snapshotter", PLUGIN, *arguments, fails=fails)

    def table(self) -> dict[str, tuple[str, str]]:
        """`ctr snapshots ls`: key to (parent, kind)."""
        rows = [line.split() for line in self.snapshots("ls").splitlines()[1:]]
        return {row[0]: (row[1] if len(row) == 3 else "", row[-1]) for row in rows}

    def until_answers(self) -> None:
        """Return when containerd has found the service again."""
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                self.snapshots("ls")
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return
