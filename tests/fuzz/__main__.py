"""`./dev fuzz`: broken input for every parser; anything but a typed error or success is a find.

With atheris, coverage guides the choice of inputs: a million for each target, or ten minutes. What
breaks something is kept in build/fuzz, and tried again by `./dev fuzz TARGET --replay FILE`.
Without it, inputs come from seed numbers, which a find prints: `--replay SEED`.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.fuzz.catalogue import TARGETS
from tests.fuzz.folder import private_folder
from tests.fuzz.scripted import ScriptedRandom
from tests.fuzz.targets import Target

_HANG_S = 5
_FINDINGS = Path("build/fuzz")
_RUNS = 1_000_000
_COVERED = re.compile(r"cov: (\d+) ft: (\d+)")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
_DONE = re.compile(r"Done (\d+) runs")


def _too_slow(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"one input took more than {_HANG_S} s")


def _once(target: Target, rng: random.Random) -> bool:
    """Run one input; return whether it was accepted. Raises whatever is not a typed error."""
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
            accepted += _once(target, random.Random(seed))
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


def _fuzz_instrumented(name: str, seconds: float, runs: int) -> int:
    """Run one target under atheris in a process of its own; returns the number of finds."""
    corpus = _FINDINGS / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    before = set(_FINDINGS.glob(f"{name}-*"))
    began = time.monotonic()
    command = [
        *(sys.executable, "-m", "tests.fuzz.instrumented", name),
        *(f"-runs={runs}", f"-max_total_time={int(seconds)}", f"-timeout={_HANG_S}"),
        *(f"-artifact_prefix={_FINDINGS}/{name}-", "-print_final_stats=1", "-rss_limit_mb=2048"),
        *("-len_control=0", "-max_len=512", str(corpus)),
    ]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    took = time.monotonic() - began
    covered = _COVERED.findall(done.stderr)
    executed = [*_EXECUTED.findall(done.stderr), *_DONE.findall(done.stderr)]
    count = int(executed[0]) if executed else 0
    edges, features = covered[-1] if covered else ("?", "?")
    found = sorted(set(_FINDINGS.glob(f"{name}-*")) - before)
    print(
        f"{name:>10}: {count} inputs in {took:.1f} s ({count / took:.0f}/s), "
        f"{edges} edges, {features} features, {len(found)} finds"
    )
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)
        for path in found:
            print(f"{name}: ./dev fuzz {name} --replay {path}", file=sys.stderr)
    return max(len(found), int(done.returncode != 0))


def _replay(target: Target, given: str) -> bool:
    """Run one input again: a seed number, or a file of choices."""
    rng = random.Random(int(given)) if given.isdigit() else ScriptedRandom(Path(given).read_bytes())
    return _once(target, rng)


def main() -> int:
    """Fuzz the named targets, or all; exit 1 where something was found."""
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help=f"default: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=600.0, help="at most, for each target")
    parser.add_argument("--runs", type=int, default=_RUNS, help="at most, with atheris")
    parser.add_argument("--driver", choices=["auto", "atheris", "mutation"], default="auto")
    parser.add_argument("--seed", type=int, default=int(time.time()) << 20, help="first seed")
    parser.add_argument("--replay", metavar="SEED|FILE", help="run this one input again")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_slow)
    unknown = set(options.target) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target: {', '.join(sorted(unknown))}")
    build: dict[str, Callable[[Path], Target]] = {
        name: TARGETS[name] for name in options.target or TARGETS
    }
    finds = 0
    driver = options.driver
    if driver == "auto":
        driver = "atheris" if importlib.util.find_spec("atheris") else "mutation"
        if driver == "mutation":
            print("atheris is not here: mutating without coverage", file=sys.stderr)
    for name, make in build.items():
        if driver == "atheris" and options.replay is None:
            finds += _fuzz_instrumented(name, options.seconds, options.runs)
            continue
        with private_folder() as directory:
            target = make(directory)
            if options.replay is not None:
                print(f"{name}: accepted {_replay(target, options.replay)}")
            else:
                finds += _fuzz(name, target, options.seconds, options.seed)
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
