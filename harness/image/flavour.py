"""The kinds of utility VM image: what each has beside what all have.

The standard one stays small. What guards disks (dm-verity for layers, LUKS for the scratch) needs
the device mapper, cryptsetup with its libraries, and XFS, which hcsshim puts on encrypted disks.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Flavour(enum.StrEnum):
    """An image's kind."""

    STANDARD = "standard"
    PROTECTED = "protected"
    """Reads layers through dm-verity and keeps scratch disks encrypted."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a flavour has beside what all have.

    `packages` are unpacked for `programs`; `modules` are loaded after those of the machine, and
    those that make them `faster` where the kernel has them and the processor suits them.
    """

    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    faster: tuple[str, ...] = ()
    max_size: int = 25_000_000
    """Bytes of the initrd: more is a mistake in the closure of libraries or modules."""


_CONTENTS = {
    Flavour.STANDARD: Contents(),
    Flavour.PROTECTED: Contents(
        packages=("cryptsetup-bin", "xfsprogs"),
        programs=("/usr/sbin/cryptsetup", "/usr/sbin/mkfs.xfs"),
        # authenc, xts and algif_skcipher: what `aes-xts-plain64` with `hmac-sha256` asks the
        # kernel for by name, so that no module's own list tells.
        modules=(
            *("dm_mod", "dm_verity", "dm_integrity", "dm_crypt"),
            *("xts", "authenc", "algif_skcipher", "xfs"),
        ),
        faster=("aesni_intel", "sha256_ssse3"),  # writing takes half as long, even emulated
        max_size=45_000_000,
    ),
}


def contents_of(flavour: Flavour) -> Contents:
    """Return what a flavour has beside what all have."""
    return _CONTENTS[flavour]
