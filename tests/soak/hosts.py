"""`python -m tests.soak.hosts`: a host is provisioned through trouble at every single request.

The endpoint loses the k-th request, its answer, refuses it for a quota, or restarts; or the
controller, a process of its own, is killed by SIGKILL while the k-th request is under way. Whoever
calls again must end where a run without trouble ends, with the journal closed, the lease given
back, and nothing left to do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from harness.cachedir import CACHE_VARIABLE
from harness.hosts.bundle import Bundle
from harness.hosts.provision import Provisioner
from harness.hosts.steps import Options
from harness.remote.endpoint import Endpoint
from harness.remote.passwords import Secret
from harness.remote.winrm import WinRM
from harness.winrmd import faults
from harness.winrmd.faults import WsmanFault
from harness.winrmd.knobs import ANY, Strike, Trouble
from harness.winrmd.troubles import parse_troubles
from tests.harness.hosts.fleet import (
    FAST,
    Supplies,
    apply_until_done,
    assert_free,
    assert_journal_closed,
    open_supplies,
    updates_wait,
    what_a_host_is,
)
from tests.harness.hosts.pretend import CANARY, QUICK, Pretend, pretend_host
from tests.harness.hosts.supplies import write_bundle

_KILL: Final = "kill"
_TROUBLES: Final = ("drop-before", "drop-after", "quota", "reboot", _KILL)


@contextlib.contextmanager
def fresh_host(folder: Path) -> Iterator[Pretend]:
    """Yield a host, and be a controller that knows of no other."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        os.environ[CACHE_VARIABLE] = f"{own}/cache"
        with pretend_host(Path(own, "host"), change=updates_wait) as pretend:
            yield pretend


def clean_run(folder: Path, supplies: Supplies) -> tuple[dict[str, Any], int]:
    """Return what a host is without trouble, and how many requests that takes."""
    with fresh_host(folder) as pretend:
        apply_until_done(pretend, supplies)
        return what_a_host_is(pretend), pretend.knobs.requests(ANY)


def go_through(
    folder: Path, supplies: Supplies, expected: dict[str, Any], trouble: str, nth: int
) -> None:
    """Provision one host with one trouble at one request. Raises AssertionError."""
    with fresh_host(folder) as pretend:
        if trouble == _KILL:
            kill_a_controller(pretend, supplies, nth)
        else:
            for strike in parse_troubles(f"{nth - 1}*ok->{trouble}" if nth > 1 else trouble):
                pretend.knobs.plan(strike)
        apply_until_done(pretend, supplies)
        pretend.knobs.forget()
        assert what_a_host_is(pretend) == expected, "the host is another than without trouble"
        assert_journal_closed(pretend)
        assert_free(pretend)
        again = apply_until_done(pretend, supplies)
        assert not again.outcome.changed, f"a second apply ran {again.outcome.ran}"
        assert not again.errors, f"a second apply met {again.errors}"


def kill_a_controller(pretend: Pretend, supplies: Supplies, nth: int) -> None:
    """Run a controller that is killed while its nth request is under way."""
    me = (sys.executable, "-m", "tests.soak.hosts")
    controller = subprocess.Popen(
        (*me, "--controller", str(pretend.port), "--bundle", str(supplies.bundle.folder))
    )

    def kill() -> WsmanFault:
        controller.kill()
        return faults.operation_aborted()

    pretend.knobs.plan(Strike(Trouble.FAULT, nth=nth, make_fault=kill))
    controller.wait()
    pretend.knobs.forget()


def be_controller(port: int, bundle: Path) -> None:
    """Provision the host at a port of this machine."""
    endpoint = Endpoint("win-01", "127.0.0.1", port, "ntlm", "off", "lab", Secret(CANARY))
    with tempfile.TemporaryDirectory() as folder, WinRM(endpoint, policy=QUICK) as winrm:
        supplies = open_supplies(Bundle.open(bundle), Path(folder))
        options: Options = supplies.options_at(port)
        Provisioner(winrm, options, patience=FAST).apply()


def main() -> None:
    """Sweep; exit code 0 where every run ended well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=25, help="1: at every request")
    parser.add_argument("--start", type=int, default=1, help="the first request to trouble")
    parser.add_argument("--trouble", action="append", choices=_TROUBLES)
    parser.add_argument("--controller", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.controller:
        be_controller(arguments.controller, arguments.bundle)
        return
    started = time.monotonic()
    failed = runs = 0
    with tempfile.TemporaryDirectory(prefix="lcowlab-soak-") as name:
        folder = Path(name)
        supplies = open_supplies(write_bundle(folder / "bundle"), folder)
        expected, requests = clean_run(folder, supplies)
        for trouble in arguments.trouble or _TROUBLES:
            sys.stderr.write(f"{trouble}, {runs} runs so far\n")
            for nth in range(arguments.start, requests + 1, arguments.every):
                runs += 1
                try:
                    go_through(folder, supplies, expected, trouble, nth)
                except Exception as error:  # noqa: BLE001 - all of them are told, at the end
                    failed += 1
                    sys.stdout.write(f"{trouble} at request {nth}: {error}\n")
                    sys.stdout.flush()
    took = time.monotonic() - started
    sys.stdout.write(
        f"{runs} runs through trouble at one of {requests} requests in {took:.0f} s: "
        f"{failed} did not end as without\n"
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
