"""Directories outside the root where scratch disks may be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from snapshotter.errors import InvalidArgumentError, UnavailableError
from snapshotter.labels import LOCATION
from snapshotter.platform import Platform


def create_location(location: str, allowed: Iterable[str], platform: Platform) -> None:
    """Make the directory `location`, which is one of `allowed` or inside one, where it is missing.

    Below the allowed directory no symbolic link is followed: whoever may write there would decide
    where disks go. Raises InvalidArgumentError, UnavailableError.
    """
    path = Path(location)
    base = next(
        (Path(each) for each in allowed if path.is_relative_to(each)),
        None,
    )
    if base is None:
        raise InvalidArgumentError(
            f"the scratch location {location} is not inside an allowed one; open the store with it"
        )
    try:
        platform.long(base).mkdir(mode=0o700, parents=True, exist_ok=True)
        step = base
        for part in path.relative_to(base).parts:
            step = step / part
            if platform.long(step).is_symlink():
                raise InvalidArgumentError(
                    f"label {LOCATION}={location!r}: {step} is a symbolic link; name the directory"
                )
            platform.long(step).mkdir(mode=0o700, exist_ok=True)
        if platform.long(path).resolve() != platform.long(base).resolve() / path.relative_to(base):
            raise InvalidArgumentError(
                f"label {LOCATION}={location!r}: the path leads outside {base}"
            )
    except OSError as error:
        raise UnavailableError(
            f"cannot create the scratch location {location}: {error.strerror}"
        ) from error
