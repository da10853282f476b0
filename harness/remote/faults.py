"""What pypsrp, requests, urllib3 and WinRM's fault codes mean, as our errors.

Fault codes are those of wsmerror.h (0x8033xxxx) and Win32; which were seen in recordings of real
hosts and which in public reports only is told beside each.
"""

from __future__ import annotations

import importlib
import xml.etree.ElementTree as ET
from typing import Final

import requests
from pypsrp.exceptions import (
    AuthenticationError,
    WinRMError,
    WinRMTransportError,
    WSManFaultError,
)
from spnego.exceptions import SpnegoError
from urllib3.exceptions import NewConnectionError

from harness.errors import (
    AuthError,
    CertificateError,
    ConnectionLostError,
    QuotaError,
    RemoteCommandError,
    RemoteError,
    RemoteTimeoutError,
    RequestTooLargeError,
    ShellGoneError,
)

OPERATION_TIMED_OUT: Final = 2150858793  # 0x80338029: no output yet (recorded)
INVALID_SELECTORS: Final = 2150858843  # 0x8033805B: no such shell or command (recorded)

_GONE: Final = frozenset(
    {
        INVALID_SELECTORS,
        995,  # ERROR_OPERATION_ABORTED: the service is shutting down (reported)
        2150859193,  # 0x803381B9: the same (reported)
        2147943418,  # 0x800703FA: the profile was unloaded under the shell (reported)
    }
)
_QUOTA: Final = frozenset(
    {
        2150859173,  # 0x803381A5: MaxShellsPerUser (reported)
        2150859174,  # 0x803381A6: MaxConcurrentOperationsPerUser (reported)
        2150859175,  # 0x803381A7: requests per user and time
        2150859176,  # 0x803381A8: the service's own
        2150859179,  # 0x803381AB: MaxShellUsers
        2150859241,  # 0x803381E9: MaxConcurrentCommandsPerShell (reported)
        *range(2150859236, 2150859243),  # 0x803381E4-EA: the plugin quotas
    }
)
_TOO_LARGE: Final = frozenset({2150858769})  # 0x80338011: above MaxEnvelopeSizekb
_DENIED: Final = frozenset({5, 2147942405, 2150858981})  # access denied, as Win32, HRESULT, WSMan


def _kerberos_errors() -> tuple[type[Exception], ...]:
    """Return what pyspnego lets through of the package krb5, where that is installed."""
    try:
        return (importlib.import_module("krb5").Krb5Error,)
    except (ImportError, OSError):
        return ()


_KERBEROS_ERRORS: Final = _kerberos_errors()
# Raised below pypsrp, and by it.
TRANSPORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    *_KERBEROS_ERRORS,
    requests.RequestException,
    WinRMError,
    SpnegoError,
    ET.ParseError,
    OSError,
    ValueError,  # pypsrp: the server offers another kind of authentication
    KeyError,  # pypsrp: the server asked for no authentication where sealing needs it
)


def is_operation_timeout(error: Exception) -> bool:
    """Whether this is WinRM's "no output yet", after which one asks again."""
    return isinstance(error, WSManFaultError) and error.code == OPERATION_TIMED_OUT


def translate(error: Exception, *, host: str, sent: bool, what: str) -> RemoteError:
    """Return our error for one of TRANSPORT_ERRORS.

    `sent` says that the request itself, not only the handshake before it, may have reached the
    host; `what` names the request.
    """
    if isinstance(error, WSManFaultError):
        return _from_fault(error, host=host, what=what)
    if isinstance(error, WinRMTransportError):
        return _from_status(error, host=host, sent=sent, what=what)
    if isinstance(error, _KERBEROS_ERRORS):
        return AuthError(
            f"{what}: no Kerberos ticket; check user and password, the realm's KDC and both "
            f"clocks: {error}",
            host=host,
        )
    if isinstance(error, AuthenticationError | SpnegoError | ValueError | KeyError) and not (
        isinstance(error, requests.RequestException | ET.ParseError)
    ):
        return AuthError(
            f"{what}: not let in; check user, password and the auth and tls of the inventory"
            + (f": {error}" if isinstance(error, SpnegoError | ValueError) else ""),
            host=host,
            code=401 if isinstance(error, AuthenticationError) else None,
        )
    if isinstance(error, requests.exceptions.SSLError):
        return CertificateError(
            f"{what}: its certificate is not trusted: {_innermost(error)}; "
            "pin it with tls = pin:sha256:HEX, if it is yours",
            host=host,
        )
    if isinstance(error, requests.Timeout):
        unsent = isinstance(error, requests.ConnectTimeout) or not sent
        return RemoteTimeoutError(
            f"{what}: no {'connection' if unsent else 'answer'} in time",
            host=host,
            maybe_ran=not unsent,
        )
    if isinstance(error, ET.ParseError):
        return RemoteError(f"{what}: the answer is no XML: {error}", host=host, maybe_ran=sent)
    if isinstance(error, requests.RequestException | OSError):
        never = _never_connected(error)
        return ConnectionLostError(
            f"{what}: {'no connection' if never else 'the connection broke'}: {_innermost(error)}",
            host=host,
            maybe_ran=sent and not never,
        )
    return RemoteError(f"{what}: {error}", host=host, maybe_ran=sent)


def _from_fault(error: WSManFaultError, *, host: str, what: str) -> RemoteError:
    code = error.code if isinstance(error.code, int) else None
    reason = error.provider_fault or error.reason or "no reason given"
    message = f"{what}: {reason}"
    if code in _GONE:
        return ShellGoneError(message, host=host, code=code)
    if code in _QUOTA:
        return QuotaError(message, host=host, code=code)
    if code in _TOO_LARGE:
        return RequestTooLargeError(message, host=host, code=code)
    if code in _DENIED:
        return AuthError(message, host=host, code=code)
    if code == OPERATION_TIMED_OUT:
        return RemoteTimeoutError(message, host=host, code=code, maybe_ran=True)
    return RemoteCommandError(reason, host=host, code=code, command=what)


def _from_status(error: WinRMTransportError, *, host: str, sent: bool, what: str) -> RemoteError:
    status = int(error.code)
    if status == 413:
        return RequestTooLargeError(
            f"{what}: larger than the host's MaxEnvelopeSizekb", host=host, code=status
        )
    if status == 403:
        return AuthError(f"{what}: forbidden", host=host, code=status)
    if status == 503:  # http.sys while the service starts or stops: nobody saw the request
        return ConnectionLostError(f"{what}: the service is not up", host=host, code=status)
    if status == 400:  # a body sealed for another connection: it was not readable
        return ConnectionLostError(f"{what}: the seal does not fit", host=host, code=status)
    if status == 404:
        return RemoteError(f"{what}: there is no WinRM at that address", host=host, code=status)
    return RemoteError(
        f"{what}: HTTP error without a fault; plain HTTP needs an auth that seals",
        host=host,
        code=status,
        maybe_ran=sent,
    )


def _innermost(error: BaseException) -> BaseException:
    """Return the cause that says most: requests and urllib3 wrap it several times."""
    while True:
        reason = getattr(error, "reason", None)
        if isinstance(reason, BaseException):
            error = reason
        elif error.args and isinstance(error.args[0], BaseException):
            error = error.args[0]
        elif len(error.args) > 1 and isinstance(error.args[1], BaseException):
            error = error.args[1]
        else:
            return error


def _never_connected(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NewConnectionError | ConnectionRefusedError):
            return True
        reason = getattr(seen, "reason", None)
        inner = reason if isinstance(reason, BaseException) else None
        if inner is None and seen.args and isinstance(seen.args[0], BaseException):
            inner = seen.args[0]
        seen = inner or seen.__cause__
    return False
