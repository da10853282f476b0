"""`python -m tests.soak.snapshotter`: hundreds of kills of processes at work on one store."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.snapshotter.crash.proof import prove


def main() -> None:
    """Kill, reopen, compare; exit code 0 where every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--directory", type=Path, help="where the store is made")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        try:
            done = prove(Path(directory) / "root", arguments.kills, arguments.seed)
        except AssertionError as error:
            sys.exit(f"seed {arguments.seed}: {error}")
    sys.stdout.write(
        f"{done['kills']} kills in {time.monotonic() - started:.0f} s (seed {arguments.seed}):"
        f" {done['numbers']} snapshots made, {done['snapshots']} there, no promise broken\n"
    )


if __name__ == "__main__":
    main()
