"""Files over a real SMB server to the disk of a pretend host, and what a closed share leaves."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.remote.deadline import Deadline
from harness.remote.endpoint import Endpoint
from harness.remote.files import HostFiles
from harness.remote.passwords import Secret
from harness.remote.smb import AdminShare, share_of
from harness.remote.winrm import WinRM
from tests.harness.remote.conftest import CANARY, QUICK, PretendHost
from tests.harness.remote.samba import lacking, samba

MIB = 1 << 20
ROOT = "C:\\ProgramData\\lcowlab"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.bin"
    file.write_bytes(random.Random(5).randbytes(5 * MIB + 17))
    return file


@pytest.fixture
def share(sealed: PretendHost, tmp_path: Path) -> Iterator[AdminShare]:
    """The share of that host's disk."""
    if why := lacking():
        pytest.skip(why)
    with samba(tmp_path / "samba", sealed.root, password=CANARY) as (user, port):
        yield AdminShare("127.0.0.1", user, Secret(CANARY), "ntlm", port)


def files(win: WinRM, share: AdminShare, **options: object) -> HostFiles:
    return HostFiles(win, "python", ROOT, share=share, policy=QUICK, **options)  # type: ignore[arg-type]


def part_of(sealed: PretendHost, source: Path) -> Path:
    name = hashlib.sha256(source.read_bytes()).hexdigest() + ".whole"
    part = sealed.root.joinpath("ProgramData", "lcowlab", "cache", "partial", name)
    part.parent.mkdir(parents=True)
    return part


@pytest.mark.conformance
def test_the_share_is_the_first_way_and_the_content_arrives_whole(
    sealed: PretendHost, win: WinRM, share: AdminShare, source: Path
) -> None:
    host = files(win, share, pull_address="127.0.0.1")
    steps: list[tuple[int, int]] = []
    sent = host.put(
        source,
        "C:\\there.bin",
        deadline=Deadline.after(60),
        progress=lambda *step: steps.append(step),
    )
    assert (sent.way, sent.moved, sent.closed) == ("smb", source.stat().st_size, ())
    assert (sealed.root / "there.bin").read_bytes() == source.read_bytes()
    assert [steps[0][0], steps[-1][0]] == [0, source.stat().st_size]
    assert host.put(source, deadline=Deadline.after(60)).way == "cache"


@pytest.mark.conformance
@pytest.mark.parametrize(("there", "moved"), [(2 * MIB, 3 * MIB + 17), (9 * MIB, 5 * MIB + 17)])
def test_the_share_goes_on_from_a_part_and_replaces_what_is_none(
    sealed: PretendHost, win: WinRM, share: AdminShare, source: Path, there: int, moved: int
) -> None:
    data = source.read_bytes()
    part_of(sealed, source).write_bytes((data + data)[:there])
    sent = files(win, share).put(source, "C:\\there.bin", deadline=Deadline.after(60))
    assert (sent.way, sent.moved) == ("smb", moved)
    assert (sealed.root / "there.bin").read_bytes() == data


@pytest.mark.conformance
def test_a_share_that_does_not_let_us_in_is_closed_and_not_asked_again(
    win: WinRM, share: AdminShare, source: Path, tmp_path: Path
) -> None:
    refused = AdminShare(share.address, share.user, Secret("wrong"), "ntlm", share.port)
    host = files(win, refused, pull_address="127.0.0.1")
    sent = host.put(source, deadline=Deadline.after(60))
    assert sent.way == "pull"
    assert [way for way, _ in sent.closed] == ["smb"]
    assert "LOGON_FAILURE" in sent.closed[0][1]
    other = tmp_path / "other"
    other.write_bytes(b"other")
    assert host.put(other, deadline=Deadline.after(60)).closed == sent.closed


def test_without_a_share_and_a_route_to_us_the_streams_carry(
    sealed: PretendHost, win: WinRM, source: Path
) -> None:
    nobody = AdminShare("127.0.0.1", "lab", Secret(CANARY), "ntlm", port=1)
    host = files(win, nobody, pull_address="192.0.2.1")
    sent = host.put(source, "C:\\there.bin", deadline=Deadline.after(60))
    assert sent.way == "streams"
    assert [way for way, _ in sent.closed] == ["smb", "pull"]
    assert all(reason for _, reason in sent.closed)
    assert (sealed.root / "there.bin").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("auth", "address", "root", "shared"),
    [
        ("basic", "win1", ROOT, "ntlm"),
        ("kerberos", "win1.example.com", ROOT, "kerberos"),
        ("negotiate", "192.0.2.4", "D:\\lab", "negotiate"),
        ("credssp", "win1", ROOT, None),
        ("ntlm", "2001:db8::1", ROOT, None),
        ("ntlm", "win1", "\\\\server\\share", None),
    ],
)
def test_a_share_goes_with_the_endpoint_where_it_can(
    auth: str, address: str, root: str, shared: str | None
) -> None:
    endpoint = Endpoint("w", address, 5986, auth, "verify", "u", Secret("p"))  # type: ignore[arg-type]
    share = share_of(endpoint, root)
    assert (share.auth if share else None) == shared
