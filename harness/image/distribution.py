"""Which packages of which distribution make a utility VM."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import ImageBuildError
from harness.image.flavour import Flavour, contents_of
from harness.image.packages import Apt, Package

_OWN_KERNEL = (
    "give a kernel of your own: `lcowlab uvm build --kernel FILE --modules DIR` (a bzImage and its"
    " /lib/modules folder)"
)
_MIN_PYTHON = (3, 11)
_PROGRAMS = ("busybox-static", "crun", "e2fsprogs", "libc6", "libgcc-s1")
"""libgcc-s1: glibc loads libgcc_s.so.1 by name when a thread exits, which no ELF header tells."""
_KERNEL_PACKAGE = re.compile(r"linux-(image|modules)(-unsigned)?-\d")
_LIBRARY_PACKAGE = re.compile(r"lib[^-].*|zlib1g")


@dataclass(frozen=True, slots=True)
class Distribution:
    """What /etc/os-release says; `version` is empty for a rolling release."""

    id: str
    version: str
    name: str

    @classmethod
    def of_this_machine(cls) -> Distribution:
        """Read os-release(5). Raises ImageBuildError where there is none or it is not x86-64."""
        machine = platform.machine().lower()
        if machine not in ("x86_64", "amd64"):
            raise ImageBuildError(f"the utility VM is x86-64, this machine is {machine}")
        try:
            release = platform.freedesktop_os_release()
        except OSError as error:
            raise ImageBuildError(
                f"{platform.system()} has no Debian or Ubuntu packages to build the utility VM"
                " from: build the image on such a machine and copy the cache folder"
            ) from error
        return cls.parse(release)

    @classmethod
    def parse(cls, release: Mapping[str, str]) -> Distribution:
        """Take the fields of os-release(5) that matter here."""
        identity = release.get("ID", "linux")
        return cls(
            id=identity,
            version=release.get("VERSION_ID", ""),
            name=release.get("PRETTY_NAME", identity),
        )

    def kernel_metapackage(self) -> str:
        """The package that names this release's kernel for virtual machines.

        Raises ImageBuildError for a release that is too old or not known.
        """
        oldest = {"debian": (12,), "ubuntu": (24, 4)}
        packages = {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"}
        if self.id not in packages:
            raise ImageBuildError(f"no kernel package is known for {self.name}: {_OWN_KERNEL}")
        version = tuple(int(part) for part in re.findall(r"\d+", self.version))
        if version and version < oldest[self.id]:
            raise ImageBuildError(
                f"{self.name} is too old (Debian 12 and Ubuntu 24.04 are the oldest that work):"
                f" {_OWN_KERNEL}"
            )
        return packages[self.id]


def kernel_packages(apt: Apt, distribution: Distribution) -> dict[str, Package]:
    """The real kernel packages behind the metapackage: the image, and its modules if apart.

    Raises ImageBuildError.
    """
    metapackage = distribution.kernel_metapackage()
    found = apt.closure([metapackage], follow=lambda name: bool(_KERNEL_PACKAGE.match(name)))
    del found[metapackage]
    if not found:
        raise ImageBuildError(f"{metapackage} depends on no kernel: run `sudo apt-get update`")
    return found


@dataclass(frozen=True, slots=True)
class ProgramPackages:
    """The guest's programs: CPython's version ("3.11") and every package they may draw from.

    `roots` are unpacked first; of the rest only what the ELF closure asks for.
    """

    python: str
    roots: tuple[str, ...]
    packages: Mapping[str, Package]


def program_packages(apt: Apt, flavour: Flavour = Flavour.STANDARD) -> ProgramPackages:
    """The packages of CPython, crun, busybox, e2fsprogs, a flavour's own, and their libraries.

    Raises ImageBuildError, also when the distribution's CPython is older than 3.11.
    """
    default = apt.require(["python3-minimal"])["python3-minimal"]
    matches = [re.fullmatch(r"python(3)\.(\d+)-minimal", name) for name in default.depends]
    versions = [(int(m[1]), int(m[2])) for m in matches if m]
    if not versions:
        raise ImageBuildError("python3-minimal depends on no CPython: run `sudo apt-get update`")
    version = max(versions)
    if version < _MIN_PYTHON:
        raise ImageBuildError(
            f"this distribution's CPython is {version[0]}.{version[1]}; the guest needs 3.11"
        )
    python = f"{version[0]}.{version[1]}"
    names = (f"python{python}-minimal", f"libpython{python}-minimal", f"libpython{python}-stdlib")
    roots = (*names, *_PROGRAMS, *contents_of(flavour).packages)
    packages = apt.closure(roots, follow=lambda name: bool(_LIBRARY_PACKAGE.fullmatch(name)))
    return ProgramPackages(python=python, roots=roots, packages=packages)
