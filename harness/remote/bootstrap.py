r"""A file to a host that has no Python yet: its own `curl.exe` fetches it, `certutil` checks it.

::

    New-Item folder ─► Add-Content authority, address ─► curl.exe ─► certutil -hashfile ─► compared
                                                            ▲  broke off: goes on  │
                                                            └──────────────────────┘

For nothing but the first Python, which provisioning brings so: from then on `HostFiles` knows
better ways. The secret path is in a file that curl reads and that is removed, not
in an argv that everybody on the host can list.

Windows' curl speaks TLS through Schannel. There, a private authority needs `--ssl-no-revoke` (it
names nowhere to ask for revocations), and older ones find no IP address in a certificate: hence a
name that `--resolve` explains. `--cacert` needs curl 7.60: Windows Server 2019 got it by updates.
Sources: curl(1); curl's documentation of Schannel; `certutil -hashfile -?`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.errors import ConnectionLostError, RemoteError, TransferError, UsageError
from harness.remote.deadline import Deadline
from harness.remote.powershell import Command
from harness.remote.pullserver import HOST_NAME, Offer, address_towards, offer_file
from harness.remote.transport import CompletedRemote
from harness.remote.ways import Progress
from harness.remote.winrm import WinRM

_FOLDER: Final = "bootstrap"
_PULLS: Final = 5
_CONNECT_S: Final = 10
_STALLED_S: Final = 30
_TIDY_S: Final = 20.0
# Older certutil puts spaces between the bytes.
_HASH: Final = re.compile(rb"^\s*((?:[0-9a-fA-F]{2} ?){32})\s*$", re.MULTILINE)
# CURLE_: COULDNT_CONNECT, OPERATION_TIMEDOUT, PEER_FAILED_VERIFICATION, UNKNOWN_OPTION
_WHY: Final = {
    2: "its curl.exe is too old: install updates, or install Python by hand",
    7: "it does not reach us: allow its connections to us in both firewalls",
    28: "it does not reach us: allow its connections to us in both firewalls",
    60: "something between it and us shows another certificate",
}


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file on the host, checked: its path there; `moved` bytes crossed the network this time."""

    path: str
    sha256: str
    size: int
    moved: int


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Brings files to one host without Python there. `root` is our folder, verified by the caller.

    `address` is ours, as the host reaches us; None takes the one on the route to it.
    """

    winrm: WinRM
    root: str
    address: str | None = None

    def fetch(
        self,
        source: Path,
        destination: str = "",
        *,
        deadline: Deadline,
        progress: Progress | None = None,
    ) -> Fetched:
        r"""Bring a file to `destination`, by default into `bootstrap\` of the root under its hash.

        Returns once certutil read it back there with the same SHA-256. Goes on where a former call
        broke off. Raises UsageError; TransferError with what to do; RemoteError.
        """
        try:
            with source.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            # Expand-Archive takes nothing else for a zip; a wheel and a nupkg are zips too.
            suffix = ".zip" if zipfile.is_zipfile(source) else source.suffix
        except OSError as error:
            raise UsageError(f"cannot read {source}: {error}") from error
        path = destination or f"{self.root}\\{_FOLDER}\\{sha256}{suffix}"
        if self._hash(path, deadline) == sha256:
            return Fetched(path, sha256, size, 0)
        done, moved = self._pull(source, path, deadline, progress)
        if self._hash(path, deadline) != sha256:
            self._remove(path)  # whatever it is, nothing is appended to it
            why = _WHY.get(done.exit_code, "look at the proxy and the virus scanner of the host")
            said = (done.stderr + done.stdout).decode(errors="replace").strip()[-400:]
            raise TransferError(
                f"{source.name} did not arrive: {why} ({said or 'curl.exe said nothing'})",
                host=self.winrm.host,
                code=done.exit_code,
            )
        return Fetched(path, sha256, size, moved)

    def _pull(
        self, source: Path, path: str, deadline: Deadline, progress: Progress | None
    ) -> tuple[CompletedRemote, int]:
        """Have curl fetch the file, again after it broke off.

        Returns how its last run ended, and the bytes that left.
        """
        endpoint = self.winrm.endpoint
        try:
            address = self.address or address_towards(endpoint.address, endpoint.port)
            with (
                offer_file(source, address=address, progress=progress) as offer,
                self._told(offer, deadline) as (authority, configuration),
            ):
                shown = f"[{offer.address}]" if ":" in offer.address else offer.address
                argv = (
                    *("curl.exe", "--disable", "--silent", "--show-error", "--fail"),
                    *("--proto", "=https", "--noproxy", "*", "--ssl-no-revoke"),
                    *("--connect-timeout", str(_CONNECT_S), "--continue-at", "-"),
                    *("--speed-limit", "1024", "--speed-time", str(_STALLED_S)),
                    *("--resolve", f"{HOST_NAME}:{offer.port}:{shown}"),
                    *("--cacert", authority, "--output", path, "--config", configuration),
                )
                for attempt in range(_PULLS):
                    try:
                        done = self.winrm.run(argv, deadline=deadline, idempotent=True)
                    except ConnectionLostError:
                        if attempt == _PULLS - 1:
                            raise
                        continue
                    if done.exit_code == 0 or done.exit_code in _WHY:
                        break
                return done, offer.sent()
        except OSError as error:
            raise TransferError(
                f"cannot offer {source.name} to it: {error}", host=self.winrm.host
            ) from error

    @contextmanager
    def _told(self, offer: Offer, deadline: Deadline) -> Iterator[tuple[str, str]]:
        """Give the paths of the authority and of curl's configuration there; removed afterwards."""
        folder = f"{self.root}\\{_FOLDER}"
        self.winrm.powershell(
            Command.build("New-Item", {"Path": (folder,), "ItemType": "Directory", "Force": True}),
            deadline=deadline,
        )
        url = f'url = "https://{HOST_NAME}:{offer.port}{offer.path}"\n'
        # Names of their own: Add-Content appends, and one whose answer was lost is made anew.
        authority = self._write(folder, ".pem", offer.authority_pem, deadline)
        try:
            configuration = self._write(folder, ".curl", url, deadline)
            try:
                yield authority, configuration
            finally:
                self._remove(configuration)
        finally:
            self._remove(authority)

    def _write(self, folder: str, suffix: str, text: str, deadline: Deadline) -> str:
        for attempt in range(_PULLS):
            path = f"{folder}\\{uuid.uuid4().hex}{suffix}"
            try:
                self.winrm.powershell(
                    Command.build(
                        "Add-Content",
                        {"LiteralPath": (path,), "Value": text.encode(), "Encoding": "Byte"},
                    ),
                    deadline=deadline,
                )
            except ConnectionLostError:
                self._remove(path)
                if attempt == _PULLS - 1:
                    raise
            else:
                break
        return path

    def _hash(self, path: str, deadline: Deadline) -> str:
        """Return the SHA-256 of a file there in lower case; empty where there is none."""
        done = self.winrm.run(
            ("certutil.exe", "-hashfile", path, "SHA256"), deadline=deadline, idempotent=True
        )
        match = _HASH.search(done.stdout)
        if done.exit_code != 0 or match is None:
            return ""
        return match[1].replace(b" ", b"").decode().lower()

    def _remove(self, path: str) -> None:
        with contextlib.suppress(RemoteError):
            self.winrm.run(
                ("cmd", "/d", "/c", "del", "/f", "/q", path),
                deadline=Deadline.after(_TIDY_S),
                idempotent=True,
            )
