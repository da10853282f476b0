"""Where this program keeps what it can make again: one directory, a folder for each kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from platformdirs import user_cache_dir

CACHE_VARIABLE: Final = "LCOWLAB_CACHE"
IMAGES: Final = "images"
LABS: Final = "labs"
KVM: Final = "kvm"
TEMPLATES: Final = "templates"


def cache_directory(kind: str = "") -> Path:
    """Return `kind`'s folder in $LCOWLAB_CACHE, else in the user's cache directory (not made)."""
    override = os.environ.get(CACHE_VARIABLE)
    base = Path(override).absolute() if override else Path(user_cache_dir("lcowlab"))
    return base / kind
