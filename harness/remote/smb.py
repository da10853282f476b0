r"""A file's content written to a host's administrative share, such as `\\host\C$`.

The fastest way where port 445 is open: nothing of ours has to run on the host meanwhile. The
session is signed and encrypted (SMB 3), so that whoever stands between can neither read nor change
what passes; a host that cannot do that has this way closed. Needs the package smbprotocol
(`pip install lcowlab[smb]`), looked for when it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from harness.remote.deadline import Deadline
from harness.remote.endpoint import Endpoint
from harness.remote.passwords import Secret
from harness.remote.ways import Closed, Delivery, Errand, WayName

PORT: Final = 445

# smbprotocol has no types, and may not be installed.
_Foreign: TypeAlias = Any

_ROOT: Final = re.compile(r"([A-Za-z]):\\([^/:*?\"<>|]+)")
_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 30.0
_WRITE: Final = 1 << 20
_CREDIT: Final = 65536  # bytes that one credit pays for, [MS-SMB2] 3.2.4.1.5
_AHEAD: Final = 4  # writes under way at once: a round trip is not waited for
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class AdminShare:
    """Where a host's administrative shares are, and who asks."""

    address: str
    user: str
    password: Secret
    auth: str = "negotiate"
    port: int = PORT


def share_of(endpoint: Endpoint, root: str) -> AdminShare | None:
    """Return the share that goes with a host's endpoint, or None where it cannot be used.

    It takes the same user and password as WinRM. CredSSP and an IPv6 address are WinRM's alone, and
    a `root` that is no folder on a drive is on no such share.
    """
    if not _ROOT.fullmatch(root) or endpoint.auth == "credssp" or ":" in endpoint.address:
        return None
    auth = {"basic": "ntlm", "ntlm": "ntlm", "kerberos": "kerberos"}.get(endpoint.auth, "negotiate")
    return AdminShare(endpoint.address, endpoint.user, endpoint.password, auth)


@dataclass(frozen=True, slots=True)
class ShareWay:
    r"""A `Way`: into `root`, such as `C:\ProgramData\lcowlab`, over its drive's share."""

    share: AdminShare
    root: str
    name: WayName = "smb"

    def carry(self, errand: Errand) -> Delivery | Closed:
        """See `Way.carry`: goes on from what is there, and again after a connection that broke."""
        try:
            smb = _Smb.load()
        except ImportError:
            return Closed("the package smbprotocol is not installed: pip install lcowlab[smb]")
        first: int | None = None
        have = -1
        reason = ""
        for _ in range(_TRIES):
            before = have
            try:
                for have in self._write(smb, errand):
                    if first is None:
                        first = before = have
                    if errand.progress is not None:
                        errand.progress(have, errand.size)
                assert first is not None
                return Delivery((errand.whole,), errand.size, errand.size - first)
            except (smb.failure, OSError, ValueError) as error:
                # ValueError is how smbprotocol tells that there was no connection.
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            if have <= before or errand.deadline.passed:
                break  # not a byte more
        return Closed(reason)

    def _write(self, smb: _Smb, errand: Errand) -> Iterator[int]:
        """Yield how much is there: first what was, then as it grows; closed whole at the end."""
        with self._open(smb, errand) as file, errand.source.open("rb") as source:
            have = int(file.end_of_file)
            yield have
            source.seek(have)
            under_way: deque[tuple[_Foreign, int]] = deque()
            at = have

            def settle() -> int:
                request, length = under_way.popleft()
                file.connection.receive(request, timeout=_patience(errand.deadline))
                return length

            size = min(_WRITE, int(file.connection.max_write_size))
            while block := source.read(min(size, errand.size - at)):
                while under_way and (
                    len(under_way) >= _AHEAD or not smb.affords(file.connection, len(block))
                ):
                    have += settle()
                    yield have
                under_way.append((smb.begin_write(file, block, at), len(block)))
                at += len(block)
            while under_way:
                have += settle()
                yield have
            if have < errand.size:
                raise ValueError(f"{errand.source} became shorter while it was sent")

    @contextmanager
    def _open(self, smb: _Smb, errand: Errand) -> Iterator[_Foreign]:
        """Give the part file, made with its folders if need be; the connection ends with it."""
        match = _ROOT.fullmatch(self.root)
        assert match is not None, "share_of looked"
        drive, below = match[1].upper(), match[2].strip("\\")
        share = self.share
        connection = smb.connection(share.address, share.port)
        connection.connect(timeout=min(_CONNECT_S, max(1.0, errand.deadline.remaining_s)))
        # smbprotocol waits for ever for some answers: closing under it wakes it up.
        watchdog = threading.Timer(errand.deadline.remaining_s, connection.transport.close)
        watchdog.daemon = True
        watchdog.start()
        try:
            session = smb.session(
                connection,
                username=share.user or None,
                password=share.password.reveal() or None,
                require_encryption=True,
                auth_protocol=share.auth,
            )
            session.connect()
            tree = smb.tree(session, rf"\\{share.address}\{drive}$")
            tree.connect()
            *folders, name = below.split("\\") + errand.whole.split("/")
            for depth in range(1, len(folders) + 1):
                smb.open_folder(tree, "\\".join(folders[:depth]))
            path = "\\".join([*folders, name])
            file = smb.open_file(tree, path)
            if file.end_of_file > errand.size:  # nothing of ours: it starts again
                file.close()
                file = smb.open_file(tree, path, empty=True)
            yield file
            file.close()
        finally:
            watchdog.cancel()
            with contextlib.suppress(smb.failure, OSError, ValueError):
                connection.disconnect(close=False)


def _patience(deadline: Deadline) -> float:
    return min(_ANSWER_S, max(1.0, deadline.remaining_s))


class _Smb:
    """The little of smbprotocol that is used."""

    def __init__(self) -> None:
        self._connection = importlib.import_module("smbprotocol.connection")
        self._session = importlib.import_module("smbprotocol.session")
        self._tree = importlib.import_module("smbprotocol.tree")
        self._open = importlib.import_module("smbprotocol.open")
        self.failure: type[Exception] = importlib.import_module(
            "smbprotocol.exceptions"
        ).SMBException

    @classmethod
    @functools.cache
    def load(cls) -> _Smb:
        """Return it. Raises ImportError where the package is not installed."""
        return cls()

    def connection(self, address: str, port: int) -> _Foreign:
        return self._connection.Connection(uuid.uuid4(), address, port, require_signing=True)

    def session(self, connection: _Foreign, **options: _Foreign) -> _Foreign:
        return self._session.Session(connection, **options)

    def tree(self, session: _Foreign, share: str) -> _Foreign:
        return self._tree.TreeConnect(session, share)

    def open_folder(self, tree: _Foreign, path: str) -> None:
        """Make a folder that is not there."""
        o = self._open
        folder = o.Open(tree, path)
        folder.create(
            o.ImpersonationLevel.Impersonation,
            o.DirectoryAccessMask.FILE_READ_ATTRIBUTES,
            o.FileAttributes.FILE_ATTRIBUTE_DIRECTORY,
            o.ShareAccess.FILE_SHARE_READ
            | o.ShareAccess.FILE_SHARE_WRITE
            | o.ShareAccess.FILE_SHARE_DELETE,
            o.CreateDisposition.FILE_OPEN_IF,
            o.CreateOptions.FILE_DIRECTORY_FILE,
        )
        folder.close()

    def open_file(self, tree: _Foreign, path: str, *, empty: bool = False) -> _Foreign:
        """Return the file to be written to; nobody else writes to it meanwhile."""
        o = self._open
        disposition = o.CreateDisposition
        file = o.Open(tree, path)
        mask = o.FilePipePrinterAccessMask
        file.create(
            o.ImpersonationLevel.Impersonation,
            mask.FILE_WRITE_DATA
            | mask.FILE_APPEND_DATA
            | mask.FILE_READ_ATTRIBUTES
            | mask.FILE_WRITE_ATTRIBUTES
            | mask.SYNCHRONIZE,
            o.FileAttributes.FILE_ATTRIBUTE_NORMAL,
            o.ShareAccess.FILE_SHARE_READ,
            disposition.FILE_OVERWRITE_IF if empty else disposition.FILE_OPEN_IF,
            o.CreateOptions.FILE_NON_DIRECTORY_FILE,
        )
        return file

    def affords(self, connection: _Foreign, length: int) -> bool:
        """Return whether the host has given us the credits for one more write of that length."""
        window = connection.sequence_window
        # One is kept, for the close.
        return int(window["high"] - window["low"]) > -(-length // _CREDIT)

    def begin_write(self, file: _Foreign, data: bytes, offset: int) -> _Foreign:
        """Send a write and return what its answer is awaited by."""
        message, _ = file.write(data, offset, send=False)
        tree = file.tree_connect
        return file.connection.send(
            message,
            tree.session.session_id,
            tree.tree_connect_id,
            credit_request=_AHEAD * _WRITE // _CREDIT,
        )
