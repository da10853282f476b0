"""`lcowlab scenario`: what there is to run."""

from __future__ import annotations

import inspect
import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.scenarios.catalogue import CATALOGUE, select

app = typer.Typer(help="List and show scenarios.", no_args_is_help=True)


@app.command("list")
def list_(
    *,
    tag: Annotated[list[str] | None, typer.Option(help="Only those with this tag.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List every scenario with its tags and the backends that run it."""
    chosen = select(CATALOGUE, tags=tuple(tag or ()))
    if json_:
        rows = [
            {
                "name": s.name,
                "summary": s.summary,
                "tags": list(s.tags),
                "needs": [str(need) for need in s.needs],
                "backends": list(s.backends()),
            }
            for s in chosen
        ]
        json.dump({"schema": "lcowlab.scenarios/1", "scenarios": rows}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table("scenario", "tags", "runs on", "what it proves")
    for scenario in chosen:
        table.add_row(
            scenario.name,
            ", ".join(scenario.tags),
            ", ".join(scenario.backends()),
            scenario.summary,
        )
    Console().print(table)


@app.command()
def show(name: str) -> None:
    """Print a scenario's body."""
    (scenario,) = select(CATALOGUE, names=[name])
    console = Console()
    console.print(f"[bold]{scenario.name}[/bold]: {scenario.summary}")
    console.print(f"tags: {', '.join(scenario.tags)}")
    console.print(f"needs: {', '.join(scenario.needs) or 'nothing special'}")
    console.print(f"runs on: {', '.join(scenario.backends())}\n")
    console.print(inspect.getsource(scenario.body), markup=False, highlight=True)
