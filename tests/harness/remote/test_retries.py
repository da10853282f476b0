"""Only infrastructure is retried: what cannot have run or may run twice, and never for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
import requests
from pypsrp.exceptions import AuthenticationError, WinRMTransportError, WSManFaultError

from harness.errors import (
    AuthError,
    CertificateError,
    ConnectionLostError,
    InfrastructureError,
    OutputLostError,
    QuotaError,
    RemoteCommandError,
    RemoteError,
    RemoteTimeoutError,
    RequestTooLargeError,
    ShellGoneError,
)
from harness.remote.deadline import Deadline
from harness.remote.faults import translate
from harness.remote.retries import Attempts, RetryPolicy, call_with_retries, is_retriable

POLICY = RetryPolicy(attempts=4, first_wait_s=0.01, longest_wait_s=0.02, jitter_s=0.0)


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


def lost(*, maybe_ran: bool = False) -> ConnectionLostError:
    return ConnectionLostError("lost", host="win1", maybe_ran=maybe_ran)


def retry(
    function: Callable[[], str], *, idempotent: bool = False, within_s: float = 5.0
) -> tuple[str, Attempts]:
    attempts = Attempts()
    result = call_with_retries(
        function,
        what="win1: test",
        policy=POLICY,
        deadline=Deadline.after(within_s),
        idempotent=idempotent,
        attempts=attempts,
    )
    return result, attempts


@pytest.mark.parametrize(
    ("error", "always", "if_idempotent"),
    [
        (lost(), True, True),
        (lost(maybe_ran=True), False, True),
        (OutputLostError("x", host="h", maybe_ran=True), False, True),
        (RemoteTimeoutError("x", host="h", maybe_ran=True), False, True),
        (ShellGoneError("x", host="h"), True, True),
        (ShellGoneError("x", host="h", maybe_ran=True), False, True),
        (QuotaError("x", host="h", maybe_ran=True), True, True),
        (AuthError("x", host="h"), False, False),
        (CertificateError("x", host="h"), False, False),
        (RequestTooLargeError("x", host="h"), False, False),
        (RemoteCommandError("x", host="h"), False, False),
        (ValueError("ours"), False, False),
    ],
)
def test_what_may_be_repeated(error: Exception, always: bool, if_idempotent: bool) -> None:
    assert is_retriable(error, idempotent=False) is always
    assert is_retriable(error, idempotent=True) is if_idempotent


def test_every_failed_attempt_is_recorded() -> None:
    first, second = lost(), QuotaError("full", host="win1")
    result, attempts = retry(failing(first, second))
    assert result == "done"
    assert [(each.number, each.error) for each in attempts.failed] == [(1, first), (2, second)]
    assert all(each.wait_s is not None for each in attempts.failed)


def test_after_the_last_attempt_the_error_is_told_once_and_for_all() -> None:
    errors = [lost() for _ in range(9)]
    with pytest.raises(ConnectionLostError) as caught:
        retry(failing(*errors))
    assert caught.value is errors[POLICY.attempts - 1]
    assert not is_retriable(caught.value, idempotent=True)


def test_no_wait_goes_past_the_deadline() -> None:
    slow = RetryPolicy(attempts=9, first_wait_s=5.0, jitter_s=0.0)
    began = time.monotonic()
    with pytest.raises(ConnectionLostError):
        call_with_retries(
            failing(*(lost() for _ in range(9))),
            what="x",
            policy=slow,
            deadline=Deadline.after(0.5),
            idempotent=True,
            attempts=Attempts(),
        )
    assert time.monotonic() - began < 0.5


def test_when_the_time_is_up_the_reason_before_it_is_told() -> None:
    with pytest.raises(QuotaError):
        retry(
            failing(
                QuotaError("full", host="win1"), RemoteTimeoutError("no time left", host="win1")
            ),
            within_s=0.0101,
        )


def fault(code: int | str) -> WSManFaultError:
    return WSManFaultError(code, "machine", "reason", None, None, None)


@pytest.mark.parametrize(
    ("error", "expected", "maybe_ran"),
    [
        (fault(2150858843), ShellGoneError, False),
        (fault(995), ShellGoneError, False),
        (fault(2150859173), QuotaError, False),
        (fault(2150859174), QuotaError, False),
        (fault(5), AuthError, False),
        (fault(2150858817), RemoteCommandError, False),
        (fault("w:Unknown"), RemoteCommandError, False),
        (AuthenticationError("no"), AuthError, False),
        (ValueError("incompatible auth"), AuthError, False),
        (KeyError("127.0.0.1"), AuthError, False),
        (WinRMTransportError("http", 413, ""), RequestTooLargeError, False),
        (WinRMTransportError("http", 403, ""), AuthError, False),
        (WinRMTransportError("http", 503, ""), ConnectionLostError, False),
        (WinRMTransportError("http", 400, ""), ConnectionLostError, False),
        (WinRMTransportError("http", 404, ""), RemoteError, False),
        (WinRMTransportError("http", 500, ""), RemoteError, True),
        (requests.exceptions.SSLError("bad"), CertificateError, False),
        (requests.ConnectTimeout("slow"), RemoteTimeoutError, False),
        (requests.ReadTimeout("slow"), RemoteTimeoutError, True),
        (requests.ConnectionError(ConnectionRefusedError()), ConnectionLostError, False),
        (requests.ConnectionError(ConnectionResetError()), ConnectionLostError, True),
        (ConnectionResetError(), ConnectionLostError, True),
        (ElementTree.ParseError("no XML"), RemoteError, True),
    ],
)
def test_each_failure_below_has_its_error(
    error: Exception, expected: type[RemoteError], maybe_ran: bool
) -> None:
    translated = translate(error, host="win1", sent=True, what="ask")
    assert type(translated) is expected
    assert isinstance(translated, InfrastructureError)
    assert (translated.host, translated.maybe_ran) == ("win1", maybe_ran)
    assert "win1: " in str(translated)


def test_what_was_not_sent_cannot_have_run() -> None:
    for error in (requests.ReadTimeout("slow"), requests.ConnectionError(ConnectionResetError())):
        assert not translate(error, host="win1", sent=False, what="ask").maybe_ran
