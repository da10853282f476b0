"""Real Kerberos tickets of a real KDC are let in by the WinRM endpoint, and seal what passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from pypsrp.shell import Process, WinRS
from pypsrp.wsman import WSMan

from harness.errors import AuthError
from harness.hosts.connecting import connect_host
from harness.hosts.inventory import Host
from harness.remote.deadline import Deadline
from harness.remote.endpoint import Endpoint
from harness.remote.passwords import Secret
from harness.remote.winrm import WinRM
from harness.winrmd.certificates import fingerprint, make_certificate
from harness.winrmd.config import AuthScheme, ChannelBindings, EndpointConfig, KerberosKeys
from harness.winrmd.server import WinRmServer
from tests.conformance.realm import HOST, REALM, USER, Realm, lacking, realm

pytestmark = [pytest.mark.conformance, pytest.mark.long]


@pytest.fixture(scope="module")
def kdc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    if why := lacking():
        pytest.skip(why)
    with (
        realm(tmp_path_factory.mktemp("kerberos") / "realm") as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


def serve(
    kdc: Realm, root: Path, *, auth: tuple[AuthScheme, ...], tls: bool = False, user: str = USER
) -> WinRmServer:
    return WinRmServer(
        EndpointConfig(
            # The password of the endpoint is another: only a ticket can have let us in.
            users={user: "not the one of the realm"},
            root=root,
            auth=auth,
            kerberos=KerberosKeys(kdc.keytab, REALM),
            tls=make_certificate([HOST], root) if tls else None,
            channel_bindings=ChannelBindings.RELAXED,
        )
    )


def endpoint(
    server: WinRmServer, password: str, *, auth: Literal["kerberos", "negotiate"], user: str = USER
) -> Endpoint:
    files = server.config.tls
    tls = f"pin:sha256:{fingerprint(files.certificate)}" if files else "off"
    return Endpoint(HOST, HOST, server.port, auth, tls, f"{user}@{REALM}", Secret(password))


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    ("auth", "offered"),
    [
        ("kerberos", AuthScheme.KERBEROS),
        ("negotiate", AuthScheme.KERBEROS),
        ("negotiate", AuthScheme.NEGOTIATE),
    ],
)
def test_a_ticket_lets_us_in_and_seals_every_message(
    kdc: Realm,
    tmp_path: Path,
    auth: Literal["kerberos", "negotiate"],
    offered: AuthScheme,
    tls: bool,
) -> None:
    with (
        serve(kdc, tmp_path, auth=(offered,), tls=tls) as server,
        WinRM(endpoint(server, kdc.password, auth=auth)) as win,
    ):
        data = bytes(range(256)) * 4096  # more than one envelope of sealed data
        echo = "import sys;sys.stdout.buffer.write(sys.stdin.buffer.read())"
        done = win.run(["python", "-c", echo], stdin=data, deadline=Deadline.after(60))
        assert (done.exit_code, done.stdout) == (0, data)
        assert (
            win.config(deadline=Deadline.after(20))["Service/Auth/Kerberos"]
            == str(offered is AuthScheme.KERBEROS).lower()
        )


def test_a_ticket_that_is_there_already_needs_no_user_and_no_password(
    kdc: Realm, tmp_path: Path
) -> None:
    krb5 = pytest.importorskip("krb5")

    context = krb5.init_context()
    principal = krb5.parse_name_flags(context, f"{USER}@{REALM}".encode())
    options = krb5.get_init_creds_opt_alloc(context)
    ticket = krb5.get_init_creds_password(
        context, principal, options, password=kdc.password.encode()
    )
    cache = krb5.cc_resolve(context, kdc.environment["KRB5CCNAME"].encode())
    krb5.cc_initialize(context, cache, principal)
    krb5.cc_store_cred(context, cache, ticket)
    with (
        serve(kdc, tmp_path, auth=(AuthScheme.KERBEROS,)) as server,
        WSMan(HOST, port=server.port, ssl=False, auth="kerberos", no_proxy=True) as wsman,
        WinRS(wsman) as shell,
    ):
        process = Process(shell, "whoami")
        process.invoke()
        assert USER in process.stdout.decode()
        assert wsman.transport.encryption is not None
        host = Host.model_validate(
            {"address": HOST, "port": server.port, "auth": "kerberos", "tls": "off"}
        )
        with connect_host("win-01", host) as win:
            assert USER in win.run(["whoami"], deadline=Deadline.after(30)).text
    Path(kdc.environment["KRB5CCNAME"].removeprefix("FILE:")).unlink()


def test_a_wrong_password_gets_no_ticket(kdc: Realm, tmp_path: Path) -> None:
    with (
        serve(kdc, tmp_path, auth=(AuthScheme.KERBEROS,)) as server,
        WinRM(endpoint(server, "wrong", auth="kerberos")) as win,
        pytest.raises(AuthError, match="no Kerberos ticket"),
    ):
        win.run(["hostname"], deadline=Deadline.after(20))


def test_a_ticket_for_somebody_who_is_no_user_here_is_refused(kdc: Realm, tmp_path: Path) -> None:
    with (
        serve(kdc, tmp_path, auth=(AuthScheme.KERBEROS,), user="somebody") as server,
        WinRM(endpoint(server, kdc.password, auth="kerberos")) as win,
        pytest.raises(AuthError),
    ):
        win.run(["hostname"], deadline=Deadline.after(20))


def test_a_user_of_another_realm_is_refused(kdc: Realm, tmp_path: Path) -> None:
    config = EndpointConfig(
        users={USER: "word"},
        root=tmp_path,
        auth=(AuthScheme.KERBEROS,),
        kerberos=KerberosKeys(kdc.keytab, "OTHER.TEST"),
    )
    with (
        WinRmServer(config) as server,
        WinRM(endpoint(server, kdc.password, auth="kerberos")) as win,
        pytest.raises(AuthError),
    ):
        win.run(["hostname"], deadline=Deadline.after(20))
