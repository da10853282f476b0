"""Who a connection is: Basic, NTLM, Negotiate, Kerberos, and the sealing that all but Basic bring.

::

    anonymous ──Authorization──> negotiating ──> authenticated ──a new Authorization──> …
                     └── refused: back to anonymous, 401

http.sys binds NTLM and its security context to the TCP connection: so does this, one object for
each connection, used by that connection's thread alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import struct
from dataclasses import dataclass
from typing import Final

import spnego
from spnego.channel_bindings import GssChannelBindings
from spnego.exceptions import SpnegoError

from harness.winrmd import seal
from harness.winrmd.config import AuthScheme, ChannelBindings
from harness.winrmd.users import LogonRefusedError, UserStore

log = logging.getLogger(__name__)

_NTLM: Final = b"NTLMSSP\0"
# The mechanism's OID in a token, DER: 1.2.840.113554.1.2.2 (RFC 4121), and Microsoft's spelling.
_KERBEROS: Final = (
    b"\x2a\x86\x48\x86\xf7\x12\x01\x02\x02",
    b"\x2a\x86\x48\x82\xf7\x12\x01\x02\x02",
)
_NEGOTIATE_MESSAGE, _AUTHENTICATE_MESSAGE = 1, 3
_AV_END, _AV_CHANNEL_BINDINGS = 0, 10


@dataclass(frozen=True, slots=True)
class Answer:
    """`accepted`, or what to send with the 401; `headers` are WWW-Authenticate values."""

    accepted: bool
    headers: tuple[str, ...] = ()


def bindings_sent(token: bytes) -> bytes | None:
    """Return the channel binding hash in an NTLM AUTHENTICATE message (raw or inside SPNEGO).

    None if the token is none, or if it has none (16 zero bytes say so too). [MS-NLMP] 2.2.1.3,
    2.2.2.1. The NT response covers the value: it is proved once the context accepts the token.
    """
    at = token.find(_NTLM + struct.pack("<I", _AUTHENTICATE_MESSAGE))
    if at < 0:
        return None
    message = token[at:]
    try:
        length, _, offset = struct.unpack_from("<HHI", message, 20)
        response = message[offset : offset + length]
        # NTProofStr (16), then 28 bytes of NTLMv2_CLIENT_CHALLENGE before its AV pairs.
        place = 16 + 28
        while True:
            kind, size = struct.unpack_from("<HH", response, place)
            if kind == _AV_END:
                return None
            value = response[place + 4 : place + 4 + size]
            if kind == _AV_CHANNEL_BINDINGS:
                return value if any(value) else None
            place += 4 + size
    except struct.error:
        return None


def bindings_expected(end_point: bytes) -> bytes:
    """Return the hash that clients send for `tls-server-end-point:` + certificate hash."""
    packed = GssChannelBindings(application_data=end_point).pack()
    return hashlib.md5(packed, usedforsecurity=False).digest()


class ConnectionAuth:
    """The authentication of one connection. `end_point` is the TLS channel binding, if TLS."""

    def __init__(
        self,
        users: UserStore,
        *,
        schemes: tuple[AuthScheme, ...],
        level: ChannelBindings,
        end_point: bytes | None,
    ) -> None:
        self._users = users
        self._schemes = schemes
        self._level = level
        self._end_point = end_point
        self._context: spnego.ContextProxy | None = None
        self._sealing = seal.SPNEGO
        self.user: str | None = None

    @property
    def can_unseal(self) -> bool:
        """Whether sealed messages can be read on this connection."""
        return self._context is not None and self._context.complete

    def refuse(self) -> Answer:
        """Forget who this is, and ask."""
        self._context = None
        self.user = None
        return Answer(False, tuple(scheme.challenge for scheme in self._schemes))

    def step(self, authorization: str) -> Answer:
        """Take an Authorization header."""
        name, _, text = authorization.strip().partition(" ")
        try:
            scheme = AuthScheme(name.lower())
            token = base64.b64decode(text.strip(), validate=True)
        except (ValueError, binascii.Error):
            return self.refuse()
        if scheme not in self._schemes or not token:
            return self.refuse()
        if scheme is AuthScheme.BASIC:
            return self._basic(token)
        self._sealing = seal.KERBEROS if scheme is AuthScheme.KERBEROS else seal.SPNEGO
        return self._negotiate(name, token)

    def _basic(self, token: bytes) -> Answer:
        name, colon, password = token.decode("utf-8", errors="replace").partition(":")
        user = self._users.check(name, password) if colon else None
        if user is None:
            return self.refuse()
        self._context = None
        self.user = user
        return Answer(True)

    def _negotiate(self, name: str, token: bytes) -> Answer:
        raw = token.startswith(_NTLM)
        begins = raw and token[8:12] == struct.pack("<I", _NEGOTIATE_MESSAGE)
        if not self._bindings_fit(token):
            log.info("the channel bindings of an authentication do not fit this endpoint")
            return self.refuse()
        try:
            if self._context is None or self._context.complete or begins:
                self.user = None
                self._context = self._acceptor(name, token, raw_ntlm=raw)
            context = self._context
            reply = self._users.step(context, token)
        except LogonRefusedError as error:
            log.info("an authentication was refused: %s", error)
            return self.refuse()
        spoken = f"{name} {base64.b64encode(reply).decode()}" if reply else ""
        if not context.complete:
            return Answer(False, (spoken or name,))
        user = self._users.proved(context)
        if user is None:
            return self.refuse()
        self.user = user
        return Answer(True, (spoken,) if spoken else ())

    def _acceptor(self, name: str, token: bytes, *, raw_ntlm: bool) -> spnego.ContextProxy:
        """Return a new context for the first token of a login. Raises LogonRefusedError."""
        if raw_ntlm:
            return self._users.acceptor("ntlm")
        kerberos = name.lower() == AuthScheme.KERBEROS.value
        bound = self._end_point if self._level is not ChannelBindings.NONE else None
        # NTLM's are looked at in the token; those of a ticket only its context can read.
        optimistic = next((oid for oid in _KERBEROS if oid in token), None) is not None
        end_point = bound if kerberos or (optimistic and _NTLM not in token) else None
        return self._users.acceptor("kerberos" if kerberos else "negotiate", end_point=end_point)

    def _bindings_fit(self, token: bytes) -> bool:
        if self._end_point is None or self._level is ChannelBindings.NONE:
            return True
        if _NTLM + struct.pack("<I", _AUTHENTICATE_MESSAGE) not in token:
            return True  # an earlier leg: nothing to check yet
        sent = bindings_sent(token)
        if sent is None:
            return self._level is not ChannelBindings.STRICT
        return sent == bindings_expected(self._end_point)

    def unseal_request(self, body: bytes) -> bytes:
        """Return the envelope of a sealed message. Raises SealError.

        After a failure the context's counters are lost, as on Windows: the connection is spent.
        """
        context = self._context
        if context is None or not context.complete:
            raise seal.SealError("a sealed message on a connection that has no security context")
        pieces: list[bytes] = []
        for part in seal.parse(body):
            try:
                piece = context.unwrap_winrm(part.header, part.data)
            except (SpnegoError, ValueError, struct.error, IndexError) as error:
                raise seal.SealError(f"a sealed message does not unwrap: {error}") from error
            if len(piece) != part.length:
                raise seal.SealError("a sealed message has not the length that it says")
            pieces.append(piece)
        return b"".join(pieces)

    def seal_reply(self, envelope: bytes) -> tuple[str, bytes]:
        """Return Content-Type and body of the sealed reply."""
        assert self._context is not None
        wrapped = self._context.wrap_winrm(envelope)
        part = seal.SealedPart(wrapped.header, wrapped.data, len(envelope) + wrapped.padding_length)
        return seal.frame([part], protocol=self._sealing)
