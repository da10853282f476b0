"""The real clients that the tests drive endpoints with: pypsrp and pywinrm."""

from __future__ import annotations

import base64
import contextlib
import http.client
import uuid
from collections.abc import Iterator
from typing import Any, Literal

from pypsrp.shell import Process, WinRS
from pypsrp.wsman import WSMan
from winrm.protocol import Protocol

from harness.winrmd.server import WinRmServer
from harness.winrmd.soap import CMD_URI, NAMESPACES

Transport = Literal["basic", "ntlm"]

USER = "Operator"
PASSWORD = "correct: horse, b@ttery"  # a colon: pyspnego's plain format could not hold it
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@contextlib.contextmanager
def wsman(server: WinRmServer, *, auth: str = "ntlm", **settings: Any) -> Iterator[WSMan]:  # noqa: ANN401 - the client's own settings
    tls = server.config.tls
    settings.setdefault("password", PASSWORD)
    client = WSMan(
        "127.0.0.1",
        port=server.port,
        username=settings.pop("username", USER),
        auth=auth,
        ssl=tls is not None,
        cert_validation=True if tls is None else str(tls.certificate),  # type: ignore[arg-type]
        no_proxy=True,
        **settings,
    )
    with client:
        yield client


@contextlib.contextmanager
def shell(server: WinRmServer, *, auth: str = "ntlm", **settings: Any) -> Iterator[WinRS]:  # noqa: ANN401 - the client's own settings
    with wsman(server, auth=auth, **settings) as client, WinRS(client) as opened:
        yield opened


def run(opened: WinRS, line: str, *, stdin: bytes | None = None, **settings: Any) -> Process:  # noqa: ANN401 - the client's own settings
    """Run a command line to its end; the result has rc, stdout, stderr."""
    process = Process(opened, line, **settings)
    if stdin is None:
        process.invoke()
        return process
    process.begin_invoke()
    process.send(stdin, end=True)
    process.end_invoke()
    return process


@contextlib.contextmanager
def pywinrm(server: WinRmServer, *, transport: Transport, **settings: Any) -> Iterator[Protocol]:  # noqa: ANN401 - the client's own settings
    tls = server.config.tls
    client = Protocol(
        server.url,
        transport=transport,
        username=USER,
        password=PASSWORD,
        ca_trust_path=None if tls is None else str(tls.certificate),  # type: ignore[arg-type]
        proxy=None,
        **settings,
    )
    try:
        yield client
    finally:
        client.transport.close_session()


_DECLARATIONS = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in NAMESPACES.items())


def request(action: str, *, uri: str = CMD_URI, header: str = "", body: str = "") -> bytes:
    """Return an envelope as a client would send it, for requests that no client makes."""
    return (
        f"<s:Envelope {_DECLARATIONS}><s:Header><a:Action>{action}</a:Action>"
        f"<w:ResourceURI>{uri}</w:ResourceURI><a:MessageID>uuid:{uuid.uuid4()}</a:MessageID>"
        f"{header}</s:Header><s:Body>{body}</s:Body></s:Envelope>"
    ).encode()


def attach(client: WSMan, opened: WinRS) -> WinRS:
    """Return the same shell over another connection."""
    again = WinRS(client)
    again.id, again.opened = opened.id, True
    again._selector_set = opened._selector_set
    return again


def post(
    server: WinRmServer, body: bytes, *, path: str = "/wsman", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send one request as it is, with Basic unless told otherwise."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        named = {"Authorization": BASIC, "Content-Type": "application/soap+xml;charset=UTF-8"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, body, {k: v for k, v in named.items() if v})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()
