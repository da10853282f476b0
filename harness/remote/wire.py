"""One connection to a WinRM service, and what it needs to be dependable.

pypsrp's `WSMan` does SOAP, authentication and sealing. This adds:

- every request bounded by a deadline: WinRM's OperationTimeout is always shorter than the time we
  wait for the answer, so that a slow command is a fault of WinRM's and not a dead socket;
- no proxies and nothing else from the environment; certificates verified, or pinned by SHA-256;
- a sealed session never continues on another TCP connection: NTLM seals for one connection, and
  pypsrp would send the body again under a seal that no longer fits;
- no silent second Receive: pypsrp asks again after a read time-out, but WinRM does not answer the
  same output twice;
- errors of `harness.errors`, with what is known about whether the request was carried out.

A wire that failed is dead: its owner makes a new one. Only one thread may use it at a time.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Final, Literal

import requests
from pypsrp.wsman import OptionSet, SelectorSet, WSMan
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from harness.errors import ConnectionLostError, RemoteTimeoutError, UsageError
from harness.remote.deadline import Deadline
from harness.remote.faults import TRANSPORT_ERRORS, is_operation_timeout, translate
from harness.remote.passwords import Secret

DEFAULT_ENVELOPE_KIB: Final = 150
"""What every WinRM takes: the default of Windows Server 2008 R2; newer ones take 500."""

_MIN_OPERATION_S: Final = 0.5  # WinRM refuses less
_MAX_OPERATION_S: Final = 20.0  # MaxTimeoutms is 60 s; shorter long polls notice drops sooner
_ANSWER_GRACE_S: Final = 5.0
_CONNECT_S: Final = 10.0
_PIN: Final = "pin:sha256:"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a host's WinRM is and who asks; `tls` is verify, off, or pin:sha256:HEX."""

    name: str
    address: str
    port: int
    auth: Literal["negotiate", "ntlm", "kerberos", "basic", "credssp"]
    tls: str
    user: str
    password: Secret

    def __post_init__(self) -> None:
        if self.tls == "off" and self.auth == "basic":
            raise UsageError(f"{self.name}: basic over plain HTTP shows the password")
        if self.tls not in ("off", "verify") and not self.tls.startswith(_PIN):
            raise UsageError(f"{self.name}: tls is verify, off or {_PIN}HEX, not {self.tls!r}")


class _Gate:
    """Lets one TCP connection be made; once `shut`, a second attempt fails and is remembered."""

    def __init__(self) -> None:
        self.shut = False
        self.refused = False

    def enter(self) -> None:
        if self.shut:
            self.refused = True
            raise ConnectionResetError("the sealed connection was closed by the host")


class _Adapter(HTTPAdapter):
    """requests' adapter with a gate before each new connection, and a certificate pin."""

    def __init__(self, gate: _Gate, fingerprint: str | None) -> None:
        self._gate = gate
        self._fingerprint = fingerprint
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(
        self,
        connections: int,
        maxsize: int,
        block: bool = False,
        **pool_kwargs: object,
    ) -> None:
        if self._fingerprint is not None:
            pool_kwargs["assert_fingerprint"] = self._fingerprint
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs)
        gate = self._gate

        class PlainConnection(HTTPConnection):
            def connect(self) -> None:
                gate.enter()
                super().connect()

        class TlsConnection(HTTPSConnection):
            def connect(self) -> None:
                gate.enter()
                super().connect()

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = PlainConnection

        class TlsPool(HTTPSConnectionPool):
            ConnectionCls = TlsConnection

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": TlsPool}


class _BoundedWSMan(WSMan):
    """pypsrp's WSMan with the deadline of the request under way, and no Receive sent twice."""

    deadline: Deadline | None = None
    host: str = ""

    def invoke(
        self,
        action: str,
        resource_uri: str,
        resource: ET.Element | None,
        option_set: OptionSet | None = None,
        selector_set: SelectorSet | None = None,
        timeout: int | None = None,
        *,
        retries_on_read_timeout: int = 0,
    ) -> ET.Element:
        if self.deadline is not None:
            if self.deadline.passed:  # between the requests of one call: nothing is under way
                raise RemoteTimeoutError("no time left", host=self.host, maybe_ran=True)
            remaining = max(self.deadline.remaining_s, _MIN_OPERATION_S)
            operation = min(_MAX_OPERATION_S, max(_MIN_OPERATION_S, remaining * 0.8))
            answer = min(max(remaining, _MIN_OPERATION_S * 2), operation + _ANSWER_GRACE_S)
            self.operation_timeout = round(operation, 3)  # type: ignore[assignment] # an xs:duration may have a fraction
            self.transport.read_timeout = answer  # type: ignore[assignment]
            self.transport.connection_timeout = min(_CONNECT_S, answer)  # type: ignore[assignment]
        return super().invoke(action, resource_uri, resource, option_set, selector_set)


class Wire:
    """One WSMan with its TCP connection; made without I/O, connected by its first request."""

    def __init__(self, endpoint: Endpoint, *, envelope_kib: int = DEFAULT_ENVELOPE_KIB) -> None:
        self._endpoint = endpoint
        self._gate = _Gate()
        self.dead = False
        self.clock_skew_s: float | None = None
        """The host's clock minus ours when it last answered, from the Date header; +-1 s."""
        tls = endpoint.tls != "off"
        self.wsman = _BoundedWSMan(
            endpoint.address,
            max_envelope_size=envelope_kib * 1024,
            port=endpoint.port,
            username=endpoint.user,
            password=endpoint.password.reveal(),
            ssl=tls,
            auth=endpoint.auth,
            encryption="auto",
            no_proxy=True,
        )
        self.wsman.host = endpoint.name
        self._seals = not tls
        self.wsman.transport.session = self._session()

    def _session(self) -> requests.Session:
        # pypsrp builds the session with its authentication; there is no public way to get it.
        session = self.wsman.transport._build_session()
        session.trust_env = False
        session.proxies = {}
        fingerprint = None
        if self._endpoint.tls.startswith(_PIN):
            fingerprint = self._endpoint.tls.removeprefix(_PIN)
            session.verify = False  # the pin decides, whoever signed
        adapter = _Adapter(self._gate, fingerprint)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        session.hooks["response"].append(self._note_date)
        return session

    def _note_date(self, response: requests.Response, **_: object) -> None:
        if date := response.headers.get("Date"):
            try:
                self.clock_skew_s = parsedate_to_datetime(date).timestamp() - time()
            except ValueError:
                self.clock_skew_s = None

    @property
    def payload_size(self) -> int:
        """Raw bytes that fit into one Send."""
        # pypsrp took the envelope off and counts raw bytes; the rest is for attributes it does not.
        return int(self.wsman.max_payload_size) - 1024

    @contextmanager
    def request(self, what: str, deadline: Deadline) -> Iterator[WSMan]:
        """Give the WSMan for one request; errors leave typed, and all but faults end the wire.

        Raises RemoteError; RemoteTimeoutError at once when the deadline has passed.
        """
        host = self._endpoint.name
        if deadline.passed:
            raise RemoteTimeoutError(f"{what}: no time left", host=host)
        if self.dead:
            raise ConnectionLostError(f"{what}: this connection has ended", host=host)
        self.wsman.deadline = deadline
        try:
            yield self.wsman
        except TRANSPORT_ERRORS as error:
            if is_operation_timeout(error):
                raise RemoteTimeoutError(
                    f"{what}: nothing yet", host=host, code=_code(error)
                ) from None
            sealing_began = self.wsman.transport.encryption is not None
            sent = not self._gate.refused and (sealing_began or not self._seals)
            translated = translate(error, host=host, sent=sent, what=what)
            if translated.code is None or translated.code < 1000:
                self.close()
            raise translated from error
        finally:
            # From here on the seal belongs to this TCP connection.
            self._gate.shut = self.wsman.transport.encryption is not None

    def close(self) -> None:
        """End the connection; may be repeated, never raises."""
        self.dead = True
        self.wsman.close()


def _code(error: Exception) -> int | None:
    code: object = getattr(error, "code", None)
    return code if isinstance(code, int) else None
