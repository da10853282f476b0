"""Make a utility VM on the host and take it down, with the packages that are deployed there.

Sent to the host agent, so that it is the agent's user who does it. The evidence stays in the
protected root: what it was proved with, by whom, and what was seen.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import json
import pathlib
import platform
import sys
from typing import IO, Any


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Report `lacking` (why nothing can be tried), or `key`, `evidence` (None where there is none).

    `root` is the protected root, `user` who runs this. With `run` a utility VM is made and taken
    down, and `evidence` is that of just now, or `failed` says why there is none. `key` is what
    evidence holds for.
    """
    del source
    root = pathlib.Path(parameters["root"])
    answer = _answer(root, parameters)
    report.write(json.dumps(answer).encode() + b"\n")
    report.flush()


def _answer(root: pathlib.Path, parameters: dict[str, Any]) -> dict[str, Any]:
    deployed = _deployment(root)
    if deployed:
        sys.path.insert(0, deployed)
    if importlib.util.find_spec("harness") is None:
        return {"lacking": "our packages are not deployed on it: lcowlab deploy brings them"}
    image = _image(root)
    key = {
        "user": parameters["user"],
        "packages": deployed or "those of its Python",
        "python": platform.python_version(),
        "system": platform.version(),
        "backend": parameters["backend"],
        "image": image,
    }
    file = root / "journal" / "smoke.json"
    if not parameters["run"]:
        return {"key": key, "evidence": _evidence(file, key)}
    try:
        seen = importlib.import_module("harness.smoke").report(
            str(root / "lab"), parameters["backend"], image and str(root / "bundle" / "image")
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, it is why there is no evidence
        file.unlink(missing_ok=True)
        return {"key": key, "failed": f"{type(error).__name__}: {error}"}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    evidence = {"at": now, "key": key, **seen}
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(evidence), "utf-8")
    beside.replace(file)
    return {"key": key, "evidence": evidence}


def _deployment(root: pathlib.Path) -> str:
    """Return the folder of the packages in use, "" without a deployment."""
    try:
        return str(json.loads((root / "deploy" / "current.json").read_bytes())["path"])
    except FileNotFoundError:
        return ""


def _image(root: pathlib.Path) -> str:
    """Return the key of the utility VM image that was pushed, "" without one."""
    try:
        return str(json.loads((root / "bundle" / "image" / "image.json").read_bytes())["key"])
    except FileNotFoundError:
        return ""


def _evidence(file: pathlib.Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """Return what is remembered for just this key; None where there is nothing."""
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if found.get("key") == key else None
