"""The messages of containerd's and gRPC's services that are spoken here.

Source: containerd api/services/{snapshots,diff,content}/v1/*.proto, api/types/{mount,descriptor}
.proto at v2.2, whose additions older versions ignore; grpc-proto grpc/health/v1/health.proto.
"""

from __future__ import annotations

from typing import Final

from snapshotter.rpc.descriptors import Field, Messages, Package, Scalar

SNAPSHOTS: Final = "containerd.services.snapshots.v1"
DIFF: Final = "containerd.services.diff.v1"
CONTENT: Final = "containerd.services.content.v1"
HEALTH: Final = "grpc.health.v1"

_MOUNT: Final = "containerd.types.Mount"
_DESCRIPTOR: Final = "containerd.types.Descriptor"
_TIMESTAMP: Final = "google.protobuf.Timestamp"
_ANY: Final = "google.protobuf.Any"


def _labels(number: int, name: str = "labels") -> Field:
    return Field(number, name, string_map=True)


_SNAPSHOTTER: Final = Field(1, "snapshotter")
_KEY: Final = Field(2, "key")
_CREATE: Final = (_SNAPSHOTTER, _KEY, Field(3, "parent"), _labels(4))
_MOUNTS: Final = (Field(1, "mounts", _MOUNT, repeated=True),)
_INFO: Final = Field(1, "info", f"{SNAPSHOTS}.Info")

_messages: Final = Messages(
    Package(
        "containerd.types",
        {
            "Mount": (
                Field(1, "type"),
                Field(2, "source"),
                Field(3, "target"),
                Field(4, "options", repeated=True),
            ),
            "Descriptor": (
                Field(1, "media_type"),
                Field(2, "digest"),
                Field(3, "size", Scalar.INT64),
                _labels(5, "annotations"),
            ),
        },
    ),
    Package(
        SNAPSHOTS,
        {
            "PrepareSnapshotRequest": _CREATE,
            "PrepareSnapshotResponse": _MOUNTS,
            "ViewSnapshotRequest": _CREATE,
            "ViewSnapshotResponse": _MOUNTS,
            "MountsRequest": (_SNAPSHOTTER, _KEY),
            "MountsResponse": _MOUNTS,
            "RemoveSnapshotRequest": (_SNAPSHOTTER, _KEY),
            "CommitSnapshotRequest": (
                _SNAPSHOTTER,
                Field(2, "name"),
                Field(3, "key"),
                _labels(4),
                Field(5, "parent"),
            ),
            "StatSnapshotRequest": (_SNAPSHOTTER, _KEY),
            "Info": (
                Field(1, "name"),
                Field(2, "parent"),
                Field(3, "kind", f"{SNAPSHOTS}.Kind", enum=True),
                Field(4, "created_at", _TIMESTAMP),
                Field(5, "updated_at", _TIMESTAMP),
                _labels(6),
            ),
            "StatSnapshotResponse": (_INFO,),
            "UpdateSnapshotRequest": (
                _SNAPSHOTTER,
                Field(2, "info", f"{SNAPSHOTS}.Info"),
                Field(3, "update_mask", "google.protobuf.FieldMask"),
            ),
            "UpdateSnapshotResponse": (_INFO,),
            "ListSnapshotsRequest": (_SNAPSHOTTER, Field(2, "filters", repeated=True)),
            "ListSnapshotsResponse": (Field(1, "info", f"{SNAPSHOTS}.Info", repeated=True),),
            "UsageRequest": (_SNAPSHOTTER, _KEY),
            "UsageResponse": (Field(1, "size", Scalar.INT64), Field(2, "inodes", Scalar.INT64)),
            "CleanupRequest": (_SNAPSHOTTER,),
        },
        {"Kind": ("UNKNOWN", "VIEW", "ACTIVE", "COMMITTED")},
    ),
    Package(
        DIFF,
        {
            "ApplyRequest": (
                Field(1, "diff", _DESCRIPTOR),
                Field(2, "mounts", _MOUNT, repeated=True),
                Field(3, "payloads", _ANY, string_map=True),
                Field(4, "sync_fs", Scalar.BOOL),
            ),
            "ApplyResponse": (Field(1, "applied", _DESCRIPTOR),),
            "DiffRequest": (
                Field(1, "left", _MOUNT, repeated=True),
                Field(2, "right", _MOUNT, repeated=True),
                Field(3, "media_type"),
                Field(4, "ref"),
                _labels(5),
                Field(6, "source_date_epoch", _TIMESTAMP),
            ),
        },
    ),
    Package(
        CONTENT,
        {
            "Info": (
                Field(1, "digest"),
                Field(2, "size", Scalar.INT64),
                Field(3, "created_at", _TIMESTAMP),
                Field(4, "updated_at", _TIMESTAMP),
                _labels(5),
            ),
            "InfoRequest": (Field(1, "digest"),),
            "InfoResponse": (Field(1, "info", f"{CONTENT}.Info"),),
            "ReadContentRequest": (
                Field(1, "digest"),
                Field(2, "offset", Scalar.INT64),
                Field(3, "size", Scalar.INT64),
            ),
            "ReadContentResponse": (
                Field(1, "offset", Scalar.INT64),
                Field(2, "data", Scalar.BYTES),
            ),
        },
    ),
    Package(
        HEALTH,
        {
            "HealthCheckRequest": (Field(1, "service"),),
            "HealthCheckResponse": (Field(1, "status", f"{HEALTH}.ServingStatus", enum=True),),
        },
        {"ServingStatus": ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")},
    ),
)

Mount: Final = _messages.get(_MOUNT)
Descriptor: Final = _messages.get(_DESCRIPTOR)

PrepareSnapshotRequest: Final = _messages.get(f"{SNAPSHOTS}.PrepareSnapshotRequest")
ViewSnapshotRequest: Final = _messages.get(f"{SNAPSHOTS}.ViewSnapshotRequest")
MountsRequest: Final = _messages.get(f"{SNAPSHOTS}.MountsRequest")
MountsResponse: Final = _messages.get(f"{SNAPSHOTS}.MountsResponse")
"""The same encoding as PrepareSnapshotResponse and ViewSnapshotResponse."""
RemoveSnapshotRequest: Final = _messages.get(f"{SNAPSHOTS}.RemoveSnapshotRequest")
CommitSnapshotRequest: Final = _messages.get(f"{SNAPSHOTS}.CommitSnapshotRequest")
StatSnapshotRequest: Final = _messages.get(f"{SNAPSHOTS}.StatSnapshotRequest")
StatSnapshotResponse: Final = _messages.get(f"{SNAPSHOTS}.StatSnapshotResponse")
UpdateSnapshotRequest: Final = _messages.get(f"{SNAPSHOTS}.UpdateSnapshotRequest")
UpdateSnapshotResponse: Final = _messages.get(f"{SNAPSHOTS}.UpdateSnapshotResponse")
ListSnapshotsRequest: Final = _messages.get(f"{SNAPSHOTS}.ListSnapshotsRequest")
ListSnapshotsResponse: Final = _messages.get(f"{SNAPSHOTS}.ListSnapshotsResponse")
UsageRequest: Final = _messages.get(f"{SNAPSHOTS}.UsageRequest")
UsageResponse: Final = _messages.get(f"{SNAPSHOTS}.UsageResponse")
CleanupRequest: Final = _messages.get(f"{SNAPSHOTS}.CleanupRequest")

ApplyRequest: Final = _messages.get(f"{DIFF}.ApplyRequest")
ApplyResponse: Final = _messages.get(f"{DIFF}.ApplyResponse")
DiffRequest: Final = _messages.get(f"{DIFF}.DiffRequest")

ContentInfoRequest: Final = _messages.get(f"{CONTENT}.InfoRequest")
ContentInfoResponse: Final = _messages.get(f"{CONTENT}.InfoResponse")
ReadContentRequest: Final = _messages.get(f"{CONTENT}.ReadContentRequest")
ReadContentResponse: Final = _messages.get(f"{CONTENT}.ReadContentResponse")

HealthCheckRequest: Final = _messages.get(f"{HEALTH}.HealthCheckRequest")
HealthCheckResponse: Final = _messages.get(f"{HEALTH}.HealthCheckResponse")

Empty: Final = _messages.get("google.protobuf.Empty")
