"""How long a guest on Hyper-V dials a host that does not answer."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import itertools
import socket
from collections.abc import Iterator

import pytest

from harness.gcs.prot import BRIDGE_PORT
from harness.guest.transport import VsockTransport


class Host:
    """A host that takes a dial at the moments it is told to; time passes with each attempt."""

    def __init__(self, takes: set[int]) -> None:
        self.dials = 0
        self.ends: list[socket.socket] = []
        self._takes = takes

    def connect(self, port: int) -> socket.socket:
        assert port == BRIDGE_PORT
        self.dials += 1
        if self.dials not in self._takes:
            raise ConnectionResetError
        ours, guests = socket.socketpair()
        self.ends.append(ours)
        return guests

    def transport(self, *, patience_s: float | None) -> VsockTransport:
        seconds = itertools.count()
        return VsockTransport(
            patience_s=patience_s,
            connect=self.connect,
            clock=lambda: next(seconds),
            pause=lambda _: None,
        )


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host({3, 8})
    yield made
    for end in made.ends:
        end.close()


def test_a_host_that_comes_back_in_time_is_served_again_and_then_given_up(host: Host) -> None:
    bridges = list(host.transport(patience_s=10).bridges())
    assert len(bridges) == 2
    assert 8 + 10 <= host.dials <= 8 + 12


def test_a_host_that_never_comes_is_given_up(host: Host) -> None:
    assert list(host.transport(patience_s=1).bridges()) == []


def test_a_guest_that_is_to_stay_dials_for_ever(host: Host) -> None:
    bridges = host.transport(patience_s=None).bridges()
    assert len(list(itertools.islice(bridges, 2))) == 2
