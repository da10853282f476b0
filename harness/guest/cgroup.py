"""What a container's cgroup (version 2) says: its processes and what they use."""

from __future__ import annotations

from harness.guest.system import GuestSystem

_ROOT = "/sys/fs/cgroup"
_FILE_MAX = 1 << 20


def of_process(system: GuestSystem, pid: int) -> str | None:
    """Return the directory of a process's cgroup; None for the root one or a process that ended."""
    for line in _read(system, f"/proc/{pid}/cgroup").splitlines():
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0" and path != "/":
            return _ROOT + path
    return None


def processes(system: GuestSystem, group: str) -> list[int]:
    """Return the ids of the processes in a cgroup and the ones below it, in no order."""
    found = [int(pid) for pid in _read(system, f"{group}/cgroup.procs").split()]
    try:
        names = system.list_dir(group)
    except OSError:
        return found  # the container has just ended
    for name in names:
        if system.exists(f"{group}/{name}/cgroup.procs"):
            found += processes(system, f"{group}/{name}")
    return found


def out_of_memory_kills(system: GuestSystem, group: str) -> int:
    """Return how many processes of a cgroup the kernel killed for its memory limit."""
    for line in _read(system, f"{group}/memory.events").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.isdigit():
            return int(count)
    return 0


def statistics(system: GuestSystem, group: str) -> dict[str, object]:
    """Return memory in bytes and kills for want of it, CPU time in ns and the count of processes.

    The names are those of containerd's cgroup metrics, which hcsshim's guest sends.
    """
    fields = [line.split() for line in _read(system, f"{group}/cpu.stat").splitlines()]
    microseconds = {field[0]: int(field[1]) for field in fields if len(field) == 2}
    return {
        "memory": {"usage": {"usage": _number(system, f"{group}/memory.current")}},
        "memory_oom_control": {"oom_kill": out_of_memory_kills(system, group)},
        "cpu": {"usage": {"total": microseconds.get("usage_usec", 0) * 1000}},
        "pids": {"current": _number(system, f"{group}/pids.current")},
    }


def _number(system: GuestSystem, path: str) -> int:
    text = _read(system, path).strip()
    return int(text) if text.isdigit() else 0


def _read(system: GuestSystem, path: str) -> str:
    try:
        return system.read_at(path, 0, _FILE_MAX).decode()
    except OSError:
        return ""  # the controller is off, or the container has just ended
