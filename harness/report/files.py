"""Report files appear whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from harness.scrubber import scrub


def write_whole(path: Path, content: str) -> None:
    """Write UTF-8 text so that readers see the old file or the new one, never a part.

    Passwords that this process knows are struck out. Makes the folder. Raises OSError; then the
    old file is as it was and nothing new is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(scrub(content))
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
