"""Files and disks addressed by byte offset: the contract, and this host's implementation."""

import sys

from snapshotter.blockio.contract import BlockFile, BlockReader, DiskContent

if sys.platform == "win32":
    from snapshotter.blockio.windows import WindowsBlockFile as LocalBlockFile
else:
    from snapshotter.blockio.posix import PosixBlockFile as LocalBlockFile

__all__ = ["BlockFile", "BlockReader", "DiskContent", "LocalBlockFile"]
