"""What a stranger on the network can send to the WinRM endpoint before it knows who that is."""

from __future__ import annotations

import atexit
import base64
import random
from collections.abc import Callable
from pathlib import Path

import spnego

from harness.errors import HarnessError
from harness.winrmd import faults, seal
from harness.winrmd.auth import ConnectionAuth, bindings_sent
from harness.winrmd.cmdline import parse_line, split_argv
from harness.winrmd.config import AuthScheme, ChannelBindings
from harness.winrmd.soap import CMD_URI, NAMESPACES, parse_request
from harness.winrmd.users import UserStore
from tests.fuzz.mutation import mutate
from tests.fuzz.targets import Target

_ENVELOPE = (
    f'<s:Envelope xmlns:s="{NAMESPACES["s"]}" xmlns:w="{NAMESPACES["w"]}" '
    f'xmlns:a="{NAMESPACES["a"]}" xmlns:rsp="{NAMESPACES["rsp"]}"><s:Header>'
    f"<a:Action>{NAMESPACES['rsp']}/Send</a:Action><w:ResourceURI>{CMD_URI}</w:ResourceURI>"
    "<w:OperationTimeout>PT60.000S</w:OperationTimeout><w:MaxEnvelopeSize>153600"
    '</w:MaxEnvelopeSize><w:SelectorSet><w:Selector Name="ShellId">A</w:Selector>'
    "</w:SelectorSet></s:Header><s:Body><rsp:Send><rsp:Stream>QUJD</rsp:Stream></rsp:Send>"
    "</s:Body></s:Envelope>"
).encode()
_LINE = b'echo "a b" ^& c && (set A=%B:~1,2% | x.exe "q\\"r" > f 2>&1) || cd /d C:\\x & exit 1'


def soap(_folder: Path) -> Target:
    """Envelopes."""
    return Target(
        make=lambda rng: mutate(_ENVELOPE, rng),
        run=parse_request,
        allowed=(HarnessError, faults.WsmanFault),
    )


def sealed(_folder: Path) -> Target:
    """Sealed messages."""

    def make(rng: random.Random) -> bytes:
        parts = [
            seal.SealedPart(rng.randbytes(16), rng.randbytes(40), 40)
            for _ in range(rng.randint(1, 3))
        ]
        return mutate(seal.frame(parts)[1], rng)

    return Target(make=make, run=seal.parse, allowed=(HarnessError,))


def command_line(_folder: Path) -> Target:
    """Command lines."""

    def run(data: bytes) -> object:
        line = data.decode("latin-1")
        return split_argv(line), parse_line(line)

    return Target(make=lambda rng: mutate(_LINE, rng), run=run, allowed=(HarnessError,))


def logon(_folder: Path) -> Target:
    """NTLM and SPNEGO tokens: refused, whatever they are, and never let in."""
    store = UserStore({"joe": "secret"}, machine="HOST")
    atexit.register(store.__exit__, None, None, None)
    store.__enter__()
    raw = spnego.client("joe", "wrong", protocol="ntlm", options=spnego.NegotiateOptions.use_ntlm)
    wrapped = spnego.client("joe", "wrong", options=spnego.NegotiateOptions.use_negotiate)
    first, wrapped_first = raw.step() or b"", wrapped.step() or b""

    def make(rng: random.Random) -> tuple[bytes, bytes]:
        second = b"NTLMSSP\0\x03\0\0\0" + rng.randbytes(rng.randint(0, 120))
        opening = first if rng.random() < 0.5 else wrapped_first
        return mutate(opening, rng), mutate(second, rng)

    def run(tokens: tuple[bytes, bytes]) -> object:
        auth = ConnectionAuth(
            store,
            schemes=(AuthScheme.NEGOTIATE,),
            level=ChannelBindings.RELAXED,
            end_point=b"tls-server-end-point:" + bytes(32),
        )
        for token in tokens:
            bindings_sent(token)
            header = f"Negotiate {base64.b64encode(token).decode()}"
            assert not auth.step(header).accepted, "a mutated token was let in"
        return auth

    return Target(make=make, run=run, allowed=(HarnessError,))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "soap": soap,
    "sealed": sealed,
    "cmdline": command_line,
    "logon": logon,
}
