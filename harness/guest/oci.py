"""OCI runtime specifications: what a minimal one lacks, filled in.

The host sends a whole specification or a few fields; what it says is never changed. The defaults
are those that container engines use for an unprivileged container.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.guest.system import DEFAULT_PATH

_CAPABILITIES = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
]
_NAMESPACES = ("pid", "ipc", "uts", "mount")
_MOUNTS = (
    ("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    ),
    ("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),  # noqa: S108 - a mount of the container
    ("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ["nosuid", "noexec", "nodev", "relatime", "ro"]),
)


def complete_process(
    process: Mapping[str, Any], init: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return an OCI process with the fields it lacks, taken from the container's `init` if given.

    Environment, user, directory and capabilities are inherited; the terminal is not.
    """
    inherited = init or {}
    full: dict[str, Any] = {
        "user": inherited.get("user") or {"uid": 0, "gid": 0},
        "cwd": inherited.get("cwd") or "/",
        "env": inherited.get("env") or [f"PATH={DEFAULT_PATH}"],
        "capabilities": inherited.get("capabilities")
        or {kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        **{name: value for name, value in process.items() if value not in (None, "", [], {})},
    }
    if not any(str(setting).startswith("PATH=") for setting in full["env"]):
        full["env"] = [*full["env"], f"PATH={DEFAULT_PATH}"]
    return full


def default_mounts() -> list[dict[str, Any]]:
    """Return the mounts of a specification without any; one that has its own needs these, too."""
    return [
        {"destination": destination, "type": kind, "source": source, "options": list(options)}
        for destination, kind, source, options in _MOUNTS
    ]


def complete_spec(spec: Mapping[str, Any], *, root: str) -> dict[str, Any]:
    """Return an OCI specification that crun takes; `root` is used if it names no root path."""
    full = {"ociVersion": "1.0.2", **spec}
    full["process"] = complete_process(spec.get("process") or {})
    full["root"] = {"path": root, **(spec.get("root") or {})}
    if spec.get("mounts") is None:
        full["mounts"] = default_mounts()
    linux = dict(spec.get("linux") or {})
    linux.setdefault("namespaces", [{"type": kind} for kind in _NAMESPACES])
    # Without a rule the device cgroup stays open, and a container may mknod the disk of its own
    # scratch, which others share. crun itself lets the usual devices through (null, zero, tty …).
    resources = dict(linux.get("resources") or {})
    resources.setdefault("devices", [{"allow": False, "access": "rwm"}])
    linux["resources"] = resources
    full["linux"] = linux
    return full
