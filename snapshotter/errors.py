"""Every error this package raises on purpose.

::

    SnapshotterError
    ├── InvalidArgumentError        the caller's request can never work
    ├── NotFoundError               key, name or parent is not in the store
    ├── AlreadyExistsError          key or name is taken
    ├── FailedPreconditionError     not now: children, kind, links refused by the system
    │   └── DiskInUseError          something has the disk open
    ├── UnavailableError            the environment: disk full, store locked, program missing
    ├── UnimplementedError          a request that is meant for another program than this one
    ├── DigestMismatchError         content differs from what its digest says
    ├── ImageError                  an image archive that cannot be imported
    └── StorageError                a disk format
        ├── VhdxError
        │   ├── VhdxCorruptError
        │   ├── VhdxParentError     a chain of differencing disks that does not hold
        │   └── VhdxUnsupportedError
        ├── VhdError                a fixed VHD footer
        ├── Ext4Error
        │   ├── Ext4CorruptError
        │   └── Ext4UnsupportedError
        ├── BoltError               a bbolt file
        └── LayerError              a layer tar, naming the entry
"""

from __future__ import annotations


class SnapshotterError(Exception):
    """Root of all errors raised on purpose by this package."""


class InvalidArgumentError(SnapshotterError):
    """The request can never work as it stands; nothing was changed."""


class NotFoundError(SnapshotterError):
    """A key, name or parent that is not in the store."""


class AlreadyExistsError(SnapshotterError):
    """A key or name that is already taken."""


class FailedPreconditionError(SnapshotterError):
    """Cannot be done in the present state; may work later."""


class DiskInUseError(FailedPreconditionError):
    """A directory cannot be moved; `may_pass` where another try may find it free.

    containerd's garbage collector skips a snapshot whose removal ends in this; any other error
    would stop the collection.
    """

    def __init__(self, problem: str, *, may_pass: bool) -> None:
        super().__init__(problem)
        self.may_pass = may_pass


class UnavailableError(SnapshotterError):
    """The environment is at fault: disk full, store locked, program missing."""


class UnimplementedError(SnapshotterError):
    """Not done here: another snapshotter's mounts, an operation that LCOW does not have."""


class DigestMismatchError(SnapshotterError):
    """Content whose digest differs from the expected one."""

    def __init__(self, what: str, *, expected: str, actual: str) -> None:
        super().__init__(f"{what}: expected {expected}, the content is {actual}")
        self.expected = expected
        self.actual = actual


class ImageError(SnapshotterError):
    """An image archive that cannot be imported."""


class StorageError(SnapshotterError):
    """A disk format is damaged or not supported."""


class VhdxError(StorageError):
    """Root of VHDX errors."""


class VhdxCorruptError(VhdxError):
    """A VHDX structure breaks [MS-VHDX]: which one, where, and what was found."""

    def __init__(self, structure: str, value: object, *, section: str, offset: int | None) -> None:
        where = "" if offset is None else f" at {offset:#x}"
        super().__init__(f"{structure}{where}: {value} ([MS-VHDX] {section})")
        self.structure = structure
        self.value = value
        self.section = section
        self.offset = offset


class VhdxParentError(VhdxError):
    """A differencing disk whose parent cannot be found or does not fit.

    `child` is the file whose parent it is, `tried` what was looked at: (path, what was wrong).
    """

    def __init__(
        self, child: str, problem: str, *, tried: tuple[tuple[str, str], ...] = ()
    ) -> None:
        looked = "; ".join(f"{path}: {what}" for path, what in tried)
        super().__init__(f"{child}: {problem}" + (f" (tried {looked})" if looked else ""))
        self.child = child
        self.problem = problem
        self.tried = tried


class VhdxUnsupportedError(VhdxError):
    """A legal VHDX feature that this package does not handle."""


class VhdError(StorageError):
    """A fixed VHD whose footer is missing or wrong."""


class Ext4Error(StorageError):
    """Root of ext4 errors."""


class Ext4CorruptError(Ext4Error):
    """An ext4 structure is damaged: which one, where, and what was found."""

    def __init__(self, structure: str, value: object, *, offset: int | None = None) -> None:
        where = "" if offset is None else f" at {offset:#x}"
        super().__init__(f"{structure}{where}: {value}")
        self.structure = structure
        self.value = value
        self.offset = offset


class Ext4UnsupportedError(Ext4Error):
    """A legal ext4 feature that this package does not handle."""


class BoltError(StorageError):
    """A bbolt file is damaged, or none: which structure, where, and what was found."""

    def __init__(self, structure: str, value: object, *, offset: int | None) -> None:
        where = "" if offset is None else f" at {offset:#x}"
        super().__init__(f"{structure}{where}: {value}")
        self.structure = structure
        self.value = value
        self.offset = offset


class LayerError(StorageError):
    """A layer tar that cannot be converted; `entry` is the member's name, where known."""

    def __init__(self, problem: str, *, entry: str | None = None) -> None:
        super().__init__(problem if entry is None else f"{entry}: {problem}")
        self.problem = problem
        self.entry = entry
