"""Which kernel package a distribution gets."""

from __future__ import annotations

import pytest

from harness.errors import ImageBuildError
from harness.image.distribution import Distribution


def release(identity: str, version: str | None) -> Distribution:
    fields = {"ID": identity, "PRETTY_NAME": f"{identity} {version}"}
    return Distribution.parse(fields if version is None else {**fields, "VERSION_ID": version})


@pytest.mark.parametrize(
    ("identity", "version", "package"),
    [
        ("debian", "12", "linux-image-cloud-amd64"),
        ("debian", "13", "linux-image-cloud-amd64"),
        ("debian", None, "linux-image-cloud-amd64"),
        ("ubuntu", "24.04", "linux-image-virtual"),
        ("ubuntu", "26.04", "linux-image-virtual"),
    ],
)
def test_known_releases_have_a_kernel(identity: str, version: str | None, package: str) -> None:
    assert release(identity, version).kernel_metapackage() == package


@pytest.mark.parametrize(
    ("identity", "version"), [("debian", "11"), ("ubuntu", "22.04"), ("fedora", "42")]
)
def test_others_are_told_to_bring_a_kernel(identity: str, version: str) -> None:
    with pytest.raises(ImageBuildError, match="--kernel FILE --modules DIR"):
        release(identity, version).kernel_metapackage()
