"""`lcowlab winrmd`: a WinRM endpoint where there is no Windows, until it is interrupted."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer

from harness.cachedir import CACHE_VARIABLE, cache_directory
from harness.errors import UsageError
from harness.scrubber import KNOWN
from harness.winrmd.config import AuthScheme, ChannelBindings, EndpointConfig, KerberosKeys
from harness.winrmd.hoststate import fresh
from harness.winrmd.knobs import Knobs
from harness.winrmd.troubles import parse_troubles


def winrmd(
    root: Annotated[Path, typer.Option(help="The folder that stands for the host's disk C:.")],
    user: Annotated[list[str], typer.Option(help="Who may log on; may be repeated.")],
    password_env: Annotated[
        list[str],
        typer.Option(help="The variable that holds the password, one for each --user."),
    ],
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Port 0 picks a free one.")
    ] = "127.0.0.1:5985",
    tls: Annotated[bool, typer.Option("--tls", help="HTTPS, certificate made now.")] = False,
    auth: Annotated[
        str, typer.Option(help="Comma-separated: basic, ntlm, negotiate, kerberos.")
    ] = "basic,ntlm,negotiate",
    channel_bindings: Annotated[
        ChannelBindings, typer.Option(help="What NTLM inside of TLS must be bound to.")
    ] = ChannelBindings.RELAXED,
    keytab: Annotated[
        Path | None, typer.Option(help="Kerberos: the keys of HTTP/host and WSMAN/host.")
    ] = None,
    realm: Annotated[str, typer.Option(help="Kerberos: the realm of the users.")] = "",
    machine: Annotated[str, typer.Option(help="The computer name.")] = "WINRMD",
    allow_unencrypted: Annotated[
        bool, typer.Option("--allow-unencrypted", help="Plain HTTP without sealing.")
    ] = False,
    trouble: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ACTION:]TERM->TERM…",
            help="Trouble for clients, such as Command:9*ok->drop-after; may be repeated.",
        ),
    ] = None,
    beyond_loopback: Annotated[
        bool,
        typer.Option("--beyond-loopback", help="Listen where others can reach it, too."),
    ] = False,
) -> None:
    """Serve WinRM with real local processes; says `listening on URL` when it is ready.

    Whoever has the password runs programs as you: it never listens beyond loopback unasked.
    """
    # Here, because no other verb needs cryptography and NTLM, which take long to import.
    from harness.winrmd.certificates import fingerprint, make_certificate
    from harness.winrmd.pretendmachine import open_machine
    from harness.winrmd.server import WinRmServer

    address, port = _listen_address(listen)
    if (keytab is None) == bool(realm):
        raise UsageError("--keytab and --realm go together")
    kerberos = KerberosKeys(keytab, realm) if keytab is not None else None
    users, schemes = _users(user, password_env), _schemes(auth)
    knobs = Knobs()
    for spec in trouble or ():
        for strike in parse_troubles(spec):
            knobs.plan(strike)
    with contextlib.ExitStack() as stack:
        files = None
        if tls:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lcowlab-winrmd-"))
            files = make_certificate([*dict.fromkeys([address, "localhost"])], Path(folder))
        pretend = stack.enter_context(open_machine(root, initial=fresh(machine), programs=_ours()))
        config = EndpointConfig(
            users=users,
            root=root,
            address=address,
            port=port,
            machine=machine,
            auth=schemes,
            tls=files,
            kerberos=kerberos,
            allow_unencrypted=allow_unencrypted,
            channel_bindings=channel_bindings,
            beyond_loopback=beyond_loopback,
            programs=pretend.programs,
            knobs=knobs,
        )
        server = stack.enter_context(WinRmServer(config, resources=pretend.resources))
        if files is not None:
            files.key.unlink()  # it is loaded: what ends us without warning leaves no key behind
            typer.echo(f"certificate {files.certificate}")
            typer.echo(f"sha256 {fingerprint(files.certificate)}")
        typer.echo(f"listening on {server.url}")  # echo flushes: this line means ready
        threading.Event().wait()


def _ours() -> dict[str, tuple[str, ...]]:
    """Return what a deployed host has: ours, with the QEMU and the images of this machine."""
    # Hosts have homes of their own: each would make the utility VM image anew.
    variable = f"os.environ[{CACHE_VARIABLE!r}] = {str(cache_directory())!r}"
    start = f"import os; {variable}; from harness.cli import main; main()"
    return {"lcowlab": (sys.executable, "-c", start)}


def _listen_address(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if not colon or not address or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen wants ADDRESS:PORT, such as 127.0.0.1:0, not {text!r}")
    return address.removeprefix("[").removesuffix("]"), int(port)


def _schemes(text: str) -> tuple[AuthScheme, ...]:
    try:
        return tuple(AuthScheme(word.strip().lower()) for word in text.split(","))
    except ValueError as error:
        known = ", ".join(scheme.value for scheme in AuthScheme)
        raise UsageError(f"--auth: {error}; known are {known}") from error


def _users(names: list[str], variables: list[str]) -> dict[str, str]:
    if len(names) != len(variables):
        raise UsageError("give one --password-env for each --user, in the same order")
    users: dict[str, str] = {}
    for name, variable in zip(names, variables, strict=True):
        password = os.environ.get(variable, "")
        if not password:
            raise UsageError(f"the environment variable {variable} holds no password for {name}")
        KNOWN.add(password, user=name)
        users[name] = password
    return users
