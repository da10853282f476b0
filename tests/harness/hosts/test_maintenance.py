"""Nobody takes a host while its owner looks after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.app import _code_for, app
from harness.cli.exit_codes import ExitCode
from harness.errors import LeaseError

ALL_DAY = '["daily 00:00-12:00", "daily 12:00-00:00"]'


@pytest.mark.parametrize(
    "command",
    [
        ("provision", "win-01"),
        ("bundle", "push", "b", "win-01"),
        ("deploy", "win-01", "--bundle=b"),
    ],
)
def test_a_host_under_maintenance_is_refused_before_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Port 9 discards: an attempt to connect would be another error.
    (tmp_path / "hv-inventory.toml").write_text(
        '[hosts.win-01]\naddress = "127.0.0.1"\nport = 9\nuser = "lab"\n'
        f'password = {{ env = "LAB_WORD" }}\nmaintenance = {ALL_DAY}\n'
    )
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a-1-py3-none-any.whl").touch()
    assert CliRunner().invoke(app, ["bundle", "create", "b", "--wheels", "wheels"]).exit_code == 0
    done = CliRunner().invoke(app, [*command])
    assert isinstance(done.exception, LeaseError), done.output
    assert "under maintenance (daily" in str(done.exception)
    assert _code_for(done.exception) is ExitCode.LEASE
