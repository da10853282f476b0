"""Saved machines in the cache: published whole, checked at each use, removed when too many."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ComputeServiceError, ComputeTimeoutError
from harness.qemu.templatekey import template_key
from harness.qemu.templatestore import DamagedTemplateError, TemplateStore


def facts(name: str = "a", memory: str = "file") -> dict[str, Any]:
    return {"memory": memory, "arguments": [name]}


def build(store: TemplateStore, made_of: dict[str, Any], *, size: int = 8192) -> bool:
    """Build a template where there is none; whether it was built."""
    with store.building(made_of, timeout_s=5) as draft:
        if draft is None:
            return False
        draft.memory.write_bytes(b"m" * size)
        draft.state.write_bytes(b"state of " + json.dumps(made_of).encode())
    return True


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    return TemplateStore(tmp_path / "templates")


def test_what_was_built_is_opened(store: TemplateStore) -> None:
    assert store.open(facts()) is None
    assert build(store, facts())
    opened = store.open(facts())
    assert opened is not None
    with opened:
        assert os.read(opened.state_fd, 8) == b"state of"
        assert os.fstat(opened.memory_fd).st_size == 8192
    assert not build(store, facts())


def test_other_facts_are_another_template(store: TemplateStore) -> None:
    build(store, facts("a"))
    assert store.open(facts("b")) is None
    assert store.open(facts("a", memory="stream")) is None


def test_an_open_template_outlives_its_removal(store: TemplateStore) -> None:
    build(store, facts())
    opened = store.open(facts())
    assert opened is not None
    with opened:
        store.remove(opened.key)
        assert store.open(facts()) is None
        assert os.pread(opened.memory_fd, 1, 0) == b"m"
    store.remove(opened.key)


@pytest.mark.parametrize("name", ["memory", "state", "template.json"])
@pytest.mark.parametrize("harm", ["change", "cut", "remove"])
def test_a_damaged_template_is_noticed_and_replaced(
    store: TemplateStore, name: str, harm: str
) -> None:
    build(store, facts())
    path = store.directory / template_key(facts()) / name
    if harm == "remove":
        path.unlink()
    elif harm == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x40
        path.write_bytes(data)
    with pytest.raises(DamagedTemplateError, match=str(path.parent)):
        store.open(facts())
    assert build(store, facts())
    opened = store.open(facts())
    assert opened is not None
    opened.close()


def test_a_template_of_another_name_is_not_taken(store: TemplateStore) -> None:
    build(store, facts("a"))
    (store.directory / template_key(facts("a"))).rename(store.directory / template_key(facts("b")))
    with pytest.raises(DamagedTemplateError, match="something else"):
        store.open(facts("b"))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a file away")
def test_somebody_elses_template_is_not_used(store: TemplateStore) -> None:
    build(store, facts())
    os.chown(store.directory / template_key(facts()) / "memory", 65534, -1)
    with pytest.raises(DamagedTemplateError, match="belongs to user 65534"):
        store.open(facts())


def test_a_failed_build_leaves_nothing(store: TemplateStore) -> None:
    with pytest.raises(RuntimeError), store.building(facts(), timeout_s=5):
        raise RuntimeError("the guest did not boot")
    assert [path.suffix for path in store.directory.iterdir()] == [".lock"]
    assert store.open(facts()) is None


def test_what_a_dead_builder_left_is_removed(store: TemplateStore) -> None:
    left = store.directory / f"new-{template_key(facts())}-dead"
    left.mkdir(parents=True)
    (left / "memory").write_bytes(b"half")
    assert build(store, facts())
    assert not left.exists()


def test_one_builds_and_the_others_wait_for_it(store: TemplateStore) -> None:
    builds: list[int] = []
    start = threading.Barrier(4)

    def builder(number: int) -> None:
        start.wait()
        mine = TemplateStore(store.directory)
        with mine.building(facts(), timeout_s=10) as draft:
            if draft is not None:
                builds.append(number)
                time.sleep(0.1)
                draft.state.write_bytes(b"state")

    threads = [threading.Thread(target=builder, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_a_builder_that_does_not_end_is_not_waited_for_ever(store: TemplateStore) -> None:
    with store.building(facts(), timeout_s=1) as draft:
        assert draft is not None
        with (
            pytest.raises(ComputeTimeoutError, match="another process"),
            TemplateStore(store.directory).building(facts(), timeout_s=0.1),
        ):
            pass


def test_the_templates_used_least_recently_go_first(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path, limit_bytes=3 * 2**20)
    for number, name in enumerate("abc"):
        build(store, facts(name), size=2**20 - 32768)
        manifest = tmp_path / template_key(facts(name)) / "template.json"
        os.utime(manifest, (1000 + number, 1000 + number))
    opened = store.open(facts("a"))
    assert opened is not None
    opened.close()
    build(store, facts("d"), size=2**20 - 32768)
    left = {info.key for info in store.templates()}
    assert left == {template_key(facts(name)) for name in "acd"}


def test_a_template_beyond_the_limit_stays_until_another_is_built(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path, limit_bytes=1)
    build(store, facts("a"))
    assert [info.key for info in store.templates()] == [template_key(facts("a"))]
    build(store, facts("b"))
    assert [info.key for info in store.templates()] == [template_key(facts("b"))]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        pytest.raises(ComputeServiceError, match="no templates in"),
        TemplateStore(tmp_path / "no").building(facts(), timeout_s=1),
    ):
        pass
