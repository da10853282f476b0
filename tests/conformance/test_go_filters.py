"""Filters against containerd's own parser and Go's own regular expressions."""

from __future__ import annotations

import json
import random
import subprocess

import pytest

from snapshotter.errors import InvalidArgumentError
from snapshotter.filters import Filters
from snapshotter.metastore import Info, Kind
from tests.conformance.gobuild import GoPrograms

SNAPSHOTS = (
    Info("base", Kind.COMMITTED, "", {"a.b": "1", "tag": "x,y", "n/m": "ä"}),
    Info("k8s.io/4/top", Kind.ACTIVE, "base", {"tag": "aab", "1": "A b"}),
    Info("v", Kind.VIEW, "k8s.io/4/top", {}),
)
FIELDS = ["name", "parent", "kind", "labels.tag", "labels.a.b", 'labels."n/m"', "labels.1", "x"]
VALUES = ["base", "v", "active", "view", "k8s.io/4/top", "1", '""', '"x,y"', '"\\u00e4"', "aab"]
# Not (?<n>, which Go has from 1.22 on.
_PARTS = r"""
    a b A . ^ $ | ( ) (?: (?i: (?m: (?P<n> (?i) * + ? *? {2} {0,1} {2,} {,2} [ab] [^a] []a]
    [[:alpha:]] [[:^digit:]] [[:x:]] [[:a] [a-b] [b-a] [a&&b] [|~-] [\d_] [\]b] [ (?s: (?i-s:
    (?-i: (?U) (?= {1001} {3}{2} } ] ä \n \d \w \S \_ \- \q \1 \pL \C \07 \x{110000} \Z \b \B \A
    \z \Q \E \. \x61 \x{e4}
"""
EXPRESSION_PARTS = [" ", "\n", *_PARTS.split()]
SOUP = [*'=!~,."/| \\ab1_-:', "==", "!=", "~=", "name", "labels", "ä", "\\x41", "\t"]


def expression(rng: random.Random) -> str:
    """A regular expression, most often a valid one."""
    parts = [rng.choice(EXPRESSION_PARTS) for _ in range(rng.randint(0, 7))]
    opened = sum(part.startswith("(") and part != "(?i)" for part in parts)
    return "".join(parts) + ")" * (opened - parts.count(")"))


def selector(rng: random.Random) -> str:
    field = rng.choice(FIELDS)
    match rng.randrange(5):
        case 0:
            return field
        case 1 | 2:
            return field + rng.choice(["==", "!=", " == "]) + rng.choice(VALUES)
        case _:
            quoted = expression(rng).replace("\\", "\\\\")
            return f"{field}~=" + rng.choice(["/{}/", '"{}"', "|{}|"]).format(quoted)


def random_filter(rng: random.Random) -> str:
    """A filter, most often a valid one."""
    text = ",".join(selector(rng) for _ in range(rng.choice([1, 1, 1, 2, 3])))
    if rng.randrange(5) == 0:
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice(SOUP) + text[at + rng.randint(0, 2) :]
    return text


def ours(text: str, info: Info) -> str:
    try:
        return str(Filters.parse(text).match(info)).lower()
    except InvalidArgumentError as error:
        unsupported = "supported" in str(error) or "too large" in str(error)
        return "unsupported" if unsupported else "refused"


@pytest.mark.parametrize("count", [4_000, pytest.param(200_000, marks=pytest.mark.long)])
def test_filters_find_what_containerds_own_find(programs: GoPrograms, count: int) -> None:
    seed = random.SystemRandom().randrange(1 << 32) if count > 10_000 else 1
    rng = random.Random(seed)
    asked = [(random_filter(rng), rng.choice(SNAPSHOTS)) for _ in range(count)]
    lines = [
        json.dumps(
            {
                "Filter": text,
                "Name": info.name,
                "Parent": info.parent,
                "Kind": info.kind.word,
                "Labels": dict(info.labels),
            }
        )
        for text, info in asked
    ]
    done = subprocess.run(
        [programs.filters], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    theirs = done.stdout.split()
    assert len(theirs) == count, done.stderr
    found = [(text, info.name, ours(text, info)) for text, info in asked]
    different = [
        (text, name, own, other)
        for (text, name, own), other in zip(found, theirs, strict=True)
        if own not in (other, "unsupported")
    ]
    assert different == [], f"seed {seed}"
    # It is no comparison where nothing matches, or little is understood.
    assert sum(own == "true" for _, _, own in found) > count / 10
    assert sum(own in ("true", "false") for _, _, own in found) > count / 2
