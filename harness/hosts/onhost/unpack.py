"""Make a folder of packages from wheels, prove that it imports, and make it the current one.

A wheel is a zip: what lies in it goes to the folder, what lies in its `purelib` and `platlib` data
too; scripts and headers are left out. Source: the binary distribution format (PEP 427).
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from typing import IO, Any

_NATIVE = (".pyd", ".so")
_IMPORT_TIMEOUT_S = 300


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Report `state` (installed, present), `modules` that were imported, and `failed` with why.

    `wheels` are names in `wheelhouse`; `folder` gets `name` as a folder and `current.json`, which
    changes only when every module of `imports` and every native one was imported.
    """
    del source
    folder = pathlib.Path(parameters["folder"])
    target = folder / parameters["name"]
    state = "present"
    if not target.exists():
        state = "installed"
        fresh = folder / f"{parameters['name']}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for wheel in parameters["wheels"]:
            _unpack(pathlib.Path(parameters["wheelhouse"], wheel), fresh)
        fresh.replace(target)
    modules = sorted({*parameters["imports"], *_native_modules(target)})
    failed = _import(target, modules)
    if failed and state == "installed":
        shutil.rmtree(target)
    if not failed:
        beside = folder / "current.new"
        beside.write_text(
            json.dumps({"name": target.name, "path": str(target), "modules": modules}), "utf-8"
        )
        beside.replace(folder / "current.json")
    answer = {"state": state, "modules": modules, "failed": failed}
    report.write(json.dumps(answer).encode() + b"\n")
    report.flush()


def _unpack(wheel: pathlib.Path, target: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            parts = [part for part in info.filename.split("/") if part]
            if info.is_dir() or not parts:
                continue
            if parts[0].endswith(".data"):
                if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
                    continue
                parts = parts[2:]
            place = target.joinpath(*parts)
            if ".." in parts or not place.resolve().is_relative_to(target.resolve()):
                raise ValueError(f"{wheel.name}: {info.filename} leads out of the folder")
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as packed, place.open("wb") as file:
                shutil.copyfileobj(packed, file)


def _native_modules(target: pathlib.Path) -> list[str]:
    """Return the names of all extension modules below a folder."""
    found = []
    for file in target.rglob("*"):
        parts = file.relative_to(target).parts
        if file.suffix not in _NATIVE or any(part.endswith(".libs") for part in parts):
            continue
        names = [*parts[:-1], parts[-1].split(".")[0]]
        if all(name.isidentifier() for name in names):
            found.append(".".join(names))
    return found


def _import(target: pathlib.Path, modules: list[str]) -> dict[str, str]:
    """Return why modules cannot be imported, each tried by a new interpreter."""
    program = (
        "import sys,importlib;sys.path.insert(0,sys.argv[1]);importlib.import_module(sys.argv[2])"
    )
    failed = {}
    for module in modules:
        done = subprocess.run(
            [sys.executable, "-I", "-B", "-c", program, str(target), module],
            capture_output=True,
            timeout=_IMPORT_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=os.fspath(target),
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            failed[module] = lines[-1] if lines else f"exit code {done.returncode}"
    return failed
