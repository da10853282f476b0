"""Random choices that come from bytes: a coverage-guided fuzzer steers a maker of inputs."""

from __future__ import annotations

import random


class ScriptedRandom(random.Random):
    """Decides by the bytes of a script; where they end, by a fixed sequence."""

    def __init__(self, script: bytes) -> None:
        super().__init__(0)
        self._rest = random.Random(0)
        self._script = script
        self._place = 0

    def random(self) -> float:
        return self.getrandbits(24) / (1 << 24)

    def getrandbits(self, k: int, /) -> int:
        size = (k + 7) // 8
        part = self._script[self._place : self._place + size]
        self._place += size
        if len(part) < size:
            return self._rest.getrandbits(k) if k else 0
        return int.from_bytes(part, "little") & ((1 << k) - 1)
