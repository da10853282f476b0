"""A layer that is there already is not converted again: its disk is cloned, or linked to.

::

    <root>/layers/<algorithm>-<hex>    what the layer of that digest is, and whose directory has it

The digest is that of the uncompressed tar (diff ID), or of the blob it came in. What was written
is remembered with its length and SHA-256, and compared before anybody gets it: a damaged file, or
one that was changed, is converted anew. These files are hints: any of them may be missing, and one
that is wrong is dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from snapshotter.digests import check_digest
from snapshotter.mounts import LAYER_NAME
from snapshotter.platform import Platform
from snapshotter.platform.patience import patiently
from snapshotter.units import KIB, MIB

if TYPE_CHECKING:
    from snapshotter.ext4.layertar import ConvertedLayer

_log = logging.getLogger(__name__)

_READ_SIZE: Final = MIB
_MAX_RECORD: Final = 64 * KIB
_NUMBER: Final = re.compile("[1-9][0-9]{0,18}")
_DIGEST_NAME: Final = re.compile("(?:sha256|sha384|sha512)-[0-9a-f]{64,128}")


@dataclass(frozen=True, slots=True)
class _Record:
    """The snapshot that has the layer, what its file is, and what conversion said of it."""

    snapshot: str
    size: int
    sha256: str
    diff_id: str
    uncompressed_size: int
    disk_size: int
    entries: int
    ignored_xattrs: tuple[str, ...]

    @classmethod
    def parse(cls, raw: bytes) -> _Record | None:
        """What a file says; None for anything but what `LayerCache` writes."""
        try:
            values = json.loads(raw)
            values["ignored_xattrs"] = tuple(map(str, values["ignored_xattrs"]))
            record = cls(**values)
            numbers = (record.size, record.uncompressed_size, record.disk_size, record.entries)
            sound = all(type(each) is int and each >= 0 for each in numbers)
            check_digest(record.diff_id)
        except Exception:  # noqa: BLE001 (whatever is wrong with a hint, it is none)
            return None
        return record if sound and _NUMBER.fullmatch(str(record.snapshot)) else None


class LayerCache:
    """The hints of one store; `snapshots` is where its directories are."""

    def __init__(self, directory: Path, snapshots: Path, platform: Platform) -> None:
        self._directory = directory
        self._snapshots = snapshots
        self._platform = platform
        self._lock = threading.Lock()
        self._reader: ThreadPoolExecutor | None = None
        self._pending: dict[str, Future[None]] = {}

    def remember(self, layer: ConvertedLayer, path: Path, *, blob: str | None = None) -> None:
        """Note a layer that was just written to `path`; `blob` is the digest it came by.

        The file is read again for that by another thread, while the caller goes on. Whatever
        hinders it is logged: the layer itself is there.
        """
        digests = {layer.diff_id, blob or layer.diff_id}
        with self._lock:
            if self._reader is None:
                self._reader = ThreadPoolExecutor(1, thread_name_prefix="layer-digest")
            future = self._reader.submit(self._remember, layer, path, digests)
            self._pending.update(dict.fromkeys(digests, future))

    def close(self) -> None:
        """Return when everything is noted; a second call does nothing."""
        with self._lock:
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.shutdown()
        self._pending.clear()

    def _remember(self, layer: ConvertedLayer, path: Path, digests: set[str]) -> None:
        try:
            long = self._platform.long(path)
            record = _Record(
                snapshot=path.parent.name,
                size=long.stat().st_size,
                sha256=_sha256(long),
                diff_id=layer.diff_id,
                uncompressed_size=layer.uncompressed_size,
                disk_size=layer.disk_size,
                entries=layer.entries,
                ignored_xattrs=layer.ignored_xattrs,
            )
            if not self._platform.exists(self._directory):
                with contextlib.suppress(FileExistsError):
                    self._platform.make_directory(self._directory)
            for digest in digests:
                self._write(self._hint(digest), json.dumps(asdict(record)).encode())
        except FileNotFoundError:
            pass  # its snapshot was removed meanwhile
        except OSError as error:
            _log.warning("cannot remember layer %s: %s", layer.diff_id, error)
        finally:
            with self._lock:
                for digest in digests:
                    self._pending.pop(digest, None)

    def reuse(self, digest: str, target: Path) -> ConvertedLayer | None:
        """Put the layer of that digest at `target`, and what it is; None where there is none.

        `digest` is a diff ID or a blob's. On None nothing is at `target`.
        """
        hint = self._hint(check_digest(digest))
        with self._lock:
            pending = self._pending.get(digest)
        if pending is not None:
            pending.result()
        record = self._read(hint)
        if record is None:
            return None
        source = self._snapshots / record.snapshot / LAYER_NAME
        staged = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        try:
            if not self._share(source, staged):
                return None
            long = self._platform.long(staged)
            # The new file is what is compared: the old one may change or go meanwhile.
            if long.stat().st_size != record.size or _sha256(long) != record.sha256:
                _log.warning("%s is not what was written; the layer is converted anew", source)
                self._drop(hint)
                return None
            patiently(lambda: self._platform.rename(staged, target))
            self._platform.flush_names(target.parent)
        except FileNotFoundError:
            self._drop(hint)  # its snapshot was removed
            return None
        except OSError as error:
            _log.warning("cannot reuse %s: %s; the layer is converted anew", source, error)
            return None
        finally:
            with contextlib.suppress(OSError):
                self._platform.long(staged).unlink()
        return _converted(record)

    def sweep(self) -> None:
        """Drop the hints at layers that are gone."""
        if not self._platform.exists(self._directory):
            return
        for name in self._platform.names(self._directory):
            hint = self._directory / name
            record = self._read(hint) if _DIGEST_NAME.fullmatch(name) else None
            layer = None if record is None else self._snapshots / record.snapshot / LAYER_NAME
            if layer is None or not self._platform.exists(layer):
                self._drop(hint)

    def _share(self, source: Path, target: Path) -> bool:
        """Clone the file, or link to it where the file system cannot; False where neither."""
        try:
            self._platform.reflink(source, target)
        except FileNotFoundError:
            raise
        except OSError:
            try:
                self._platform.hard_link(source, target)
            except FileNotFoundError:
                raise
            except OSError as error:
                _log.info("%s can be neither cloned nor linked to: %s", source, error)
                return False
        else:
            with self._platform.long(target).open("rb+") as clone:
                os.fsync(clone.fileno())
        return True

    def _hint(self, digest: str) -> Path:
        return self._directory / digest.replace(":", "-")

    def _read(self, hint: Path) -> _Record | None:
        try:
            with self._platform.long(hint).open("rb") as file:
                return _Record.parse(file.read(_MAX_RECORD))
        except OSError:
            return None

    def _write(self, hint: Path, data: bytes) -> None:
        staged = hint.with_name(f".{hint.name}.{secrets.token_hex(8)}.tmp")
        self._platform.long(staged).write_bytes(data)
        patiently(lambda: self._platform.replace(staged, hint))

    def _drop(self, hint: Path) -> None:
        with contextlib.suppress(OSError):
            self._platform.long(hint).unlink()


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_READ_SIZE))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _converted(record: _Record) -> ConvertedLayer:
    from snapshotter.ext4.layertar import ConvertedLayer  # it brings numpy

    return ConvertedLayer(
        record.diff_id,
        uncompressed_size=record.uncompressed_size,
        disk_size=record.disk_size,
        entries=record.entries,
        ignored_xattrs=record.ignored_xattrs,
    )
