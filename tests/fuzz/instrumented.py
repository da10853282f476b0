"""One target under atheris: `python -m tests.fuzz.instrumented TARGET [libFuzzer's options]`.

The fuzzer's bytes are the choices of the target's maker of inputs, so that what is tried are
structures with broken fields rather than noise, and coverage says which choices lead further.
libFuzzer ends the process itself; the parent reads what it prints.
"""

from __future__ import annotations

import importlib
import sys

from tests.fuzz.folder import private_folder
from tests.fuzz.scripted import ScriptedRandom


def main() -> None:
    """Fuzz until libFuzzer has had enough."""
    name = sys.argv[1]
    atheris = importlib.import_module("atheris")  # it has no types
    with atheris.instrument_imports(include=["snapshotter", "harness"]):
        catalogue = importlib.import_module("tests.fuzz.catalogue")
    with private_folder() as directory:
        target = catalogue.TARGETS[name](directory)

        def one(script: bytes) -> None:
            data = target.make(ScriptedRandom(script))
            try:
                target.run(data)
            except target.allowed:
                return

        atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
