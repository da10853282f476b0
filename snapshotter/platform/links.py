"""Whether symbolic links can be made where a store lives."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from snapshotter.platform.protocol import Platform


def probe_links(platform: Platform, directory: Path) -> OSError | None:
    """None where a symbolic link can be made in `directory`, else why not; nothing is left."""
    link = directory / f"probe-{secrets.token_hex(8)}"
    try:
        platform.symlink(link, directory / "nothing")
    except OSError as error:
        return error
    finally:
        with contextlib.suppress(FileNotFoundError):
            platform.long(link).unlink()
    return None
