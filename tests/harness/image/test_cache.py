"""The artefact cache: built once, checked on use, repaired, shared by processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from harness.cachedir import CACHE_VARIABLE, cache_directory
from harness.errors import ImageBuildError
from harness.image.cache import ArtifactCache


class Builder:
    """Counts its calls."""

    def __init__(self, content: bytes = b"kernel") -> None:
        self.content = content
        self.calls = 0

    def __call__(self, folder: Path, scratch: Path) -> None:
        self.calls += 1
        (scratch / "unpacked").write_bytes(b"rubbish")
        (folder / "part").mkdir()
        (folder / "part" / "file").write_bytes(self.content)


def left_over(cache: ArtifactCache) -> list[str]:
    return [p.name for p in cache.root.glob("*/.*") if p.suffix != ".lock"]


def test_an_artefact_is_built_once(tmp_path: Path) -> None:
    cache, build = ArtifactCache(tmp_path / "new"), Builder()
    first = cache.entry("image", "k", build)
    assert cache.entry("image", "k", build) == first
    assert build.calls == 1
    assert (first / "part" / "file").read_bytes() == b"kernel"
    assert left_over(cache) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "manifest", "no manifest"])
def test_a_damaged_artefact_is_built_again_with_a_notice(tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    cache, build = ArtifactCache(tmp_path, progress=said.append), Builder()
    path = cache.entry("image", "k", build)
    file = path / "part" / "file"
    match damage:
        case "flip":
            before = file.stat()
            file.write_bytes(b"kErnel")
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "cut":
            file.write_bytes(b"")
        case "delete":
            file.unlink()
        case "manifest":
            (path / "manifest.json").write_text("{")
        case _:
            (path / "manifest.json").unlink()
    assert cache.entry("image", "k", build) == path
    assert build.calls == 2
    assert file.read_bytes() == b"kernel"
    assert [line for line in said if "damaged" in line] != []
    assert left_over(cache) == []


def test_a_failed_build_publishes_nothing(tmp_path: Path) -> None:
    def fail(folder: Path, scratch: Path) -> None:
        (folder / "half").write_bytes(b"")
        raise ImageBuildError("no network")

    cache = ArtifactCache(tmp_path)
    with pytest.raises(ImageBuildError, match="no network"):
        cache.entry("image", "k", fail)
    assert not (tmp_path / "image" / "k").exists()
    assert left_over(cache) == []
    assert cache.entry("image", "k", Builder()).is_dir()


def test_a_full_disk_says_where_and_what_to_do(tmp_path: Path) -> None:
    def fail(folder: Path, scratch: Path) -> None:
        raise OSError(28, "No space left on device", str(folder))

    with pytest.raises(ImageBuildError, match=f"No space left.*{CACHE_VARIABLE}"):
        ArtifactCache(tmp_path).entry("image", "k", fail)


def test_a_cache_that_cannot_be_written_says_which_variable_moves_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = ArtifactCache(tmp_path / "file")
    with pytest.raises(ImageBuildError, match=CACHE_VARIABLE):
        cache.entry("image", "k", Builder())
    with pytest.raises(ImageBuildError, match=CACHE_VARIABLE):
        cache.remember(["state"], {"image": "k"})


def _build_slowly(root: Path) -> None:
    def build(folder: Path, scratch: Path) -> None:
        with (root / "builds").open("a") as log:
            log.write("x")
        time.sleep(0.5)
        (folder / "file").write_bytes(b"kernel")

    ArtifactCache(root / "cache").entry("image", "k", build)


def test_concurrent_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_build_slowly, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "builds").read_text() == "x"


def test_what_a_killed_builder_left_is_removed_by_the_next(tmp_path: Path) -> None:
    stale = tmp_path / "image" / ".new-k-abc"
    stale.mkdir(parents=True)
    ArtifactCache(tmp_path).entry("image", "k", Builder())
    assert not stale.exists()


def test_pruning_spares_what_is_in_use(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    for key in ("old", "used"):
        os.utime(cache.entry("image", key, Builder()), (1, 1))
    cache.entry("image", "used", Builder())
    cache.prune()
    assert sorted(p.name for p in (tmp_path / "image").glob("[!.]*")) == ["used"]


def test_a_record_is_recalled_while_its_artefacts_are_intact(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    path = cache.entry("image", "k", Builder())
    assert cache.recall("state") is None
    cache.remember(["state", "latest"], {"image": "k"})
    assert cache.recall("state") == cache.recall("latest") == {"image": path}
    (path / "part" / "file").unlink()
    assert cache.recall("state") is None


def test_the_environment_overrides_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_directory().name == "lcowlab"
