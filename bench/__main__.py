"""`./dev bench`: every benchmark beside its peer, as ratios; `--json FILE` saves them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import (
    containerd,
    convert,
    front_door,
    layers,
    remote,
    service,
    storage,
    uvm,
    vhdx,
)
from bench.measure import Comparison, Figure

_FAMILIES: dict[str, Callable[[], Iterator[Comparison | Figure]]] = {
    "storage": storage.run,
    "layers": layers.run,
    "convert": convert.run,
    "vhdx": vhdx.run,
    "front_door": front_door.run,
    "uvm": uvm.run,
    "service": service.run,
    "remote": remote.run,
    "containerd": containerd.run,
}


def main() -> int:
    """Run the named families, print a table, and exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("family", nargs="*", choices=[*_FAMILIES, []], help="default: all")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), metavar="FILE")
    options = parser.parse_args()
    console = Console(stderr=True)
    results: list[Comparison | Figure] = []
    for family in options.family or _FAMILIES:
        for result in _FAMILIES[family]():
            console.print(f"  {result.name}", style="dim")
            results.append(result)
    Console().print(_table(results))
    for result in results:
        if isinstance(result, Comparison) and result.note:
            Console().print(f"{result.name} / {result.peer}: {result.note}", style="dim")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(_document(results), indent=2) + "\n")
    console.print(f"saved: {options.json}")
    return 0 if all(result.met for result in results) else 1


def _table(results: list[Comparison | Figure]) -> Table:
    table = Table("work", "ours", "peer", "ratio", "target", "")
    for result in results:
        met = "[green]met[/green]" if result.met else "[red]missed[/red]"
        if isinstance(result, Figure):
            value = f"{result.value:.1f} {result.unit}"
            table.add_row(result.name, value, "", "", f"≤ {result.bound:g} {result.unit}", met)
            continue
        bounds = [] if result.target_ratio is None else [f"≤ {result.target_ratio:g}x"]
        bounds += [] if result.target_ms is None else [f"≤ {result.target_ms:g} ms"]
        table.add_row(
            result.name,
            f"{result.ours_ms:.2f} ms",
            f"{result.peer_ms:.2f} ms ({result.peer})",
            f"{result.ratio:.3f}x",
            ", ".join(bounds),
            met if bounds else "",
        )
    return table


def _document(results: list[Comparison | Figure]) -> dict[str, object]:
    rows: list[dict[str, object]] = []
    for result in results:
        if isinstance(result, Figure):
            row: dict[str, object] = {
                "name": result.name,
                "value": result.value,
                "unit": result.unit,
                "bound": result.bound,
            }
        else:
            row = {
                "name": result.name,
                "ours_ms": result.ours_ms,
                "ours_min_ms": result.ours_min_ms,
                "peer": result.peer,
                "peer_ms": result.peer_ms,
                "ratio": result.ratio,
                "rounds": result.rounds,
                "target_ratio": result.target_ratio,
                "target_ms": result.target_ms,
                "note": result.note,
            }
        rows.append({**row, "met": result.met})
    return {
        "schema": "lcowlab.bench/1",
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "processors": os.cpu_count(),
        "results": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
