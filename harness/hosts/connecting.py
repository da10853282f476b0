"""From an inventory's host to a connection: the password is fetched here and nowhere else."""

from __future__ import annotations

from harness.errors import UsageError
from harness.hosts.inventory import Host
from harness.remote.endpoint import Endpoint
from harness.remote.retries import RetryPolicy
from harness.remote.winrm import WinRM


def connect_host(name: str, host: Host, *, policy: RetryPolicy | None = None) -> WinRM:
    """Return the way to a host; nothing is sent yet. Raises UsageError for what is not given."""
    # A Kerberos ticket that is there already says who asks, and needs no password.
    if host.auth != "kerberos":
        if not host.user:
            raise UsageError(f"{name} has no user: write user = 'NAME' for it or in [defaults]")
        if host.password is None:
            raise UsageError(f"{name} has no password: write password = {{ env = 'NAME' }} for it")
    return WinRM(Endpoint.of(name, host), policy=policy)
