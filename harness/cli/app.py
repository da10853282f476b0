"""`lcowlab`: every verb, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from harness.cli import deploy, doctor, hosts, lab, provision, run, scenario, uvm, winrmd
from harness.cli.exit_codes import ExitCode
from harness.errors import (
    HarnessError,
    InfrastructureError,
    LeakError,
    LeaseError,
    UsageError,
)
from harness.scrubber import scrubbed_process
from snapshotter.errors import SnapshotterError, UnavailableError

app = typer.Typer(
    name="lcowlab",
    help="Runs and proves Linux containers on Windows: scenarios on real utility VMs.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("doctor")(doctor.doctor)
app.command("provision")(provision.provision)
app.command("deploy")(deploy.deploy)
app.command("winrmd")(winrmd.winrmd)
app.add_typer(deploy.app, name="bundle")
app.add_typer(hosts.app, name="hosts")
app.add_typer(lab.app, name="lab")
app.add_typer(scenario.app, name="scenario")
app.add_typer(uvm.app, name="uvm")


def _code_for(error: Exception) -> ExitCode:
    if isinstance(error, UsageError):
        return ExitCode.USAGE
    if isinstance(error, LeakError):
        return ExitCode.LEAK
    if isinstance(error, LeaseError):
        return ExitCode.LEASE
    if isinstance(error, (InfrastructureError, UnavailableError)):
        return ExitCode.INFRASTRUCTURE
    return ExitCode.FAILED


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and exit with a code of `ExitCode`; no password gets out."""
    with scrubbed_process():
        _main()


def _main() -> None:
    # A terminated run cleans up exactly as an interrupted one.
    signal.signal(signal.SIGTERM, _interrupt)
    code: int
    try:
        code = app(standalone_mode=False) or ExitCode.OK
    except typer.Exit as ending:
        code = ending.exit_code
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("lcowlab: interrupted", err=True)
        code = ExitCode.INTERRUPTED
    except (HarnessError, SnapshotterError) as error:
        typer.echo(f"lcowlab: {error}", err=True)
        code = _code_for(error)
    except Exception as error:
        # Click's usage errors print themselves; their base class moves between click releases.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        code = ExitCode.USAGE
    sys.exit(int(code))
