from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import InvalidArgumentError
from snapshotter.keys import BackendKey, check_key, is_unpack
from snapshotter.labels import SNAPSHOT_REF

NAMESPACE = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
CLIENT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(NAMESPACE, st.integers(min_value=0), CLIENT)
@settings(max_examples=100, deadline=None)
def test_every_backend_key_of_containerd_comes_apart_as_it_was_put_together(
    namespace: str, sequence: int, client: str
) -> None:
    key = BackendKey.parse(f"{namespace}/{sequence}/{client}")
    assert (key.namespace, key.sequence, key.client) == (namespace, str(sequence), client)


@given(CLIENT)
@settings(max_examples=100, deadline=None)
def test_the_parts_of_any_key_lose_nothing(text: str) -> None:
    key = BackendKey.parse(text)
    whole = f"{key.namespace}/{key.sequence}/{key.client}" if key.namespace else key.client
    assert whole == text


@pytest.mark.parametrize("key", ["pod1", "k8s.io/pod1", "k8s.io/x1/pod1", "k8s.io/1/", "/1/pod1"])
def test_a_key_without_containerds_prefix_is_all_client_key(key: str) -> None:
    assert BackendKey.parse(key).client == key


@pytest.mark.parametrize(
    ("key", "labels", "expected"),
    [
        ("extract-1 sha256:aa", {}, True),
        ("k8s.io/7/extract-1 sha256:aa", {}, True),
        ("k8s.io/7/layer", {SNAPSHOT_REF: "sha256:aa"}, True),
        ("k8s.io/7/my-extractor", {}, False),
        ("k8s.io/7/extractor", {}, False),
        ("extract/7/pod", {}, False),
        ("k8s.io/7/a/extract-b", {}, False),
    ],
)
def test_unpack_snapshots_are_told_by_the_label_or_the_exact_prefix(
    key: str, labels: dict[str, str], expected: bool
) -> None:
    assert is_unpack(key, labels) is expected


@pytest.mark.parametrize("key", ["", "a\0b", "\ud800"])
def test_a_key_that_cannot_be_stored_is_refused(key: str) -> None:
    with pytest.raises(InvalidArgumentError, match="name"):
        check_key("name", key)
