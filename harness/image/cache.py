"""Finished artefacts by content key: built once, published whole, checked on every use.

::

    <cache>/<kind>/<key>/manifest.json   size and SHA-256 of every file beside it
    <cache>/<kind>/.new-<key>-…/         being built: `fresh` is renamed into place when complete
    <cache>/<kind>/.<key>.lock           held by the one process that builds the key
    <cache>/resolved/<record>            JSON: which keys, by kind, a state of the machine led to

A key covers everything an artefact is made from, so an entry is never changed. An entry whose
files differ from its manifest is moved aside and built again, with a notice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock, Timeout

from harness.cachedir import CACHE_VARIABLE
from harness.errors import ImageBuildError

Progress = Callable[[str], None]
"""Is told in one sentence what happens now."""
Build = Callable[[Path, Path], None]
"""Fills the first folder with an artefact; the second is for scratch files. Both start empty."""

_MANIFEST = "manifest.json"
_RECORDS = "resolved"
_UNUSED_S = 14 * 24 * 3600
_ABANDONED_S = 24 * 3600
_log = logging.getLogger(__name__)


class ArtifactCache:
    """The cache below one directory, which is made when first needed."""

    def __init__(self, root: Path, *, progress: Progress | None = None) -> None:
        self.root = root
        self._progress = progress

    def entry(self, kind: str, key: str, build: Build) -> Path:
        """The folder of an intact artefact, which `build` makes if there is none.

        `build` runs at most once among all processes. On failure nothing is published.
        Raises ImageBuildError, also when the cache cannot be written.
        """
        path = self.root / kind / key
        damage = self.damage(path)
        if damage is None:
            return path
        try:
            with self._locked(kind, key):
                damage = self.damage(path)  # another process may have built it meanwhile
                if damage is not None:
                    self._rebuild(path, build)
        except OSError as error:
            raise self._unwritable(error) from error
        return path

    def recall(self, record: str) -> dict[str, Path] | None:
        """The artefacts by kind that a record names, if there is one and all are intact."""
        path = self.root / _RECORDS / record
        try:
            keys = json.loads(path.read_bytes())
            found = {str(kind): self.root / str(kind) / str(key) for kind, key in keys.items()}
        except (OSError, ValueError, AttributeError):
            return None
        if any(self.damage(artefact) is not None for artefact in found.values()):
            return None
        _touch(path)
        return found

    def remember(self, records: Iterable[str], keys: Mapping[str, str]) -> None:
        """Make each record name these keys by kind. Raises ImageBuildError."""
        folder = self.root / _RECORDS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for record in records:
                with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".", delete=False) as file:
                    json.dump(dict(keys), file)
                Path(file.name).replace(folder / record)
        except OSError as error:
            raise self._unwritable(error) from error

    def damage(self, path: Path) -> str | None:
        """What is wrong with an entry ("absent" if there is none), or None if it is intact."""
        try:
            manifest = json.loads((path / _MANIFEST).read_bytes())
            files = {str(name): (int(f["size"]), str(f["sha256"])) for name, f in manifest.items()}
        except FileNotFoundError:
            return "no manifest" if path.exists() else "absent"
        except (ValueError, TypeError, KeyError, AttributeError, OSError):
            return "unreadable manifest"
        for name, (size, _) in files.items():
            try:
                actual = (path / name).stat().st_size
            except OSError:
                return f"{name} is missing"
            if actual != size:
                return f"{name} has {actual} bytes instead of {size}"
        with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
            digests = list(pool.map(_digest, (path / name for name in files)))
        for (name, (_, expected)), digest in zip(files.items(), digests, strict=True):
            if digest != expected:
                return f"{name} differs from its SHA-256"
        _touch(path)
        return None

    def report(self, message: str) -> None:
        """Tell the listener what happens."""
        if self._progress is not None:
            self._progress(message)

    def warn(self, message: str) -> None:
        """Tell the listener and the log of something that was repaired or worked around."""
        _log.warning("%s", message)
        self.report(message)

    def prune(self, *, unused_s: float = _UNUSED_S) -> None:
        """Delete what no one has used for a while, and what killed builders left. Never fails."""
        now = time.time()
        for path in self.root.glob("*/*"):
            limit_s = _ABANDONED_S if path.name.startswith(".") else unused_s
            try:
                if path.suffix != ".lock" and path.stat().st_mtime < now - limit_s:
                    self.report(f"deleting {path}, not used for days")
                    _delete(path)
            except OSError as error:
                _log.info("not pruned: %s", error)

    def _unwritable(self, error: OSError) -> ImageBuildError:
        return ImageBuildError(
            f"cannot write the cache {self.root}: {error}. Make room, or set {CACHE_VARIABLE} to"
            " another folder"
        )

    @contextlib.contextmanager
    def _locked(self, kind: str, key: str) -> Iterator[None]:
        folder = self.root / kind
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.report(f"another process builds the {kind}; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _rebuild(self, path: Path, build: Build) -> None:
        for stale in path.parent.glob(f".new-{path.name}-*"):  # of a builder that was killed
            shutil.rmtree(stale, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".new-{path.name}-"))
        try:
            damage = self.damage(path)
            if damage not in (None, "absent"):
                self.warn(
                    f"cached {path.parent.name} {path} is damaged ({damage}): building it again"
                )
                path.rename(scratch / "damaged")
            fresh, work = scratch / "fresh", scratch / "work"
            fresh.mkdir()
            work.mkdir()
            build(fresh, work)
            _write_manifest(fresh)
            fresh.rename(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _write_manifest(folder: Path) -> None:
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    manifest = {
        name: {"size": (folder / name).stat().st_size, "sha256": _digest(folder / name)}
        for name in names
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _touch(path: Path) -> None:
    """Mark as in use: pruning goes by age."""
    with contextlib.suppress(PermissionError):  # a cache of another user, to be read only
        os.utime(path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
