"""Working on hosts from a command: each is reached, leased, worked on, and given back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.hosts.connecting import connect_host, refuse_in_maintenance
from harness.hosts.holding import HostHold
from harness.hosts.hostscripts import HostScripts
from harness.hosts.inventory import Inventory
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.pythonstep import find_python
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM


@dataclass(frozen=True, slots=True)
class HeldHost:
    """One host while it is ours."""

    name: str
    winrm: WinRM
    root: ProtectedRoot
    scripts: HostScripts


def on_held_hosts(
    inventory: Path | None,
    expression: str,
    work: Callable[[HeldHost], None],
    *,
    purpose: str,
    python: str,
    timeout_s: float,
) -> None:
    """Do `work` on every host that an expression selects, one after the other, under its lease.

    `python` as `find_python` takes it. Raises LeaseError for a host that is another's, and what
    `work` raises: hosts before it stay done.
    """
    known = Inventory.load(inventory)
    for name in known.select(expression):
        host = known.hosts[name]
        refuse_in_maintenance(name, host)
        root = ProtectedRoot(host.root)
        with connect_host(name, host) as winrm:
            found = find_python(winrm, root, python, deadline=Deadline.after(timeout_s))
            with HostHold(winrm, root, found, purpose=purpose, ttl_s=timeout_s) as hold:
                work(HeldHost(name, winrm, root, hold.scripts))
