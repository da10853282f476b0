"""A process that works on a store until it is killed, and says on stdout what it was promised.

Lines: `+ key` prepared, `c name` committed, `- key` removed; each after the call returned. A line
with `?` before it says what is about to be tried.
"""

from __future__ import annotations

import sys
from pathlib import Path

from snapshotter import Snapshotter
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(root: str, name: str, rounds: int) -> None:
    with Snapshotter.open(Path(root)) as store:
        say("open")
        for number in range(rounds):
            layer, pod, sharer = (f"{name}-{number}-{part}" for part in ("layer", "pod", "c"))
            say(f"? {layer} extract-{layer}")
            store.prepare(f"extract-{layer}")
            say(f"+ extract-{layer}")
            (Path(store.mounts(f"extract-{layer}")[0].source) / "layer.vhd").write_text(layer)
            store.commit(layer, f"extract-{layer}")
            say(f"c {layer}")
            say(f"? {pod}")
            store.prepare(pod, layer)
            say(f"+ {pod}")
            say(f"? {sharer}")
            store.prepare(sharer, layer, labels={REUSE_SCRATCH: "true", OWNER_KEY: pod})
            say(f"+ {sharer}")
            if number % 2:
                for key in (pod, sharer, layer):
                    say(f"? {key}")
                    store.remove(key)
                    say(f"- {key}")
        say("done")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
