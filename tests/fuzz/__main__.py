"""`./dev fuzz`: mutated input for every parser; anything but a typed error or success is a find.

Every input comes from a seed number, which a find prints: `./dev fuzz TARGET --replay SEED`.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.fuzz import targets, winrm
from tests.fuzz.targets import Target

TARGETS = targets.TARGETS | winrm.TARGETS

_HANG_S = 5


def _too_slow(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"one input took more than {_HANG_S} s")


def _once(target: Target, seed: int) -> bool:
    """Run one input; return whether it was accepted. Raises whatever is not a typed error."""
    rng = random.Random(seed)
    data = target.make(rng)
    signal.alarm(_HANG_S)
    try:
        target.run(data)
    except target.allowed:
        return False
    finally:
        signal.alarm(0)
    return True


def _fuzz(name: str, target: Target, seconds: float, start: int) -> int:
    ended = time.monotonic() + seconds
    began = time.monotonic()
    runs = accepted = finds = 0
    seed = start
    while time.monotonic() < ended and finds < 10:
        try:
            accepted += _once(target, seed)
        except Exception:
            finds += 1
            print(f"\n{name}: seed {seed}\n{traceback.format_exc()}", file=sys.stderr)
        runs += 1
        seed += 1
    took = time.monotonic() - began
    print(
        f"{name:>10}: {runs} inputs in {took:.1f} s ({runs / took:.0f}/s), "
        f"{accepted} accepted, {finds} finds"
    )
    return finds


def main() -> int:
    """Fuzz the named targets, or all; exit 1 where something was found."""
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help=f"default: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()) << 20, help="first seed")
    parser.add_argument("--replay", type=int, help="run this one seed and show what happens")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_slow)
    unknown = set(options.target) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target: {', '.join(sorted(unknown))}")
    build: dict[str, Callable[[Path], Target]] = {
        name: TARGETS[name] for name in options.target or TARGETS
    }
    finds = 0
    for name, make in build.items():
        with tempfile.TemporaryDirectory(prefix="lcowlab-fuzz-") as directory:
            target = make(Path(directory))
            if options.replay is not None:
                print(f"{name}: accepted {_once(target, options.replay)}")
            else:
                finds += _fuzz(name, target, options.seconds, options.seed)
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
