"""Snapshots whose mounts Linux really mounts: loop devices, ext4 and overlayfs, as root.

Importable on Linux alone; `snapshotter.linuxhost.snapshotter` has what to open.
"""
