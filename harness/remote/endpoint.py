"""Where a host's WinRM is, who asks, and why the host is believed to be itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol, Self

from harness.errors import UsageError
from harness.remote.passwords import PasswordPlace, Secret, fetch_password
from harness.scrubber import KNOWN

Auth = Literal["negotiate", "ntlm", "kerberos", "basic", "credssp"]

PIN: Final = "pin:sha256:"


class HostSettings(Protocol):
    """What the inventory says about a host."""

    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def auth(self) -> Auth: ...
    @property
    def tls(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def password(self) -> PasswordPlace | None: ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a host's WinRM is and who asks; `tls` is verify, off, or pin:sha256:HEX."""

    name: str
    address: str
    port: int
    auth: Auth
    tls: str
    user: str
    password: Secret

    def __post_init__(self) -> None:
        KNOWN.add(self.password.reveal(), user=self.user)
        if self.tls == "off" and self.auth == "basic":
            raise UsageError(f"{self.name}: basic over plain HTTP shows the password")
        if self.auth == "basic" and not self.password.fits_latin1():
            raise UsageError(f"{self.name}: basic carries no such password: take ntlm or negotiate")
        if self.tls not in ("off", "verify") and not self.tls.startswith(PIN):
            raise UsageError(f"{self.name}: tls is verify, off or {PIN}HEX, not {self.tls!r}")

    @classmethod
    def of(cls, name: str, settings: HostSettings) -> Self:
        """Return the endpoint of a host of the inventory, its password fetched from its place.

        Only Kerberos does without one: its ticket is there already. Raises UsageError.
        """
        if settings.password is not None:
            password = fetch_password(settings.password, host=name)
        elif settings.auth in ("kerberos", "negotiate"):
            password = Secret("")
        else:
            raise UsageError(
                f"{name}: {settings.auth} needs a password: say where it is, such as "
                'password = { env = "NAME" }'
            )
        if not settings.user and password:
            raise UsageError(f"{name}: a password without a user")
        return cls(
            name,
            settings.address,
            settings.port,
            settings.auth,
            settings.tls,
            settings.user,
            password,
        )
