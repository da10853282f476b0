"""Telling a service manager how the server is (sd_notify(3)); nothing where there is none."""

from __future__ import annotations

import logging
import os
import socket
from enum import Enum
from typing import Final

_log = logging.getLogger(__name__)

_UNIX: Final[int] = getattr(socket, "AF_UNIX", 1)


class Readiness(Enum):
    """What can be told."""

    READY = "READY=1"
    STOPPING = "STOPPING=1"


def notify(readiness: Readiness) -> None:
    """Send the state to the socket that NOTIFY_SOCKET names; a failure is logged."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(readiness.value.encode(), address)
    except OSError as error:
        _log.warning("cannot tell the service manager %s: %s", readiness.value, error)
