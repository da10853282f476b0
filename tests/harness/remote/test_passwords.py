"""A password is fetched from its place and shown nowhere."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError, MissingProgramError, UsageError
from harness.hosts.inventory import PasswordSource
from harness.remote.endpoint import Endpoint
from harness.remote.passwords import Secret, fetch_password
from harness.scrubber import KNOWN, scrub

CANARY = "c4n4ry p@ss/w\u00f6rd"


def test_each_place_gives_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_bytes(CANARY.encode() + b"\r\n")
    file.chmod(0o600)
    monkeypatch.setenv("LAB_PASSWORD", CANARY)
    printed = f"import sys;sys.stdout.buffer.write({CANARY.encode()!r})"
    for place in (
        PasswordSource(env="LAB_PASSWORD"),
        PasswordSource(file=file),
        PasswordSource(command=(sys.executable, "-c", printed)),
    ):
        assert fetch_password(place, host="win1").reveal() == CANARY
        assert scrub(f"a {CANARY} b") == "a ******** b"
        KNOWN.forget()


def test_a_place_without_a_password_is_named_and_its_content_is_not(tmp_path: Path) -> None:
    open_file = tmp_path / "open"
    open_file.write_text(CANARY)
    open_file.chmod(0o644)
    lines = tmp_path / "lines"
    lines.write_text(f"{CANARY}\nmore\n")
    lines.chmod(0o600)
    failing = f"import sys;print({CANARY!r});print({CANARY!r},file=sys.stderr);sys.exit(3)"
    for place, hint in (
        (PasswordSource(env="LAB_PASSWORD_UNSET"), "LAB_PASSWORD_UNSET"),
        (PasswordSource(file=tmp_path / "none"), "none"),
        (PasswordSource(file=open_file), "chmod 600"),
        (PasswordSource(file=lines), "more than one line"),
        (PasswordSource(command=(sys.executable, "-c", failing)), "exit code 3"),
        (PasswordSource(command=("no-such-program",)), "no-such-program"),
        (PasswordSource(keyring="no-slash"), "SERVICE/USER"),
    ):
        with pytest.raises(UsageError, match=hint) as caught:
            fetch_password(place, host="win1")
        assert CANARY not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_keyring_needs_its_package() -> None:
    try:
        import keyring  # type: ignore[import-not-found,unused-ignore] # noqa: F401
    except ImportError:
        with pytest.raises(MissingProgramError, match="pip install keyring"):
            fetch_password(PasswordSource(keyring="lab/admin"), host="win1")
    else:
        pytest.skip("the keyring package is installed: its absence cannot be shown")


def test_a_secret_shows_itself_in_no_text() -> None:
    secret = Secret(CANARY)
    endpoint = Endpoint("win1", "127.0.0.1", 5986, "ntlm", "verify", "admin", secret)
    texts = [
        str(secret),
        repr(secret),
        f"{secret:>40}",
        f"{secret!r}",
        " ".join(map(str, (secret, [secret]))),
    ]
    texts += [repr(endpoint), repr([secret]), repr(HarnessError(secret))]
    assert not any(CANARY in text for text in texts)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.deepcopy(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_equal_secrets_are_equal() -> None:
    assert Secret(CANARY) == Secret(CANARY) != Secret("other")
    assert len({Secret(CANARY), Secret(CANARY)}) == 1
    assert not Secret("")
