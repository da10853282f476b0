"""Searching by states against Python's own engine, on what both can do in time."""

from __future__ import annotations

import re

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from snapshotter.linearmatch import LinearPattern

_ATOMS = st.sampled_from(
    ["a", "b", "A", ".", r"\.", r"\d", r"\w", r"\S", "[ab]", "[^a]", "[]a]", r"[\]b-]", r"\x41"]
)
_PLACES = st.sampled_from(["^", "(?m:$)", r"\A", r"\Z", r"\b", r"\B"])
_REPEATS = st.sampled_from(
    ["*", "+", "?", "*?", "+?", "??", "{2}", "{0}", "{1,}", "{0,2}", "{2,3}?"]
)
_GROUPS = st.sampled_from(["(", "(?:", "(?i:", "(?s:", "(?m:", "(?-i:", "(?is-m:"])
_TEXTS = st.text("aAb_-. 1\n\u00e4", max_size=8)


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.builds(lambda opening, body: f"{opening}{body})", _GROUPS, inner)
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join),
        group,
        st.builds("{}{}".format, st.one_of(_ATOMS, group), _REPEATS),
    )


_EXPRESSIONS = st.recursive(st.one_of(_ATOMS, _PLACES, st.just("")), _larger, max_leaves=8)


@given(st.sampled_from(["", "(?i)", "(?sm)"]), _EXPRESSIONS, _TEXTS)
@settings(max_examples=400, deadline=None)
def test_both_engines_find_the_same(flags: str, expression: str, text: str) -> None:
    assume(text or r"\B" not in expression)  # where RE2 and Python differ
    pattern = re.compile(flags + expression, re.ASCII)
    found = pattern.search(text) is not None
    assert LinearPattern(pattern, max_steps=0).search(text) is found
    assert LinearPattern(pattern).search(text) is found
