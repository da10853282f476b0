"""A run as it is asked for: which scenarios, how each lab is made, and what is kept afterwards."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from harness.lab import LabConfig
from harness.qemu.kvm import AcceleratorChoice


class Keep(enum.StrEnum):
    """When the lab's directory (disks, store) stays after a run."""

    NEVER = "never"
    FAILED = "failed"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What is to run, independent of the machine that runs it."""

    scenarios: tuple[str, ...]
    backend: str = "auto"
    accelerator: AcceleratorChoice = "auto"
    memory_mib: int = 512
    processors: int = 2
    cold: bool = False
    repeat: int = 1
    jobs: int = 1
    faults: Mapping[str, str] = field(default_factory=dict)
    keep: Keep = Keep.NEVER

    def lab(self, *, image: Path | None = None, root: Path | None = None) -> LabConfig:
        """Return how labs are made on this machine, with its image and its folder for them."""
        return LabConfig(
            backend=self.backend,
            accelerator=self.accelerator,
            memory_mib=self.memory_mib,
            processors=self.processors,
            cold=self.cold,
            image=image,
            root=root,
            faults=self.faults,
        )

    def document(self) -> dict[str, Any]:
        """Return it as JSON values: equal requests have equal ones."""
        values: dict[str, Any] = _REQUEST.dump_python(self, mode="json")
        return values

    @classmethod
    def parse(cls, document: object) -> RunRequest:
        """Return the request of JSON values. Raises ValueError."""
        return _REQUEST.validate_python(document)


_REQUEST: Final = TypeAdapter(RunRequest)
