"""crun as the model plays it: containers are processes with a namespace of their own."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import errno
import json
import threading
from collections.abc import Callable, Sequence
from typing import Final

from harness.guest.system import ChildStdio, RunResult
from harness.model.files import FileSystem, Kind, Node, directory
from harness.model.namespace import Mounted, Namespace
from harness.model.process import Process, environment
from harness.model.processtable import ProcessTable

_DEV: Final = ("null", "zero", "full", "random", "urandom", "tty")


class PlayedCrun:
    """The containers of one guest, whose files and mounts are `namespace`'s."""

    def __init__(
        self, processes: ProcessTable, namespace: Callable[[], Namespace], lock: threading.RLock
    ) -> None:
        self._processes = processes
        self._namespace = namespace
        self._lock = lock
        self._containers: dict[str, Process] = {}

    def adopt(self, argv: Sequence[str], stdio: ChildStdio) -> Process | int:
        """Play `crun run` and `crun exec`: the process they leave behind, or their exit code."""
        arguments = list(argv)
        container = arguments[-1]

        def option(name: str) -> str:
            return arguments[arguments.index(name) + 1]

        own = self._namespace()
        with self._lock:
            init = "run" in arguments
            if init:
                spec = json.loads(own.read(f"{option('--bundle')}/config.json"))
                process = spec["process"]
                namespace = _container_namespace(own, spec["root"]["path"])
            else:
                process = json.loads(own.read(option("--process")))
                running = self._containers.get(container)
                if running is None or running.exit_code is not None:
                    own.write(option("--log"), b"the container is not running\n")
                    return 1
                namespace = running.namespace
            env = environment(process.get("env", []))
            cwd = process.get("cwd", "/")
            name = process["args"][0]
            if not self._processes.has_program(name, namespace, env=env, cwd=cwd):
                text = f"executable file `{name}` not found in $PATH: No such file or directory\n"
                own.write(option("--log"), text.encode())
                return 1
        started = self._processes.start(
            process["args"],
            namespace,
            env=env,
            cwd=cwd,
            stdio=stdio,
            container=container,
            init=init,
        )
        if init:
            self._containers[container] = started
        return started

    def delete(self, container: str, *, timeout_s: float) -> RunResult:
        """Play `crun delete --force`. Raises TimeoutError where a process does not end."""
        with self._lock:
            self._containers.pop(container, None)
            members = [each for each in self._processes.alive() if each.rootfs == container]
        for process in members:
            process.kill_all()
        for process in members:
            if process.wait(timeout_s) is None:
                raise TimeoutError(errno.ETIMEDOUT, f"{container} does not end")
        return RunResult(0, "")


def _container_namespace(own: Namespace, rootfs: str) -> Namespace:
    """Return the namespace of a new container: its root, and what every container has."""
    mount = own.mount_at(rootfs)
    if mount is None:
        raise OSError(errno.EINVAL, "the root of a container is no mount", rootfs)
    namespace = Namespace(Mounted("/", mount.tree, mount.source, mount.fstype, mount.device))
    devices = directory()
    for name in _DEV:
        devices.children[name] = Node(Kind.CHARACTER, 0o666, device=(1, 3))
    devices.children["shm"] = directory(0o1777)
    for target, node in (("/dev", devices), ("/proc", directory()), ("/sys", directory())):
        files = FileSystem(node, name=target, read_only=target == "/sys")
        namespace.mounts.append(Mounted(target, files, target[1:], "tmpfs", (0, 20)))
    namespace.generated["/proc/self/mountinfo"] = namespace.mountinfo
    namespace.generated["/proc/mounts"] = namespace.mountinfo
    return namespace
