"""Nothing that leaves the process shows a password that it knows."""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import os
import subprocess
import sys
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.scrubber import KNOWN, SHOWN, Scrubber, scrubbed_process

CANARY = "c4n4ry p@ss/w\u00f6rd<'\"\\&"


def test_every_shape_in_which_a_password_travels_is_struck_out() -> None:
    scrubber = Scrubber()
    scrubber.add(CANARY, user="admin")
    shapes = [
        CANARY,
        "Basic " + base64.b64encode(f"admin:{CANARY}".encode()).decode(),
        base64.b64encode(CANARY.encode("utf-16-le")).decode(),
        urllib.parse.quote(CANARY, safe=""),
        json.dumps({"said": CANARY}),
        html.escape(CANARY),
        repr([CANARY]),
    ]
    for text in shapes:
        said = scrubber.scrub(f"before {text} after")
        assert SHOWN in said
        assert "4n4ry" not in said
        assert said.startswith("before ")
        assert said.endswith(" after")


@given(st.text(min_size=4), st.text(), st.text())
def test_whatever_the_password_it_is_not_in_the_text_any_more(
    secret: str, before: str, after: str
) -> None:
    scrubber = Scrubber()
    scrubber.add(secret)
    said = scrubber.scrub(before + secret + after)
    # What is left may put it together anew only out of our own asterisks.
    assert secret not in said or set(secret) & set(SHOWN)


def test_a_short_one_takes_no_text_apart() -> None:
    scrubber = Scrubber()
    scrubber.add("abc")
    assert scrubber.scrub("abcdef") == "abcdef"


def test_logs_and_tracebacks_of_any_library_are_scrubbed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    KNOWN.add(CANARY)
    logger = logging.getLogger("somebody.else")
    with scrubbed_process():
        try:
            raise ValueError(CANARY)
        except ValueError:
            logger.exception("failed with %s", CANARY)
        logger.warning("nothing %s here", "secret")
    handler = logging.StreamHandler(io.StringIO())
    assert all(CANARY not in handler.format(record) for record in caplog.records)
    assert "nothing secret here" in caplog.text
    assert caplog.text.count(SHOWN) >= 2


def test_the_commands_output_and_its_last_words_are_scrubbed() -> None:
    """What a host says may hold the password that we sent it: here, the inventory's own place."""
    program = (
        "import os, sys, typer\n"
        "from harness.cli import app as cli\n"
        "from harness.scrubber import KNOWN\n"
        "word = os.environ['WORD']\n"
        "KNOWN.add(word)\n"
        "def run(**_):\n"
        "    print('out', word); typer.echo(f'echo {word}'); sys.stderr.write(word + '\\n')\n"
        "    raise RuntimeError(f'the host said {word}')\n"
        "cli.app = run\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "WORD": CANARY},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 1
    assert CANARY not in done.stdout + done.stderr
    assert done.stdout == f"out {SHOWN}\necho {SHOWN}\n"
    assert done.stderr.startswith(f"{SHOWN}\nTraceback")
    assert done.stderr.endswith(f"RuntimeError: the host said {SHOWN}\n")
