"""Files arrive whole, once, and go on where they broke off: on this machine as the host."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from harness.errors import ConnectionLostError, OutputLostError, QuotaError, TransferError
from harness.remote.deadline import Deadline
from harness.remote.files import HostFiles
from harness.remote.local import LocalProcess, LocalShell, LocalTransport
from harness.remote.pullserver import address_towards, offer_file
from harness.remote.retries import RetryPolicy
from harness.remote.streams import divide
from harness.remote.transport import Output

MIB = 1 << 20
QUICK = RetryPolicy(attempts=8, first_wait_s=0.0, longest_wait_s=0.01, jitter_s=0.0)


def content(size: int, *, seed: int = 1) -> bytes:
    rng = random.Random(seed)
    half = size // 2
    return rng.randbytes(half) + b"line of a log\n" * ((size - half) // 14 + 1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.bin"
    file.write_bytes(content(3 * MIB)[: 3 * MIB])
    return file


def files(tmp_path: Path, transport: LocalTransport | None = None, **options: object) -> HostFiles:
    return HostFiles(
        transport or LocalTransport(),
        python=sys.executable,
        root=str(tmp_path / "root"),
        policy=QUICK,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("text", [False, True])
def test_a_file_goes_there_by_streams_and_comes_back(
    tmp_path: Path, source: Path, text: bool
) -> None:
    host = files(tmp_path, text=text)
    deadline = Deadline.after(30)
    steps: list[tuple[int, int]] = []
    placed = tmp_path / "there" / "placed.bin"
    sent = host.put(
        source, str(placed), deadline=deadline, progress=lambda *step: steps.append(step)
    )
    assert (sent.way, sent.moved, sent.size) == ("streams", 3 * MIB, 3 * MIB)
    assert placed.read_bytes() == source.read_bytes()
    assert steps[-1] == (3 * MIB, 3 * MIB)
    back = tmp_path / "back.bin"
    assert host.get(str(placed), back, deadline=deadline).sha256 == sent.sha256
    assert back.read_bytes() == source.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_a_second_copy_of_the_same_content_moves_nothing(tmp_path: Path, source: Path) -> None:
    host = files(tmp_path)
    host.put(source, deadline=Deadline.after(30))
    again = host.put(source, str(tmp_path / "other"), deadline=Deadline.after(30))
    assert (again.way, again.moved) == ("cache", 0)
    assert (tmp_path / "other").read_bytes() == source.read_bytes()


def test_a_damaged_cache_entry_is_sent_again(tmp_path: Path, source: Path) -> None:
    host = files(tmp_path)
    sha256 = host.put(source, deadline=Deadline.after(30)).sha256
    entry = tmp_path / "root" / "cache" / "sha256" / sha256[:2] / sha256
    raw = bytearray(entry.read_bytes())
    raw[MIB] ^= 1
    entry.write_bytes(raw)
    assert host.put(source, deadline=Deadline.after(30)).moved == 3 * MIB
    assert hashlib.sha256(entry.read_bytes()).hexdigest() == sha256


def test_the_host_pulls_where_it_can_reach_us(tmp_path: Path, source: Path) -> None:
    host = files(tmp_path, pull_address=address_towards("127.0.0.1", 5986))
    sent = host.put(source, str(tmp_path / "placed"), deadline=Deadline.after(30))
    assert (sent.way, sent.moved) == ("pull", 3 * MIB)
    assert (tmp_path / "placed").read_bytes() == source.read_bytes()


def test_a_pull_goes_on_where_it_broke_off(tmp_path: Path, source: Path) -> None:
    host = files(tmp_path, pull_address="127.0.0.1")
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    part = tmp_path / "root" / "cache" / "partial" / f"{sha256}.whole"
    part.parent.mkdir(parents=True)
    part.write_bytes(source.read_bytes()[: 2 * MIB])
    sent = host.put(source, deadline=Deadline.after(30))
    assert (sent.way, sent.moved) == ("pull", MIB)


def test_an_address_that_is_not_ours_falls_back_to_streams(tmp_path: Path, source: Path) -> None:
    host = files(tmp_path, pull_address="192.0.2.1")
    assert host.put(source, deadline=Deadline.after(30)).way == "streams"


def test_an_offer_answers_only_its_secret_path_with_its_own_certificate(source: Path) -> None:
    import http.client
    import ssl

    with offer_file(source, address="127.0.0.1") as offer:
        trusting = ssl.create_default_context(cadata=offer.authority_pem)
        for path, ranges, status in (
            ("/", "bytes=0-", 404),
            (offer.path, "bytes=1-2", 404),
            (offer.path, f"bytes={3 * MIB}-", 416),
            (offer.path, f"bytes={3 * MIB - 4}-", 206),
        ):
            connection = http.client.HTTPSConnection(
                offer.address, offer.port, context=trusting, timeout=10
            )
            connection.request("GET", path, headers={"Range": ranges})
            answer = connection.getresponse()
            assert answer.status == status
            if status == 206:
                assert answer.read() == source.read_bytes()[-4:]
            connection.close()
        connection = http.client.HTTPSConnection(
            offer.address, offer.port, context=ssl.create_default_context(), timeout=10
        )
        with pytest.raises(ssl.SSLCertVerificationError):
            connection.request("GET", offer.path)
        connection.close()


def test_a_missing_file_and_a_full_disk_say_so(tmp_path: Path, source: Path) -> None:
    host = files(tmp_path)
    with pytest.raises(TransferError, match="there is no file"):
        host.get(str(tmp_path / "none"), tmp_path / "x", deadline=Deadline.after(10))
    (tmp_path / "root").write_text("a file where the folder should be")
    with pytest.raises(TransferError, match="NotADirectoryError"):
        host.put(source, deadline=Deadline.after(10))


class DroppingProcess(LocalProcess):
    """A process whose connection breaks at the given write or read."""

    budget: list[int]

    def write(self, data: bytes, *, deadline: Deadline) -> None:
        # The script itself always arrives; what is cut is the file.
        for at in range(0, len(data), 65536):
            self._spend()
            super().write(data[at : at + 65536], deadline=deadline)

    def read(self, *, deadline: Deadline) -> Output:
        output = super().read(deadline=deadline)
        if len(output.stdout) > 1000 and self.budget and self.budget[0] < 0:
            self.budget.pop(0)
            raise OutputLostError("cut", host="local", maybe_ran=True)
        if len(output.stdout) > 1000:
            self._spend()
        return output

    def _spend(self) -> None:
        if self.budget:
            self.budget[0] -= 1
            if self.budget[0] == 0:
                self.budget.pop(0)
                raise ConnectionLostError("cut", host="local", maybe_ran=True)


class DroppingTransport(LocalTransport):
    def __init__(self, budget: list[int], *, quota: int = 99) -> None:
        super().__init__()
        self.budget = budget
        self.quota = quota
        self.shells = 0

    def open_shell(
        self,
        *,
        deadline: Deadline,
        environment: Mapping[str, str] | None = None,
        working_directory: str | None = None,
    ) -> LocalShell:
        if self.shells >= self.quota:
            raise QuotaError("too many shells", host="local", code=2150859173)
        self.shells += 1
        outer = self

        class Shell(LocalShell):
            def start(self, argv: Sequence[str], *, deadline: Deadline) -> LocalProcess:
                process = super().start(argv, deadline=deadline)
                process.__class__ = DroppingProcess
                assert isinstance(process, DroppingProcess)
                process.budget = outer.budget
                return process

            def close(self) -> None:
                outer.shells -= 1
                super().close()

        return Shell("local", environment=environment, working_directory=working_directory)

    def run(self, argv: Sequence[str], **options: object) -> object:  # type: ignore[override]
        return LocalTransport().run(argv, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("cuts", [[1], [2], [9], [20, 7], [5, 5, 5, 30]])
def test_an_upload_goes_on_after_each_drop(tmp_path: Path, source: Path, cuts: list[int]) -> None:
    transport = DroppingTransport(list(cuts))
    host = files(tmp_path, transport, streams=2)
    host.put(source, str(tmp_path / "placed"), deadline=Deadline.after(30))
    assert (tmp_path / "placed").read_bytes() == source.read_bytes()
    assert len(host.attempts.failed) == len(cuts) - len(transport.budget) > 0


def test_a_download_goes_on_after_a_drop(tmp_path: Path, source: Path) -> None:
    transport = DroppingTransport([4, 6])
    host = files(tmp_path, transport, streams=2)
    host.get(str(source), tmp_path / "back", deadline=Deadline.after(30))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert len(host.attempts.failed) == 2


def test_fewer_shells_than_wished_do_the_work_of_all(tmp_path: Path, source: Path) -> None:
    transport = DroppingTransport([], quota=1)
    host = files(tmp_path, transport, streams=3)
    host.put(source, str(tmp_path / "placed"), deadline=Deadline.after(30))
    assert (tmp_path / "placed").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("size", "count", "lengths"),
    [(0, 4, [0]), (10, 4, [10]), (3 * MIB, 4, [MIB] * 3), (9 * MIB + 1, 2, None)],
)
def test_segments_cover_the_file(size: int, count: int, lengths: list[int] | None) -> None:
    segments = divide(size, count)
    assert sum(each.length for each in segments) == size
    at = 0
    for each in segments:
        assert each.start == at
        at += each.length
    if lengths is not None:
        assert [each.length for each in segments] == lengths
