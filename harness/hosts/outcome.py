"""What provisioning plans for a host, and what it did to one."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.hosts.steps import Assessment


@dataclass(frozen=True, slots=True)
class Planned:
    """One step as it was found."""

    step: str
    assessment: Assessment

    def document(self) -> dict[str, object]:
        """Return it as JSON values."""
        return {
            "step": self.step,
            "state": self.assessment.state.value,
            "detail": self.assessment.detail,
            "commands": [action.text for action in self.assessment.actions],
        }


@dataclass(slots=True)
class Outcome:
    """What an apply did: texts of the commands that ran, in order, and its restarts.

    `settled` are steps that a predecessor began and that were found done.
    `proofs` says by step what commands showed that change nothing.
    """

    ran: list[str] = field(default_factory=list)
    restarts: int = 0
    notes: dict[str, str] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)
    proofs: dict[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether anything was changed."""
        return len(self.ran) > len(self.proofs) or self.restarts > 0
