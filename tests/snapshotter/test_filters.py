"""Filters in Python and in SQL, and Go's grammar.

tests/conformance/test_go_filters.py compares them with containerd's own; what is here keeps the
findings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import InvalidArgumentError
from snapshotter.filters import Filters
from snapshotter.metastore import Info, Kind, Usage
from snapshotter.metastore.store import MetaStore

BASE = Info("base", Kind.COMMITTED, "", {"a.b": "1", "tag": "x,y", "n/m": "ä"})
TOP = Info("k8s.io/4/top", Kind.ACTIVE, "base", {"tag": "z"})


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", ["base", "top"]),
        ("name==base", ["base"]),
        ("name==k8s.io/4/top", ["top"]),
        (" name == base", ["base"]),
        ("name", ["base", "top"]),
        ('parent==""', ["base"]),
        ("parent", ["base", "top"]),
        ("parent==base", ["top"]),
        ('parent!=""', ["top"]),
        ("parent!=nobody", ["base", "top"]),
        ("kind==committed", ["base"]),
        ("kind!=committed", ["top"]),
        ("kind==nothing", []),
        ("kind!=nothing", ["base", "top"]),
        ("labels.a.b==1", ["base"]),
        ('labels."a.b"==1', ["base"]),
        ("labels.a.b", ["base"]),
        ("labels.tag!=z", ["base"]),
        ("labels.absent!=z", ["base", "top"]),
        ('labels.absent==""', []),
        ('labels.absent!=""', []),
        ('labels.tag!=""', ["base", "top"]),
        ('labels.tag=="x,y"', ["base"]),
        ('labels."n/m"=="\\u00e4"', ["base"]),
        ('labels."n/m"=="\\xc3\\xa4"', ["base"]),
        ('labels."n/m"=="\\303\\244"', ["base"]),
        ('name=="\\xff"', []),
        ('name!="\\xff"', ["base", "top"]),
        ("name~=^k8s", ["top"]),
        ("name~=/o.$/", ["top"]),
        ("name~=|as|", ["base"]),
        ("labels.absent~=/^$/", ["base", "top"]),
        ("name~=/[/", []),
        ("name~=/(?=b)/", []),
        ("nonsense", []),
        ("nonsense!=x", ["base", "top"]),
        ('nonsense!=""', []),
        ("kind==active,labels.tag==z", ["top"]),
        ("kind==active,name==base", []),
    ],
)
def test_a_filter_matches_what_containerd_says(text: str, matches: list[str]) -> None:
    filters = Filters.parse(text)
    found = [info.name.rpartition("/")[2] for info in (BASE, TOP) if filters.match(info)]
    assert found == matches


@pytest.mark.parametrize(
    "text",
    [
        *("==x", "name=x", "name===x", "name==", "name==,", "name,", ",name", "name name"),
        *('name=="x', "name==/x/", "/name/==x", "name==|x|", 'name=="\\q"', 'name=="\\400"'),
        *('name=="\\U00110000"', 'name=="\\x4"', "name==a\0b", "a-b==c", "name.", ".name"),
        *('name=="a\nb"', "name== ", "name\x1c==x", "name==.x", "name=~x", "name==x y"),
    ],
)
def test_a_malformed_filter_is_refused_quoting_it(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="filter"):
        Filters.parse("", text)


@pytest.mark.parametrize("text", [r"name~=/\\pL/", "name~=/(?U)a+/", "name~=/[[:^alpha:]]/"])
def test_an_expression_that_cannot_be_matched_faithfully_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not supported"):
        Filters.parse(text)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("^a$", "a\n", False),
        ("(?m)^a$", "a\n", True),
        ("(?m:a$)|b$", "b\n", False),
        (r"a\z", "a", True),
        ("a{,3}", "a{,3}", True),
        ("a{01}", "a{01}", True),
        ("a{1,01}", "a{1,01}", True),
        ("a{0,10}b", "aab", True),
        ("a*+", "a", False),
        (r"(a)\1", "aa", False),
        (r"^\d$", "\u0663", False),
        ("^[[:alpha:]]+$", "abc", True),
        (r"\Qa.b\E", "axb", False),
        ("^[]a]$", "]", True),
        ("(?i)ABC", "xabc", True),
        (r"\x{41}", "A", True),
        ("a{1001}", "a" * 1001, False),
        ("(?i:A)b", "ab", True),
        ("^*a", "a", True),
        (r"\b{2}a", "a", True),
        (r"\B", "", True),
        ("(?P<n>a)(?P<n>b)", "ab", True),
        (r"\_", "_", True),
        ("[[:al a:]]", "a", False),
        ("[[:alpha]", ":", True),
    ],
)
def test_regular_expressions_are_gos(pattern: str, text: str, matches: bool) -> None:
    filters = Filters.parse(f'labels.t~="{pattern}"'.replace("\\", "\\\\"))
    assert filters.match(Info("n", labels={"t": text})) is matches


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(a|a)*!", "(a*)*b", "(.*)(.*)(.*)(.*)(.*)b", "a?" * 40 + "a" * 60, "(a|a)" * 51],
)
def test_no_expression_takes_longer_than_the_text_is_long(pattern: str) -> None:
    # Python's own engine would be at it for years, and nothing else would run in the process.
    assert not Filters.parse(f"name~=/{pattern}/").match(Info("a" * 50))


@pytest.mark.parametrize(("pattern", "matches"), [("(a{10}){10}", True), ("(a{40}){30}", False)])
def test_repeats_of_repeats_have_gos_bound(pattern: str, matches: bool) -> None:
    assert Filters.parse(f"name~=/{pattern}/").match(Info("a" * 1200)) is matches


@pytest.mark.parametrize("pattern", ["[ab]{900}" * 20, "a" * 10_001, "(a" * 6000])
def test_an_expression_that_is_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgumentError, match="too large"):
        Filters.parse(f"name~=/{pattern}/")


def test_several_filters_mean_any_of_them() -> None:
    filters = Filters.parse("name==base", "kind==active")
    assert filters.match(BASE)
    assert filters.match(TOP)
    assert not filters.match(Info("other", Kind.VIEW))


# -- SQL and Python agree

NAMES = ["a", "b", "ns/1/a", 'q"uote', "ä"]
LABELS = ["l", "a.b", 'x"y']
VALUES = ["1", "a", "ä", ""]

_quoted = st.sampled_from([*NAMES, *VALUES, "committed", "active"]).map(
    lambda text: '"' + text.replace('"', '\\"') + '"'
)
_path = st.one_of(
    st.sampled_from(["name", "parent", "kind", "other"]),
    st.sampled_from(LABELS).map(lambda name: 'labels."' + name.replace('"', '\\"') + '"'),
)
_selector = st.one_of(
    _path,
    st.tuples(_path, st.sampled_from(["==", "!=", "~="]), _quoted).map("".join),
)
_filters = st.lists(st.lists(_selector, min_size=1, max_size=3).map(",".join), max_size=3)


@pytest.fixture(scope="module")
def metastore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetaStore]:
    store = MetaStore.open(Path(tmp_path_factory.mktemp("filters")) / "metadata.db")
    with store.transaction(write=True) as tx:
        for position, name in enumerate(NAMES):
            labels = {LABELS[position % 3]: VALUES[position % 4], "l": VALUES[position % 3]}
            tx.snapshots.create(Kind.ACTIVE, f"key {name}", "", labels)
            tx.snapshots.commit(name, f"key {name}", labels=labels, usage=Usage())
            tx.snapshots.create(Kind(1 + position % 2), f"on {name}", name, labels)
    yield store
    store.close()


@given(_filters)
@settings(max_examples=300, deadline=None)
def test_sql_finds_what_python_matches(metastore: MetaStore, texts: list[str]) -> None:
    filters = Filters.parse(*texts)
    with metastore.transaction(write=False) as tx:
        everything = list(tx.snapshots.walk(Filters()))
        found = list(tx.snapshots.walk(filters))
    assert found == [info for info in everything if filters.match(info)]


def test_a_thousand_filters_are_no_problem(metastore: MetaStore) -> None:
    filters = Filters.parse(*(f"name==x{number}" for number in range(1200)), "name==a")
    with metastore.transaction(write=False) as tx:
        assert [info.name for info in tx.snapshots.walk(filters)] == ["a"]


@given(st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        filters = Filters.parse(text)
    except InvalidArgumentError:
        return
    filters.match(BASE)
