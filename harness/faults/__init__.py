"""Faults on purpose, at every boundary between host and guest.

A boundary is a name such as `service.attach` or `guest.create`, a specification says what the
calls there meet (`2*ok->1*error(0xC037010E)->hang(200ms)->off`): see `harness.faults.grammar`.
`harness.faults.service` and `harness.faults.guest` put a plan into effect.
"""

from harness.faults.grammar import Action, Fault, FaultSyntaxError, parse_spec
from harness.faults.plan import BOUNDARIES, FaultPlan

__all__ = ["BOUNDARIES", "Action", "Fault", "FaultPlan", "FaultSyntaxError", "parse_spec"]
