"""What several commands about hosts have in common: their options, and how they print JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

InventoryOption = Annotated[
    Path | None, typer.Option("--inventory", help="Default: HV_INVENTORY, here, your settings.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
HostsArgument = Annotated[str, typer.Argument(help="Names and tags with and, or, not; all.")]
TimeoutOption = Annotated[float, typer.Option(help="Seconds for each host.")]
PythonOption = Annotated[
    str, typer.Option(help="Python on the host; default: ours there, else that on its PATH.")
]


def print_json(schema: str, **values: object) -> None:
    """Print one JSON document with its schema's name."""
    json.dump({"schema": schema, **values}, sys.stdout, indent=2)
    sys.stdout.write("\n")
