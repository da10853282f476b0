"""The snapshotter as a proxy plugin of containerd: snapshots.v1, diff.v1 and health over gRPC."""
