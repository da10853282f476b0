"""The utility VM image: a kernel and an initrd, built from packages and kept by content.

Two artefacts are cached: the kernel (bzImage, vmlinux, modules), which seldom changes, and the
initrd, which changes with every edit of the guest agent. A third kind of record remembers which
two artefacts a state of this machine led to, so that a warm call runs no package program but
apt-config: the state is the package lists' and apt configuration's names, sizes and modification
times, and the content of the guest's and the builder's sources.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.cachedir import IMAGES, cache_directory
from harness.errors import ImageBuildError, MissingProgramError
from harness.image import spdx
from harness.image.cache import ArtifactCache, Progress
from harness.image.distribution import (
    Distribution,
    ProgramPackages,
    kernel_packages,
    program_packages,
)
from harness.image.flavour import Flavour, contents_of
from harness.image.initrd import root_layout, write_initrd
from harness.image.kernel import BzImage
from harness.image.modules import HYPERV, QEMU, ModuleTree
from harness.image.packages import Apt, Package, unpack
from harness.image.sources import GuestSources, builder_digest
from harness.image.userland import Userland

_KERNELS, _IMAGES, _DEBS = "kernel", "image", "deb"
_KEY_LENGTH = 32  # hexadecimal digits: 128 bits


@dataclass(frozen=True, slots=True)
class UvmImage:
    """An intact image in the cache. `key` covers everything that it was made from."""

    vmlinux: Path
    bzimage: Path
    initrd: Path
    spdx: Path
    kernel_version: str
    key: str


def ensure_image(
    *,
    progress: Progress | None = None,
    flavour: Flavour = Flavour.STANDARD,
    kernel: Path | None = None,
    modules: Path | None = None,
    distribution: Distribution | None = None,
    apt: Apt | None = None,
    sources: GuestSources | None = None,
) -> UvmImage:
    """The image for this machine's distribution, from the cache or built now.

    `flavour` says what it has beside what all have.
    `kernel` (a bzImage) and `modules` (its /lib/modules folder), given together, replace the
    distribution's. `distribution` with an `apt` that reads its archive makes one for another.
    Where the packages cannot be resolved (no apt, no package lists), the image that was last used
    with the same sources is, if it is intact.

    Raises ImageBuildError, MissingProgramError; nothing half-made is left behind.
    """
    if (kernel is None) != (modules is None):
        raise ImageBuildError("a kernel of your own needs its modules: give both or none")
    builder = _Builder(
        apt or Apt(),
        distribution,
        sources or GuestSources.of_this_package(),
        flavour,
        ArtifactCache(cache_directory(IMAGES), progress=progress),
    )
    own = _OwnKernel(kernel, modules) if kernel is not None and modules is not None else None
    return builder.image(own)


def find_image() -> UvmImage | None:
    """The image this machine used last with the present sources, if intact; builds nothing."""
    cache = ArtifactCache(cache_directory(IMAGES))
    builder = _Builder(Apt(), None, GuestSources.of_this_package(), Flavour.STANDARD, cache)
    return builder.latest()


@dataclass(frozen=True, slots=True)
class _OwnKernel:
    kernel: Path
    modules: Path

    def key(self) -> str:
        try:
            seen = [hashlib.sha256(self.kernel.read_bytes()).hexdigest()]
            for path in sorted(self.modules.rglob("*")):
                if path.is_file():
                    status = path.stat()
                    seen.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
        except OSError as error:
            raise ImageBuildError(f"cannot read the kernel {self.kernel}: {error}") from error
        return "\n".join(seen)


@dataclass(frozen=True, slots=True)
class _Resolved:
    """The keys of the two artefacts."""

    kernel: str
    image: str


class _Builder:
    def __init__(
        self,
        apt: Apt,
        distribution: Distribution | None,
        sources: GuestSources,
        flavour: Flavour,
        cache: ArtifactCache,
    ) -> None:
        self._apt = apt
        self._distribution = distribution
        self._sources = sources
        self._flavour = flavour
        self._cache = cache
        self._code = _key([sources.digest(), builder_digest(), flavour])

    def latest(self) -> UvmImage | None:
        own_key = f"{self._distribution} "
        known = self._cache.recall(f"latest-{_key([self._code, own_key])}")
        return _uvm_image(known) if known is not None else None

    def image(self, own: _OwnKernel | None) -> UvmImage:
        own_key = f"{self._distribution} {own.key() if own is not None else ''}"
        latest = f"latest-{_key([self._code, own_key])}"
        try:
            state = _key([self._apt.fingerprint(), self._code, own_key])
            known = self._cache.recall(state)
            if known is not None:
                return _uvm_image(known)
            self._cache.report("looking up the packages of the utility VM")
            distribution = self._distribution or Distribution.of_this_machine()
            with self._apt.session() as apt:
                programs = program_packages(apt, self._flavour)
                kernels = {} if own is not None else kernel_packages(apt, distribution)
        except (ImageBuildError, MissingProgramError) as error:
            known = self._cache.recall(latest)
            if known is None:
                raise
            self._cache.warn(f"using the image of an earlier state of this machine: {error}")
            return _uvm_image(known)
        resolved = self._resolve(kernels, programs, own_key)
        image = self._built(resolved, kernels, programs, own, distribution.id)
        self._cache.remember((state, latest), {_KERNELS: resolved.kernel, _IMAGES: resolved.image})
        self._cache.prune()
        return image

    def _resolve(
        self, kernels: Mapping[str, Package], programs: ProgramPackages, own_key: str
    ) -> _Resolved:
        kernel = _key([builder_digest(), own_key, *_versions(kernels.values())])
        image = _key([kernel, self._code, *_versions(programs.packages.values())])
        return _Resolved(kernel=kernel, image=image)

    def _built(
        self,
        resolved: _Resolved,
        kernels: Mapping[str, Package],
        programs: ProgramPackages,
        own: _OwnKernel | None,
        distribution: str,
    ) -> UvmImage:
        def build_kernel(folder: Path, scratch: Path) -> None:
            if own is not None:
                _write_kernel(folder, own.kernel, [own.modules], (), self._cache)
            else:
                self._unpack_kernel(folder, kernels.values(), scratch)

        kernel = self._cache.entry(_KERNELS, resolved.kernel, build_kernel)

        def build_image(folder: Path, scratch: Path) -> None:
            packages = self._write_initrd(folder, kernel, programs, scratch)
            document = spdx.document(
                "lcowlab-uvm", resolved.image, packages, distribution=distribution
            )
            (folder / "image.spdx.json").write_bytes(document)

        image = self._cache.entry(_IMAGES, resolved.image, build_image)
        return _uvm_image({_KERNELS: kernel, _IMAGES: image})

    def _unpack_kernel(self, folder: Path, packages: Iterable[Package], scratch: Path) -> None:
        wanted = list(packages)
        self._report_download(wanted)
        debs = self._apt.download(wanted, self._cache.root / _DEBS)
        for deb in debs.values():
            unpack(deb, scratch)
        kernels = [*scratch.glob("boot/vmlinuz-*"), *scratch.glob("usr/lib/modules/*/vmlinuz")]
        if len(kernels) != 1:
            names = ", ".join(p.file_name for p in wanted)
            raise ImageBuildError(f"{names}: {len(kernels)} kernels instead of one")
        folders = [f for f in (scratch / "lib/modules", scratch / "usr/lib/modules") if f.is_dir()]
        _write_kernel(folder, kernels[0], folders, wanted, self._cache)

    def _write_initrd(
        self, folder: Path, kernel: Path, programs: ProgramPackages, scratch: Path
    ) -> list[Package]:
        """Fill an image artefact; gives the packages that something in it came from."""
        self._report_download([programs.packages[name] for name in programs.roots])
        userland = Userland(
            self._apt, programs, debs=self._cache.root / _DEBS, scratch=scratch / "packages"
        )
        userland.unpack_roots()
        self._cache.report("writing the initrd of the utility VM")
        modules = _modules_of(kernel, self._flavour)
        layout = root_layout(
            userland,
            self._sources,
            python=programs.python,
            modules=modules,
            flavour=self._flavour,
            scratch=scratch,
        )
        with (folder / "initrd.cpio").open("wb") as out:
            write_initrd(layout, out, flavour=self._flavour)
        kernels = json.loads((kernel / "packages.json").read_bytes())
        return [
            *userland.tree.packages,
            *(Package(**{**fields, "depends": tuple(fields["depends"])}) for fields in kernels),
        ]

    def _report_download(self, packages: Iterable[Package]) -> None:
        debs = self._cache.root / _DEBS
        absent = [p for p in packages if not (debs / p.file_name).is_file()]
        if absent:
            size = sum(p.size for p in absent) / 1e6
            self._cache.report(f"downloading {len(absent)} packages ({size:.0f} MB)")


def _write_kernel(
    folder: Path,
    kernel: Path,
    module_folders: list[Path],
    packages: Iterable[Package],
    cache: ArtifactCache,
) -> None:
    """Fill a kernel artefact. Raises ImageBuildError."""
    cache.report("extracting the kernel")
    raw = kernel.read_bytes()
    image = BzImage.parse(raw)
    (folder / "bzimage").write_bytes(raw)
    (folder / "vmlinux").write_bytes(image.vmlinux())
    (folder / "release").write_text(image.release)
    (folder / "packages.json").write_text(json.dumps([asdict(package) for package in packages]))
    target = folder / "modules"
    target.mkdir()
    tree = ModuleTree(module_folders)
    usable = [modules for modules in (QEMU, HYPERV) if not tree.missing(modules)]
    if not usable:
        raise ImageBuildError(
            f"kernel {image.release} lacks {', '.join(tree.missing(QEMU))} as module and built in:"
            " the utility VM could not be reached"
        )
    loaded: dict[str, None] = {}
    for modules in (QEMU, HYPERV):
        if modules not in usable:
            missing = ", ".join(tree.missing(modules))
            cache.warn(f"kernel {image.release} lacks {missing}: no start on {modules.name}")
        has = modules in usable
        first = tree.load_order(modules.first) if has else []
        later = tree.load_order(modules.later, loaded=first) if has else []
        root = tree.load_order(modules.root) if has else []
        for phase, names in (("first", first), ("later", later), ("root", root)):
            _write_list(target / f"{modules.name}.{phase}", names)
        loaded |= dict.fromkeys([*first, *later, *root])
    for flavour in Flavour:
        wanted = contents_of(flavour).modules
        if wanted and all(name in tree for name in wanted):
            faster = tree.load_order(name for name in contents_of(flavour).faster if name in tree)
            order = tree.load_order(wanted)
            _write_list(target / f"{flavour}.faster", faster)
            _write_list(target / str(flavour), order)
            loaded |= dict.fromkeys([*faster, *order])
    for name in loaded:
        (target / f"{name}.ko").write_bytes(tree.read(name))


def _write_list(path: Path, names: Iterable[str]) -> None:
    path.write_text("".join(f"{name}.ko\n" for name in names))


def _modules_of(kernel: Path, flavour: Flavour) -> dict[str, bytes]:
    """Return the files of a kernel artefact's modules that a flavour has. Raises ImageBuildError.

    A flavour's own list is called `extra` in the guest, which loads it whatever it is for.
    """
    folder = kernel / "modules"
    lists = {
        f"{machine.name}.{phase}": (folder / f"{machine.name}.{phase}").read_bytes()
        for machine in (QEMU, HYPERV)
        for phase in ("first", "later")
    }
    if contents_of(flavour).modules:
        try:
            lists["extra"] = (folder / str(flavour)).read_bytes()
            lists["extra.faster"] = (folder / f"{flavour}.faster").read_bytes()
        except FileNotFoundError as error:
            wanted = ", ".join(contents_of(flavour).modules)
            raise ImageBuildError(
                f"this kernel has not all of {wanted}: there is no {flavour} image with it"
            ) from error
    names = {name for listed in lists.values() for name in listed.decode().split()}
    return lists | {name: (folder / name).read_bytes() for name in sorted(names)}


def _uvm_image(artefacts: Mapping[str, Path]) -> UvmImage:
    kernel, image = artefacts[_KERNELS], artefacts[_IMAGES]
    return UvmImage(
        vmlinux=kernel / "vmlinux",
        bzimage=kernel / "bzimage",
        initrd=image / "initrd.cpio",
        spdx=image / "image.spdx.json",
        kernel_version=(kernel / "release").read_text(),
        key=image.name,
    )


def _versions(packages: Iterable[Package]) -> list[str]:
    return sorted(f"{p.name} {p.version} {p.sha256}" for p in packages)


def _key(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_KEY_LENGTH]
