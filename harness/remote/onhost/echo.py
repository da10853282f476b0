"""Give back what came in, to see whether every byte passes both ways."""

from __future__ import annotations

from typing import IO, Any


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Put out `length` bytes of standard input; fewer if it ends before."""
    report.write(source.read(parameters["length"]))
    report.flush()
