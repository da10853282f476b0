"""From an inventory's host to a connection: the password is fetched here and nowhere else."""

from __future__ import annotations

import datetime

from harness.errors import LeaseError, UsageError
from harness.hosts.inventory import Host
from harness.remote.endpoint import Endpoint
from harness.remote.retries import RetryPolicy
from harness.remote.winrm import WinRM


def refuse_in_maintenance(name: str, host: Host, *, now: datetime.datetime | None = None) -> None:
    """Raise LeaseError while one of the host's maintenance windows is open: nobody may take it.

    `now` is local time, as the windows are.
    """
    moment = now or datetime.datetime.now().astimezone()
    for text, window in zip(host.maintenance, host.windows, strict=True):
        if window.contains(moment):
            raise LeaseError(
                f"it is under maintenance ({text} in the inventory): come back afterwards",
                host=name,
            )


def connect_host(name: str, host: Host, *, policy: RetryPolicy | None = None) -> WinRM:
    """Return the way to a host; nothing is sent yet. Raises UsageError for what is not given."""
    # A Kerberos ticket that is there already says who asks, and needs no password.
    if host.auth != "kerberos":
        if not host.user:
            raise UsageError(f"{name} has no user: write user = 'NAME' for it or in [defaults]")
        if host.password is None:
            raise UsageError(f"{name} has no password: write password = {{ env = 'NAME' }} for it")
    return WinRM(Endpoint.of(name, host), policy=policy)
