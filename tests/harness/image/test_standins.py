"""The guest's small stand-ins do what the originals do, as far as they go."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness
from harness.image.sources import GuestSources
from harness.image.standins import contextlib_, dataclasses_, enum_
from harness.image.standins import json_ as untyped_json

FOLDER = Path(str(harness.__file__)).parent / "image" / "standins"


def make(module: Any) -> Any:  # noqa: ANN401 - a class made by either
    @module.dataclass(frozen=True, slots=True)
    class Base:
        LIMIT: ClassVar = 3
        number: int
        text: str = "t"
        items: list[int] = module.field(default_factory=list, metadata={"wire": "Items"})

    return Base


BOTH = pytest.mark.parametrize("module", [dataclasses, dataclasses_], ids=["original", "stand-in"])


@BOTH
def test_records_compare_hash_print_and_match(module: ModuleType) -> None:
    kind = make(module)
    assert kind(1) == kind(number=1, text="t", items=[])
    assert kind(1) != kind(2)
    assert kind(1) != 1
    assert repr(kind(1)).endswith("Base(number=1, text='t', items=[])")
    assert hash(kind(1, items=())) == hash(kind(1, items=()))
    match kind(5, "five"):
        case kind(number=number, text=text):
            assert (number, text) == (5, "five")


@BOTH
def test_each_record_has_a_list_of_its_own(module: ModuleType) -> None:
    kind = make(module)
    assert kind(1).items is not kind(1).items


@BOTH
def test_frozen_records_stay_as_they_are(module: ModuleType) -> None:
    record = make(module)(1)
    with pytest.raises(module.FrozenInstanceError):
        record.number = 2
    with pytest.raises(module.FrozenInstanceError):
        del record.number
    changed = module.replace(record, text="new")
    assert (record.text, changed.text, changed.number) == ("t", "new", 1)


@BOTH
@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, "t", [], 4), {}), ((1,), {"number": 2}), ((1,), {"no": 2})]
)
def test_wrong_arguments_are_type_errors(
    module: ModuleType, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        make(module)(*args, **kwargs)


@BOTH
def test_fields_tell_names_and_metadata_in_order(module: ModuleType) -> None:
    found = module.fields(make(module))
    assert [item.name for item in found] == ["number", "text", "items"]
    assert found[2].metadata["wire"] == "Items"
    assert [item.name for item in module.fields(make(module)(1))] == ["number", "text", "items"]
    assert module.is_dataclass(make(module))
    assert not module.is_dataclass(3)
    with pytest.raises(TypeError):
        module.fields(3)


@BOTH
def test_fields_are_inherited_and_state_may_change(module: ModuleType) -> None:
    make_record: Any = module.dataclass(slots=True)

    @make_record
    class State:
        count: int = 0

    @make_record
    class More(State):
        name: str = "x"

    kind: Any = More
    made = kind()
    made.count += 4
    assert made == kind(4, "x")
    assert made.__hash__ is None


json_: Any = untyped_json
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=VALUES, compact=st.booleans(), ascii_only=st.booleans())
def test_json_is_written_and_read_as_the_original_does(
    value: object, *, compact: bool, ascii_only: bool
) -> None:
    separators = (",", ":") if compact else (", ", ": ")
    text = json_.dumps(value, separators=separators, ensure_ascii=ascii_only)
    assert text == json.dumps(value, separators=separators, ensure_ascii=ascii_only)
    assert json_.loads(f" {text}\n") == json.loads(text)
    assert json_.loads(text.encode("utf-8", "surrogatepass")) == json.loads(text)


def test_what_is_no_json_is_a_value_error_as_with_the_original() -> None:
    script = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import json_
for text in ("", " ", "{{", "[1,]", '{{"a" 1}}', "nul", "1 2", '"open', "{{1:2}}"):
    try:
        json_.loads(text)
    except ValueError:
        continue
    raise SystemExit(f"{{text!r}} was taken")
try:
    json_.loads("[" * 100000)
except RecursionError:
    pass
for bad in (object(), {{1, 2}}):
    try:
        json_.dumps(bad)
    except TypeError:
        continue
    raise SystemExit("a value that is no JSON was written")
print("good")
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert done.stdout == "good\n", done.stderr


BOTH_ENUMS = pytest.mark.parametrize("module", [enum, enum_], ids=["original", "stand-in"])


def make_enums(module: Any) -> tuple[Any, Any, Any]:  # noqa: ANN401 - classes made by either
    class Plain(module.Enum):  # type: ignore[misc]  # of either module
        FIRST = "first"
        SECOND = "second"
        ALIAS = "first"

        @property
        def doubled(self) -> str:
            return str(self.value) * 2

    class Number(module.IntEnum):  # type: ignore[misc]  # of either module
        ONE = 1
        TWO = 2

    class Text(module.StrEnum):  # type: ignore[misc]  # of either module
        ADD = "Add"

    return Plain, Number, Text


@BOTH_ENUMS
def test_enumerations_are_looked_up_listed_compared_and_printed(module: ModuleType) -> None:
    plain, number, text = make_enums(module)
    assert plain("second") is plain.SECOND
    assert plain.ALIAS is plain.FIRST
    assert (plain.FIRST.name, plain.FIRST.value, plain.FIRST.doubled) == (
        "FIRST",
        "first",
        "firstfirst",
    )
    assert list(plain) == [plain.FIRST, plain.SECOND]
    assert (len(plain), plain["SECOND"]) == (2, plain.SECOND)
    assert plain.FIRST != "first"
    assert len({plain.FIRST, plain.SECOND, plain.ALIAS}) == 2
    assert (str(plain.FIRST), repr(plain.FIRST)) == ("Plain.FIRST", "<Plain.FIRST: 'first'>")
    assert {number.ONE: "x"}[1] == "x"
    assert (number(2) | 4, f"{number.TWO:#06x}", str(number.ONE)) == (6, "0x0002", "1")
    assert repr(number.TWO) == "<Number.TWO: 2>"
    assert (text.ADD, str(text.ADD), f"{text.ADD}!") == ("Add", "Add", "Add!")
    assert json.dumps([number.ONE, text.ADD]) == '[1, "Add"]'
    match 2:
        case number.TWO:
            pass
        case _:
            pytest.fail("a number is its member")
    for kind, value in ((plain, "third"), (number, 3), (text, "add")):
        with pytest.raises(ValueError, match="is not a valid"):
            kind(value)
    with pytest.raises(AttributeError):
        plain.THIRD  # noqa: B018 - it is not there


BOTH_CONTEXTS = pytest.mark.parametrize(
    "module", [contextlib, contextlib_], ids=["original", "stand-in"]
)


@BOTH_CONTEXTS
@pytest.mark.parametrize("error", [None, KeyError("k"), StopIteration(), RuntimeError("r")])
def test_blocks_made_of_generators_begin_end_and_pass_errors_on(
    module: ModuleType, error: Exception | None
) -> None:
    seen = []

    def body(*, quiet: bool) -> Iterator[int]:
        try:
            yield 7
        except Exception:
            if not quiet:
                raise
        finally:
            seen.append("end")

    make = module.contextmanager(body)
    for quiet in (False, True):
        raised = None
        try:
            with make(quiet=quiet) as value:
                assert value == 7
                if error is not None:
                    raise error
        except Exception as caught:  # noqa: BLE001 - whichever it is
            raised = caught
        assert raised is (None if quiet else error)
    assert seen == ["end"] * 2


@BOTH_CONTEXTS
@pytest.mark.parametrize("count", [0, 2])
def test_a_generator_that_does_not_yield_once_is_an_error(module: ModuleType, count: int) -> None:
    def body() -> Iterator[int]:
        yield from range(count)

    with pytest.raises(RuntimeError), module.contextmanager(body)():
        pass


@BOTH_CONTEXTS
def test_only_the_named_errors_are_suppressed(module: ModuleType) -> None:
    def fail(error: Exception) -> None:
        raise error

    with module.suppress(OSError, KeyError):
        fail(FileNotFoundError())
    with pytest.raises(ValueError, match="x"), module.suppress(OSError):
        fail(ValueError("x"))


def test_what_a_stand_in_lacks_is_the_originals(tmp_path: Path) -> None:
    """In the guest's own layout: the program's folder first, and the agent imported before."""
    for name, content in GuestSources.of_this_package().files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    script = """
import sys
import harness.guest.boot
assert not {"originals", "re", "signal", "operator", "keyword"} & set(sys.modules)
import collections, collections.abc, contextlib, enum, functools
assert collections.abc.Mapping is __import__("_collections_abc").Mapping
assert isinstance(collections.deque(), collections.abc.MutableSequence)
import re, shutil, signal, socket, subprocess, tempfile, traceback
assert signal.Signals(9).name == "SIGKILL" and socket.AF_UNIX.name == "AF_UNIX"
assert re.match("(a)b", "AB", re.IGNORECASE).group(1) == "A"
Point = collections.namedtuple("Point", "x y")
assert Point(1, y=2) == (1, 2)
class Flag(enum.Flag):
    A = 1
    B = 2
assert (Flag.A | Flag.B).value == 3
said = []
with contextlib.ExitStack() as stack:
    stack.callback(said.append, "left")
cached = functools.lru_cache(lambda value: said.append(value))
cached(1), cached(1)
assert said == ["left", 1]
assert subprocess.run(["echo", "hi"], capture_output=True, text=True).stdout == "hi\\n"
print("good")
"""
    done = subprocess.run(
        [sys.executable, "-S", "-s", "-B", "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]},
    )
    assert done.stdout == "good\n", done.stderr


def test_the_agents_own_tests_of_messages_pass_with_the_stand_ins(tmp_path: Path) -> None:
    """In a process of their own: `harness.gcs` must not have been imported with the originals."""
    script = f"""
import importlib.util, sys
for name in ("dataclasses", "typing", "json"):
    spec = importlib.util.spec_from_file_location(name, {str(FOLDER)!r} + f"/{{name}}_.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
from harness.gcs.codec import *
from harness.gcs.prot import *
from harness.gcs.mux import MuxEndpoint, MuxRole
import harness.guest.agent
message = MappedVirtualDisk(mount_path="/m", lun=3, read_only=True, options=("ro",))
assert from_json(MappedVirtualDisk, to_json(message)) == message
can = harness.guest.agent.CAPABILITIES
answer = from_json(Negotiated, to_json(Negotiated(version=4, capabilities=can)))
assert answer.capabilities.guest.delete_container_state
create = Create(config=ContainerConfig(oci_bundle_path="/b"))
assert from_json(Create, to_json(create)) == create
guest, host = MuxEndpoint(MuxRole.GUEST), MuxEndpoint(MuxRole.HOST)
channel = guest.dial(7)
(dialed,) = host.receive(guest.data_to_send())
host.accept(dialed.channel)
guest.receive(host.data_to_send())
guest.send(channel, b"abc")
(data,) = host.receive(guest.data_to_send())
assert data.data == b"abc"
assert "inspect" not in sys.modules and "re" not in dir(sys.modules["typing"])
print("good")
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "good\n", done.stderr


def test_the_image_has_the_stand_ins_before_the_standard_library() -> None:
    files = GuestSources.of_this_package().files
    assert files["dataclasses.py"] == (FOLDER / "dataclasses_.py").read_bytes()
    assert files["json.py"] == (FOLDER / "json_.py").read_bytes()
    assert files["typing.py"] == (FOLDER / "typing_.py").read_bytes()
