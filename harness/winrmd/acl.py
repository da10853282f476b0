"""Access control lists as records: owner, entries, inheritance, and their SDDL text.

Nothing here is enforced by the local file system: a pretend host keeps what would be on NTFS, so
that what a provisioner sets can be read back and judged. Source: [MS-DTYP] 2.5.1 (SDDL).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

SYSTEM: Final = "S-1-5-18"
ADMINISTRATORS: Final = "S-1-5-32-544"
USERS: Final = "S-1-5-32-545"
AUTHENTICATED_USERS: Final = "S-1-5-11"
CREATOR_OWNER: Final = "S-1-3-0"
EVERYONE: Final = "S-1-1-0"
TRUSTED_INSTALLER: Final = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"

FULL: Final = 0x1F01FF
MODIFY: Final = 0x1301BF
READ_EXECUTE: Final = 0x1200A9
READ: Final = 0x120089
WRITE: Final = 0x100116
_RIGHTS: Final = {"F": FULL, "M": MODIFY, "RX": READ_EXECUTE, "R": READ, "W": WRITE}
_SDDL_RIGHTS: Final = {FULL: "FA", READ: "FR"}
_SDDL_SIDS: Final = {
    SYSTEM: "SY",
    ADMINISTRATORS: "BA",
    USERS: "BU",
    AUTHENTICATED_USERS: "AU",
    CREATOR_OWNER: "CO",
    EVERYONE: "WD",
}
NAMES: Final = {
    SYSTEM: "NT AUTHORITY\\SYSTEM",
    ADMINISTRATORS: "BUILTIN\\Administrators",
    USERS: "BUILTIN\\Users",
    AUTHENTICATED_USERS: "NT AUTHORITY\\Authenticated Users",
    CREATOR_OWNER: "CREATOR OWNER",
    EVERYONE: "Everyone",
    TRUSTED_INSTALLER: "NT SERVICE\\TrustedInstaller",
}
_SID: Final = re.compile(r"S-1-\d+(?:-\d+)+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ace:
    """One entry: trustee (a SID), access mask, and how children inherit it."""

    sid: str
    mask: int
    kind: Literal["A", "D"] = "A"
    object_inherit: bool = False
    container_inherit: bool = False
    inherit_only: bool = False
    inherited: bool = False

    @property
    def sddl(self) -> str:
        """The entry in SDDL."""
        flags = (
            ("OI" if self.object_inherit else "")
            + ("CI" if self.container_inherit else "")
            + ("IO" if self.inherit_only else "")
            + ("ID" if self.inherited else "")
        )
        rights = _SDDL_RIGHTS.get(self.mask, f"{self.mask:#x}")
        return f"({self.kind};{flags};{rights};;;{_SDDL_SIDS.get(self.sid, self.sid)})"

    def for_child(self, *, directory: bool) -> Ace | None:
        """Return what a child inherits of this entry, or None."""
        if directory and self.container_inherit:
            return replace(self, inherited=True, inherit_only=False)
        if not directory and self.object_inherit:
            return replace(
                self,
                inherited=True,
                inherit_only=False,
                object_inherit=False,
                container_inherit=False,
            )
        return None


@dataclass(frozen=True, slots=True)
class Acl:
    """Owner, whether inheritance is cut, and the entries that were set on the object itself."""

    owner: str
    entries: tuple[Ace, ...]
    protected: bool = False

    @property
    def sddl(self) -> str:
        """Owner and DACL in SDDL, as `Get-Acl` shows them."""
        owner = _SDDL_SIDS.get(self.owner, self.owner)
        flags = "P" if self.protected else "AI"
        return f"O:{owner}D:{flags}" + "".join(ace.sddl for ace in self.entries)

    def granted(self, ace: Ace, *, replacing: bool = False) -> Acl:
        """Return the list with an entry more, in place of the trustee's own ones if `replacing`.

        Granting what is there already changes nothing.
        """
        kept = tuple(
            each
            for each in self.entries
            if not (each.sid == ace.sid and not each.inherited and replacing)
        )
        return self if ace in kept else replace(self, entries=(ace, *kept))

    def without(self, sid: str) -> Acl:
        """Return the list without the trustee's own entries."""
        kept = tuple(each for each in self.entries if each.sid != sid or each.inherited)
        return replace(self, entries=kept)


# What a fresh NTFS system volume lets everybody do: read it, and make folders in it. That is why
# a protected root must be made with a list of its own before anything is copied to it.
DRIVE_ROOT: Final = Acl(
    TRUSTED_INSTALLER,
    (
        Ace(SYSTEM, FULL, object_inherit=True, container_inherit=True),
        Ace(ADMINISTRATORS, FULL, object_inherit=True, container_inherit=True),
        Ace(USERS, READ_EXECUTE, object_inherit=True, container_inherit=True),
        Ace(
            AUTHENTICATED_USERS,
            MODIFY,
            object_inherit=True,
            container_inherit=True,
            inherit_only=True,
        ),
        Ace(AUTHENTICATED_USERS, 0x4),  # FILE_APPEND_DATA: create folders
    ),
    protected=True,
)


def inherited_from(parent: Acl, own: Acl | None, *, owner: str, directory: bool) -> Acl:
    """Return what is in force on a child: its own entries, then those of its parent."""
    base = own or Acl(owner, ())
    if base.protected:
        return base
    coming = (ace.for_child(directory=directory) for ace in parent.entries)
    return replace(base, entries=base.entries + tuple(ace for ace in coming if ace is not None))


def parse_grant(text: str, *, sid: str) -> Ace:
    """Return the entry that icacls reads in `(OI)(CI)F` or `(OI)(CI)(F)`. Raises ValueError."""
    marks = re.findall(r"\(([A-Z,]+)\)", text.upper())
    rest = re.sub(r"\([A-Za-z,]+\)", "", text).upper()
    flags = {mark for mark in marks if mark in ("OI", "CI", "IO", "NP")}
    rights = [mark for mark in marks if mark not in flags] + ([rest] if rest else [])
    mask = 0
    for right in ",".join(rights).split(","):
        if right not in _RIGHTS:
            raise ValueError(f"{right or text!r} is no right")
        mask |= _RIGHTS[right]
    return Ace(
        sid,
        mask,
        object_inherit="OI" in flags,
        container_inherit="CI" in flags,
        inherit_only="IO" in flags,
    )


def show(ace: Ace) -> str:
    r"""Return an entry as icacls lists it: `NT AUTHORITY\SYSTEM:(OI)(CI)(F)`."""
    by_mask = {mask: name for name, mask in _RIGHTS.items()}
    flags = (
        ("(I)" if ace.inherited else "")
        + ("(OI)" if ace.object_inherit else "")
        + ("(CI)" if ace.container_inherit else "")
        + ("(IO)" if ace.inherit_only else "")
    )
    deny = "(DENY)" if ace.kind == "D" else ""
    rights = by_mask.get(ace.mask, f"{ace.mask:#x}")
    return f"{NAMES.get(ace.sid, ace.sid)}:{deny}{flags}({rights})"


def sid_of(trustee: str) -> str | None:
    """Return the SID that `*S-…` or a well-known name stands for, or None."""
    if _SID.fullmatch(trustee.removeprefix("*")):
        return trustee.removeprefix("*").upper()
    for sid, name in NAMES.items():
        if trustee.lower() in (name.lower(), name.rpartition("\\")[2].lower()):
            return sid
    return None
