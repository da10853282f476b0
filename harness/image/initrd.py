"""The guest's root file system: what goes where.

::

    /init                            starts the agent: python -m harness.guest, as PID 1
    /usr/lib/lcowlab/harness/…       the agent, as bytecode
    /usr/lib/python3.x/…             the modules it can reach, as bytecode without sources
    /usr/lib/modules/lcowlab/        modules, and <set>.first and <set>.later in load order
    /usr/bin, /usr/sbin, /usr/lib…   busybox with its applets, crun, mke2fs, e2fsck, libraries

/bin, /sbin, /lib and /lib64 are links into /usr.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from harness.errors import ImageBuildError
from harness.image.flavour import Flavour, contents_of
from harness.image.layout import Layout
from harness.image.sources import GuestSources
from harness.image.stdlib import GuestCommand, GuestPython
from harness.image.tree import PackageTree
from harness.image.userland import Userland

PROGRAM_FOLDER = "/usr/lib/lcowlab"
MODULE_FOLDER = "/usr/lib/modules/lcowlab"

BUSYBOX = "/usr/bin/busybox"
_PROGRAMS = (BUSYBOX, "/usr/bin/crun", "/usr/sbin/mke2fs", "/usr/sbin/e2fsck")
_LOADED_BY_NAME = "/usr/lib/x86_64-linux-gnu/libgcc_s.so.1"
_DIRECTORIES = ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "var")
_TIMEOUT_S = 60

# -m puts the working folder first in sys.path. -E and -s: nothing of the kernel's command line, of
# which unknown words become PID 1's environment, may change what is imported.
_INIT = f"""\
#!/bin/busybox sh
cd {PROGRAM_FOLDER} && exec /usr/bin/python3 -S -E -s -B -X frozen_modules=on -m harness.guest "$@"
"""
_USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
_GROUPS = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"


def root_layout(
    userland: Userland,
    sources: GuestSources,
    *,
    python: str,
    modules: Mapping[str, bytes],
    flavour: Flavour,
    scratch: Path,
) -> Layout:
    """Return the root file system.

    `python` is the guest's CPython version ("3.11"), `modules` are the files of MODULE_FOLDER.
    Raises ImageBuildError.
    """
    layout = Layout()
    for name in _DIRECTORIES:
        layout.directory(name)
    layout.character_device("/dev/console", major=5, minor=1)
    layout.character_device("/dev/null", major=1, minor=3)
    layout.file("/init", _INIT.encode(), mode=0o755)
    layout.file("/etc/passwd", _USERS.encode())
    layout.file("/etc/group", _GROUPS.encode())
    for name, content in modules.items():
        layout.file(f"{MODULE_FOLDER}/{name}", content)
    needing = [*_PROGRAMS, *contents_of(flavour).programs, _LOADED_BY_NAME]
    needing += _add_python(layout, userland, sources, version=python, scratch=scratch)
    tree = userland.tree
    for path in (*needing, *userland.libraries(needing), "/etc/mke2fs.conf"):
        chain = tree.chain(path)
        if not chain:
            raise ImageBuildError(f"the packages of this distribution have no {path}")
        layout.packaged(chain)
    layout.link("/sbin/mkfs.ext4", "mke2fs")
    layout.link("/sbin/fsck.ext4", "e2fsck")
    for applet in applets(tree):
        layout.link(f"/bin/{applet}", "busybox")
    return layout


def write_initrd(layout: Layout, out: BinaryIO, *, flavour: Flavour) -> None:
    """Write a root file system as an initrd. Raises ImageBuildError where it got too large."""
    size, limit = layout.write(out), contents_of(flavour).max_size
    if size > limit:
        raise ImageBuildError(f"the {flavour} initrd has {size} bytes, more than {limit}")


def applets(tree: PackageTree) -> list[str]:
    """Names under which busybox can be called, as it says itself. Raises ImageBuildError."""
    busybox = tree.find(BUSYBOX)
    if busybox is None:
        raise ImageBuildError("the busybox-static package has no busybox")
    try:
        done = subprocess.run(
            [busybox.source, "--list"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
            env={},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ImageBuildError(f"the guest's busybox cannot be run here: {error}") from error
    return [name for name in done.stdout.split() if name != "busybox"]


def _add_python(
    layout: Layout, userland: Userland, sources: GuestSources, *, version: str, scratch: Path
) -> Sequence[str]:
    """Add the interpreter, its library and the agent; gives the ELF files among them."""
    tree = userland.tree
    python = GuestPython(tree, version)
    folders = {
        file.source.parent
        for path in userland.libraries([python.program])
        if (file := tree.find(path)) is not None
    }
    command = GuestCommand(tree, python, sorted(folders))
    closure = python.closure(sources.standard_modules(), command=command)
    jobs = [(file.source, file.path) for file in closure.sources.values()]
    for name, content in sources.files.items():
        source = scratch / "sources" / name
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(content)
        jobs.append((source, f"{PROGRAM_FOLDER}/{name}"))
    compiled = scratch / "compiled"
    compiled.mkdir()
    for (_, path), bytecode in zip(jobs, command.compile(jobs, compiled), strict=True):
        layout.file(f"{path}c", bytecode)
    layout.link("/usr/bin/python3", f"python{version}")
    extensions = [file.path for file in closure.extensions]
    layout.directory(f"{python.library}/lib-dynload")  # its absence makes getpath complain
    return [python.program, *extensions]
