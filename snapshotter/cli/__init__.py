"""The command `lcow-snapshotter`."""

from snapshotter.cli.app import main

__all__ = ["main"]
