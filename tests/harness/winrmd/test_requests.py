"""Requests made by hand: what an endpoint answers to those that no client sends."""

from __future__ import annotations

import base64

import pytest
import requests
from pypsrp.shell import WinRS

from harness.winrmd.server import WinRmServer
from harness.winrmd.soap import NAMESPACES, SHELL_URI, parse_xml
from tests.harness.winrmd.clients import post, request, wsman
from tests.harness.winrmd.conftest import MakeEndpoint

_TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer/"
_ENUMERATION = "http://schemas.xmlsoap.org/ws/2004/09/enumeration/"


def test_identify_needs_no_password(plain: WinRmServer) -> None:
    identify = (
        f'<s:Envelope xmlns:s="{NAMESPACES["s"]}"><s:Header/><s:Body>'
        f'<i:Identify xmlns:i="{NAMESPACES["wsmid"]}"/></s:Body></s:Envelope>'
    ).encode()
    for headers, path in (
        ({"Authorization": "", "WSMANIDENTIFY": "unauthenticated"}, "/wsman"),
        ({"Authorization": ""}, "/wsman-anon/identify"),
        ({}, "/wsman"),
    ):
        status, _, body = post(plain, identify, path=path, **headers)
        assert status == 200
        assert b"<wsmid:ProductVendor>Microsoft Corporation<" in body


def test_who_says_nothing_is_asked_for_every_configured_way(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    with requests.Session() as session:
        session.trust_env = False
        response = session.post(server.url)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Negotiate, NTLM, Basic realm="WSMAN"'
    assert response.headers["Server"] == "Microsoft-HTTPAPI/2.0"


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Negotiate " + base64.b64encode(b"rubbish").decode(),
        "Negotiate " + base64.b64encode(b"NTLMSSP\0\x01\0\0\0").decode(),
        "Negotiate " + base64.b64encode(b"NTLMSSP\0\x03\0\0\0" + bytes(80)).decode(),
        "Kerberos YII=",
        "Digest x",
    ],
)
def test_what_is_no_authentication_is_refused(plain: WinRmServer, authorization: str) -> None:
    assert post(plain, b"", Authorization=authorization)[0] == 401
    assert post(plain, b"")[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"no xml", {}, 400),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', {}, 400),
        (request(_TRANSFER + "Get"), {"Content-Type": "multipart/encrypted"}, 400),
        (b"x" * 600_000, {}, 413),
        (b"", {"Content-Length": "x"}, 411),
    ],
)
def test_bodies_that_are_none(
    plain: WinRmServer, body: bytes, headers: dict[str, str], status: int
) -> None:
    assert post(plain, body, **headers)[0] == status


def test_there_is_nothing_to_get(plain: WinRmServer) -> None:
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(plain.url).status_code == 405


def test_other_paths_do_not_exist(plain: WinRmServer) -> None:
    assert post(plain, b"", path="/other")[0] == 404


@pytest.mark.parametrize(
    ("action", "uri", "code"),
    [
        (_TRANSFER + "Get", "http://schemas.microsoft.com/wbem/wsman/1/nothing", 2150858752),
        (_TRANSFER + "Create", SHELL_URI + "/cmd", 2150858843),
        (SHELL_URI + "/Command", SHELL_URI + "/cmd", 2150858843),
        (_TRANSFER + "Delete", "http://schemas.microsoft.com/wbem/wsman/1/config", 2150858754),
    ],
)
def test_requests_for_nothing_are_faults(
    plain: WinRmServer, action: str, uri: str, code: int
) -> None:
    status, _, body = post(plain, request(action, uri=uri))
    assert status == 500
    assert f'Code="{code}" Machine="WINRMD"'.encode() in body


def test_shells_are_enumerated_in_pieces(plain: WinRmServer) -> None:
    with wsman(plain) as client, WinRS(client) as one, WinRS(client) as two:
        first = request(
            _ENUMERATION + "Enumerate",
            uri=SHELL_URI,
            body="<n:Enumerate><w:OptimizeEnumeration/><w:MaxElements>1</w:MaxElements>"
            "</n:Enumerate>",
        )
        root = parse_xml(post(plain, first)[2])
        ids = [element.text for element in root.iter(f"{{{SHELL_URI}}}ShellId")]
        context = root.findtext(".//n:EnumerationContext", "", NAMESPACES)
        pull = request(
            _ENUMERATION + "Pull",
            uri=SHELL_URI,
            body=f"<n:Pull><n:EnumerationContext>{context}</n:EnumerationContext></n:Pull>",
        )
        root = parse_xml(post(plain, pull)[2])
        ids += [element.text for element in root.iter(f"{{{SHELL_URI}}}ShellId")]
        assert ids == [one.id, two.id]
        assert root.find(".//n:EndOfSequence", NAMESPACES) is not None
        assert b"enumeration context is not valid" in post(plain, pull)[2]
