"""Which sources go into the guest."""

from __future__ import annotations

import pytest

from harness.errors import ImageBuildError
from harness.image.imports import Imported
from harness.image.sources import GuestSources, builder_digest

MAIN = {"harness/guest/__main__.py": b"import os\nfrom harness.guest import agent\n"}


def test_sources_without_an_agent_are_refused() -> None:
    with pytest.raises(ImageBuildError, match=r"lack harness/guest/__main__\.py"):
        GuestSources({"harness/__init__.py": b""})


def test_this_packages_agent_and_shared_modules_are_taken() -> None:
    files = GuestSources.of_this_package().files
    assert {"harness/__init__.py", "harness/gcs/mux.py", "harness/guest/__main__.py"} <= set(files)
    assert all(b"\r" not in content for content in files.values())
    assert not [path for path in files if path.startswith(("harness/image", "harness/qemu"))]


def test_only_the_standard_library_is_asked_for_from_outside() -> None:
    own = GuestSources(
        {**MAIN, "harness/guest/agent.py": b"import json.decoder\nfrom ..gcs import mux\n"}
    )
    assert {item.name for item in own.standard_modules()} == {"os", "json", "json.decoder"}


def test_an_import_inside_a_function_counts() -> None:
    late = GuestSources({**MAIN, "harness/guest/late.py": b"def f():\n    import uuid\n"})
    assert Imported("uuid", False) in late.standard_modules()


def test_the_future_is_really_imported() -> None:
    own = GuestSources({**MAIN, "harness/guest/a.py": b"from __future__ import annotations\n"})
    assert Imported("__future__", True) in own.standard_modules()


def test_any_change_changes_the_digest() -> None:
    digests = {
        GuestSources(files).digest()
        for files in (
            MAIN,
            {**MAIN, "harness/guest/a.py": b""},
            {**MAIN, "harness/guest/b.py": b""},
            {"harness/guest/__main__.py": b""},
        )
    }
    assert len(digests) == 4
    assert len(builder_digest()) == 64


def test_a_syntax_error_names_the_file() -> None:
    broken = GuestSources({**MAIN, "harness/guest/broken.py": b"def f(:"})
    with pytest.raises(ImageBuildError, match=r"harness/guest/broken\.py"):
        broken.standard_modules()
