"""What a failing test says, wherever it says it, holds no password that was fetched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CANARY = "Canary-7d1c&horse"
TESTS = """
import logging
import sys
import pytest
from harness.hosts.inventory import PasswordSource
from harness.remote.passwords import fetch_password

word = fetch_password(PasswordSource(env="LAB_WORD"), host="win-01").reveal()

@pytest.fixture
def broken():
    raise RuntimeError(f"set-up of {word}")

def test_asserts():
    sent = "login " + word
    assert sent == "another"

def test_says(capsys):
    print("printed", word)
    print("told", word, file=sys.stderr)
    logging.getLogger("lab").warning("logged %s", word)
    raise ValueError(f"said {word}") from OSError(f"caused by {word}")

def test_properties(record_property):
    record_property("argv", ["net", "use", word])

def test_set_up(broken):
    pass

@pytest.mark.skip(reason=f"no {word}")
def test_skipped():
    pass

@pytest.mark.parametrize("given", [word])
def test_named(given):
    raise SystemExit(given)
"""


def test_no_report_of_pytest_holds_a_password(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "test_no.py").write_text(
        TESTS.partition("@pytest.fixture")[0] + "raise ImportError(f'{word} at import')\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-vv", "-l", "-rA"),
            *("--continue-on-collection-errors", "--junit-xml", "junit.xml"),
        ],
        cwd=tmp_path,
        env={**os.environ, "LAB_WORD": CANARY},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "3 failed, 1 passed, 1 skipped" in done.stdout, done.stdout
    said = done.stdout + done.stderr + (tmp_path / "junit.xml").read_text("utf-8")
    for each in ("set-up of", "caused by", "printed", "told", "logged", "at import", "net"):
        assert f"{each}" in said
    assert "********" in said
    found = [line for line in said.splitlines() if CANARY in line or "Canary" in line]
    assert found == []
