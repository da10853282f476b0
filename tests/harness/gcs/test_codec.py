"""Frames and JSON bodies: golden bytes, any cut, limits, and what Go would write."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.gcs import prot
from harness.gcs.codec import (
    GUEST_MAX_FRAME,
    HOST_MAX_FRAME,
    Frame,
    FrameDecoder,
    FrameError,
    MessageError,
    decode_body,
    encode_body,
    encode_frame,
    from_json,
    to_json,
)

FRAMES = st.lists(
    st.builds(Frame, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=200)),
    max_size=5,
)


def test_a_frame_has_a_little_endian_header_that_counts_itself() -> None:
    assert (
        encode_frame(Frame(0x10100B01, 7, b"{}\n"))
        == bytes.fromhex("010b1010 13000000 0700000000000000") + b"{}\n"
    )


@settings(max_examples=100, deadline=None)
@given(FRAMES, st.data())
def test_any_cut_of_the_bytes_gives_the_same_frames(
    frames: list[Frame], data: st.DataObject
) -> None:
    stream = b"".join(map(encode_frame, frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = FrameDecoder(max_frame=HOST_MAX_FRAME)
    got: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == frames
    assert decoder.at_boundary


@pytest.mark.parametrize("size", [0, 15, HOST_MAX_FRAME + 1, 2**32 - 1])
def test_the_host_refuses_a_size_that_cannot_be(size: int) -> None:
    decoder = FrameDecoder(max_frame=HOST_MAX_FRAME)
    with pytest.raises(FrameError, match=str(size)):
        decoder.feed(struct.pack("<IIQ", 0x20100101, size, 0))


def test_frames_of_exactly_64_kib_pass_the_host_and_larger_ones_the_guest() -> None:
    largest = Frame(0x20100101, 1, b"x" * (HOST_MAX_FRAME - 16))
    assert FrameDecoder(max_frame=HOST_MAX_FRAME).feed(encode_frame(largest)) == [largest]
    larger = Frame(0x10100101, 1, b"x" * HOST_MAX_FRAME)
    assert FrameDecoder(max_frame=GUEST_MAX_FRAME).feed(encode_frame(larger)) == [larger]


def test_a_half_received_frame_is_no_boundary() -> None:
    decoder = FrameDecoder(max_frame=HOST_MAX_FRAME)
    assert decoder.feed(encode_frame(Frame(1, 1, b"body"))[:-1]) == []
    assert not decoder.at_boundary


def test_empty_values_are_left_out_unless_upstream_always_sends_them() -> None:
    disk = prot.MappedVirtualDisk(mount_path="/run/mounts/scsi/m0", lun=1, read_only=True)
    assert to_json(disk) == {"MountPath": "/run/mounts/scsi/m0", "Lun": 1, "ReadOnly": True}
    assert to_json(prot.ResponseBase()) == {"Result": 0}
    assert to_json(prot.RequestBase()) == {"ContainerId": ""}


def test_json_inside_a_string_is_encoded_twice() -> None:
    config = prot.ContainerConfig(
        schema_version=prot.SchemaVersion(major=2, minor=1),
        oci_bundle_path="/run/gcs/c/a",
        oci_specification={"ociVersion": "1.0.2"},
    )
    body = to_json(prot.Create(config=config))
    assert isinstance(body["ContainerConfig"], str)
    assert json.loads(body["ContainerConfig"]) == {
        "SchemaVersion": {"Major": 2, "Minor": 1},
        "OciBundlePath": "/run/gcs/c/a",
        "OciSpecification": {"ociVersion": "1.0.2"},
        "ScratchDirPath": "",
    }
    assert from_json(prot.Create, body) == prot.Create(config=config)


def test_an_execute_request_looks_as_upstream_sends_it() -> None:
    request = prot.ExecuteProcess(
        settings=prot.ExecuteSettings(
            parameters=prot.ProcessParameters(command_args=("ls", "-l"), create_stdout=True),
            stdio=prot.StdioPorts(stdout=0x40000001),
        )
    )
    assert to_json(request) == {
        "Settings": {
            "ProcessParameters": '{"CommandArgs":["ls","-l"],"CreateStdOutPipe":true}',
            "VsockStdioRelaySettings": {"StdOut": 0x40000001},
        }
    }
    assert from_json(prot.ExecuteProcess, to_json(request)) == request


def test_an_hresult_is_signed_on_the_wire_and_unsigned_here() -> None:
    status = prot.ResponseBase(result=prot.HResult.SYSTEM_NOT_FOUND, error_message="gone")
    assert to_json(status)["Result"] == -1070137074
    assert from_json(prot.ResponseBase, {"Result": -1070137074}).result == 0xC037010E
    assert from_json(prot.ResponseBase, {"Result": 0xC037010E}).result == 0xC037010E


def test_unknown_names_are_ignored_and_null_is_empty() -> None:
    got = from_json(prot.RequestBase, {"ContainerId": "c", "otsc": {"a": 1}, "ActivityId": None})
    assert got == prot.RequestBase(container_id="c")


def test_a_name_is_taken_in_any_case_and_the_exact_one_first_as_go_does() -> None:
    got = from_json(prot.ProcessParameters, {"CreateInUtilityVm": True, "commandline": "ls"})
    assert got == prot.ProcessParameters(create_in_uvm=True, command_line="ls")
    both = {"CONTAINERID": "folded", "ContainerId": "exact"}
    assert from_json(prot.RequestBase, both).container_id == "exact"
    with pytest.raises(MessageError, match="ContainerId"):
        from_json(prot.RequestBase, {"containerid": 5})


@pytest.mark.parametrize(
    ("kind", "value", "path"),
    [
        (prot.RequestBase, [], "body"),
        (prot.RequestBase, {"ContainerId": 5}, "ContainerId"),
        (prot.MappedVirtualDisk, {"Lun": "1"}, "Lun"),
        (prot.MappedVirtualDisk, {"Lun": -1}, "Lun"),
        (prot.MappedVirtualDisk, {"Lun": True}, "Lun"),
        (prot.MappedVirtualDisk, {"ReadOnly": 1}, "ReadOnly"),
        (prot.MappedVirtualDisk, {"Options": "ro"}, "Options"),
        (prot.MappedVirtualDisk, {"Options": [1]}, r"Options\[0\]"),
        (prot.CombinedLayers, {"Layers": [{"Path": 1}]}, r"Layers\[0\]\.Path"),
        (prot.Create, {"ContainerConfig": {}}, "ContainerConfig"),
        (prot.Create, {"ContainerConfig": "{"}, "ContainerConfig"),
        (prot.ModifySettings, {"Request": {"Settings": 3}}, r"Request\.Settings"),
        (prot.Create, {"ContainerConfig": '{"SchemaVersion":2}'}, r"Config\.SchemaVersion"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_by_its_path(
    kind: type[object], value: object, path: str
) -> None:
    with pytest.raises(MessageError, match=path):
        from_json(kind, value)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(MessageError):
        decode_body(body)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=4))
def test_bodies_survive_a_round_trip_with_any_text(body: dict[str, str]) -> None:
    assert decode_body(encode_body(body)) == body
    assert encode_body(body).endswith(b"}\n")


def test_a_path_that_is_not_utf8_survives_a_round_trip() -> None:
    path = b"/run/\x80".decode("utf-8", "surrogateescape")
    assert decode_body(encode_body({"MountPath": path})) == {"MountPath": path}


def test_type_words_are_built_of_kind_category_number_and_version() -> None:
    assert prot.Request.NEGOTIATE_PROTOCOL.response == 0x20100B01
    assert prot.Request.MODIFY_SERVICE_SETTINGS.response == 0x20200101
    assert prot.kind_of(prot.CONTAINER_NOTIFICATION) is prot.Kind.NOTIFICATION
    assert prot.kind_of(0x50000000) is None
    for number, request in enumerate(list(prot.Request)[:15], start=1):
        assert request == 0x10100001 | number << 8
