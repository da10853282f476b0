from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import spnego
from hypothesis import given
from hypothesis import strategies as st
from spnego.channel_bindings import GssChannelBindings

from harness.winrmd.auth import ConnectionAuth, bindings_expected, bindings_sent
from harness.winrmd.config import AuthScheme, ChannelBindings
from harness.winrmd.seal import SealError, parse
from harness.winrmd.users import UserStore

_END_POINT = b"tls-server-end-point:" + bytes(32)
_ALL = (AuthScheme.NEGOTIATE, AuthScheme.NTLM, AuthScheme.BASIC)


@pytest.fixture
def users() -> Iterator[UserStore]:
    with UserStore({"Joe": "secret"}, machine="HOST") as store:
        yield store


def connection(
    users: UserStore,
    *,
    level: ChannelBindings = ChannelBindings.RELAXED,
    end_point: bytes | None = None,
) -> ConnectionAuth:
    return ConnectionAuth(users, schemes=_ALL, level=level, end_point=end_point)


def log_on(
    auth: ConnectionAuth,
    *,
    protocol: str = "ntlm",
    name: str = "joe",
    password: str = "secret",
    bindings: bytes | None = None,
) -> spnego.ContextProxy | None:
    """Log a real pyspnego client on; None if it was refused."""
    client = spnego.client(
        name,
        password,
        protocol=protocol,
        channel_bindings=GssChannelBindings(application_data=bindings) if bindings else None,
        options=spnego.NegotiateOptions.use_ntlm
        if protocol == "ntlm"
        else spnego.NegotiateOptions.use_negotiate,
    )
    token = client.step()
    while True:
        assert token is not None
        answer = auth.step(f"Negotiate {base64.b64encode(token).decode()}")
        _, _, reply = answer.headers[0].partition(" ") if answer.headers else ("", "", "")
        if answer.accepted:
            if reply:
                client.step(base64.b64decode(reply))
            return client
        if not reply:
            return None
        token = client.step(base64.b64decode(reply))


@pytest.mark.parametrize("protocol", ["ntlm", "negotiate"])
def test_a_client_logs_on_and_both_ends_seal(users: UserStore, protocol: str) -> None:
    auth = connection(users)
    client = log_on(auth, protocol=protocol)
    assert client is not None
    assert auth.user == "Joe"
    _, body = auth.seal_reply("grüße".encode())
    (part,) = parse(body)
    assert client.unwrap_winrm(part.header, part.data).decode() == "grüße"
    with pytest.raises(SealError):
        auth.unseal_request(body)  # sealed by this end, not by the client


@pytest.mark.parametrize("place", [5, 40, -30])
def test_a_message_that_was_tampered_with_is_refused(users: UserStore, place: int) -> None:
    from harness.winrmd.seal import SealedPart, frame

    auth = connection(users)
    client = log_on(auth)
    assert client is not None
    wrapped = client.wrap_winrm(b"x" * 100)
    for flip in (0, 1):
        header, data = bytearray(wrapped.header), bytearray(wrapped.data)
        (header if place == 5 else data)[place] ^= flip
        _, body = frame([SealedPart(bytes(header), bytes(data), 100)])
        if flip:
            with pytest.raises(SealError):
                auth.unseal_request(body)
        else:
            assert auth.unseal_request(body) == b"x" * 100


@pytest.mark.parametrize(
    ("name", "password"), [("joe", "wrong"), ("jane", "secret"), ("ELSEWHERE\\joe", "secret")]
)
def test_who_is_not_known_is_refused(users: UserStore, name: str, password: str) -> None:
    auth = connection(users)
    assert log_on(auth, name=name, password=password) is None
    assert auth.user is None
    assert not auth.can_unseal


def test_a_failed_attempt_ends_what_was_before(users: UserStore) -> None:
    auth = connection(users)
    assert log_on(auth) is not None
    assert log_on(auth, password="wrong") is None
    assert auth.user is None


@pytest.mark.parametrize("protocol", ["ntlm", "negotiate"])
@pytest.mark.parametrize(
    ("level", "sent", "enters"),
    [
        (ChannelBindings.STRICT, _END_POINT, True),
        (ChannelBindings.STRICT, None, False),
        (ChannelBindings.STRICT, b"other", False),
        (ChannelBindings.RELAXED, None, True),
        (ChannelBindings.RELAXED, b"other", False),
        (ChannelBindings.NONE, b"other", True),
    ],
)
def test_bindings_are_checked_as_the_level_says(
    users: UserStore, protocol: str, level: ChannelBindings, sent: bytes | None, *, enters: bool
) -> None:
    auth = connection(users, level=level, end_point=_END_POINT)
    assert (log_on(auth, protocol=protocol, bindings=sent) is not None) == enters


@given(st.binary(max_size=120))
def test_no_token_breaks_the_search_for_bindings(noise: bytes) -> None:
    for token in (noise, b"NTLMSSP\0\x03\0\0\0" + noise):
        found = bindings_sent(token)
        assert found is None or len(found) <= len(token)
    assert len(bindings_expected(noise)) == 16


@given(st.text(max_size=60))
def test_no_header_breaks_a_connection(text: str) -> None:
    with UserStore({"Joe": "secret"}, machine="HOST") as store:
        auth = connection(store)
        assert not auth.step(text).accepted
        for scheme in ("Negotiate", "NTLM", "Basic"):
            token = base64.b64encode(text.encode()).decode()
            assert not auth.step(f"{scheme} {token}").accepted


def test_many_logons_at_once_to_two_stores_never_mix() -> None:
    with (
        UserStore({"joe": "one"}, machine="A") as one,
        UserStore({"joe": "two"}, machine="B") as two,
        ThreadPoolExecutor(8) as pool,
    ):
        right = [(one, "one"), (two, "two")] * 12
        wrong = [(one, "two"), (two, "one")] * 12

        def attempt(case: tuple[UserStore, str]) -> bool:
            store, password = case
            return log_on(connection(store), password=password) is not None

        assert all(pool.map(attempt, right))
        assert not any(pool.map(attempt, wrong))


def test_the_variable_of_the_process_is_put_back(
    users: UserStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NTLM_USER_FILE", "/mine")
    assert log_on(connection(users)) is not None
    assert os.environ["NTLM_USER_FILE"] == "/mine"
