"""One small protocol for what differs between Linux and Windows in files and directories."""

from snapshotter.platform.local import local_platform
from snapshotter.platform.protocol import Platform

__all__ = ["Platform", "local_platform"]
