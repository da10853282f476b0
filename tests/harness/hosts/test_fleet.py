"""From an inventory to hosts that are proved, on two pretend hosts, and through every trouble."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.hosts.provision import Provisioner
from harness.winrmd.knobs import Strike
from harness.winrmd.troubles import parse_troubles
from tests.harness.hosts.fleet import (
    FAST,
    ROOT,
    Supplies,
    apply_until_done,
    assert_free,
    assert_journal_closed,
    open_supplies,
    updates_wait,
    what_a_host_is,
)
from tests.harness.hosts.pretend import CANARY, Pretend, pretend_host
from tests.harness.hosts.supplies import write_bundle
from tests.harness.hosts.test_provision import assert_provisioned


def run(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 0, done.output
    assert CANARY not in done.output
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def add(name: str, pretend: Pretend) -> None:
    words = ["hosts", "add", name, "127.0.0.1", "--port", str(pretend.port), "--user", "lab"]
    words += ["--password-env", "LAB_WORD", "--auth", "ntlm", "--tls", "off", "--tag", "lab"]
    assert CliRunner().invoke(app, words).exit_code == 0


@pytest.fixture(scope="module")
def supplies(tmp_path_factory: pytest.TempPathFactory) -> Supplies:
    folder = tmp_path_factory.mktemp("supplies")
    return open_supplies(write_bundle(folder / "bundle"), folder)


@pytest.fixture(scope="module")
def fleet(
    supplies: Supplies, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Pretend, Pretend, Path, list[dict[str, Any]]]]:
    """Two hosts in an inventory, their folder, and what the first provisioning said of them."""
    folder = tmp_path_factory.mktemp("fleet")
    with (
        pytest.MonkeyPatch.context() as patch,
        pretend_host(folder / "one", change=updates_wait) as one,
        pretend_host(folder / "two", change=updates_wait) as two,
    ):
        patch.setenv("LCOWLAB_CACHE", str(folder / "cache"))
        patch.setenv("LAB_WORD", CANARY)
        patch.setenv("HV_INVENTORY", str(folder / "hv.toml"))
        # A restart takes a real host minutes: how long it is waited for is not what is tested.
        patch.setattr("harness.hosts.provision.RestartPatience", lambda: FAST)
        add("win-01", one)
        add("win-02", two)
        yield one, two, folder, run("provision", "lab", *arguments(supplies))["hosts"]


@pytest.fixture(scope="module")
def expected(fleet: tuple[Pretend, Pretend, Path, list[dict[str, Any]]]) -> dict[str, Any]:
    """What a host is that was provisioned without trouble."""
    return what_a_host_is(fleet[0])


def arguments(supplies: Supplies) -> tuple[str, ...]:
    bundle = str(supplies.bundle.folder)
    return ("--bundle", bundle, "--least-python", "3.11", "--smoke", "model")


def test_two_hosts_from_the_inventory_to_the_proof_and_then_nothing_to_do(
    fleet: tuple[Pretend, Pretend, Path, list[dict[str, Any]]],
    expected: dict[str, Any],
    supplies: Supplies,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two, folder, first = fleet
    monkeypatch.setenv("LCOWLAB_CACHE", str(folder / "cache"))
    assert [(each["host"], each["restarts"]) for each in first] == [("win-01", 2), ("win-02", 2)]
    assert all("utility VM ran as" in each["proofs"]["smoke"] for each in first)
    deployed = CliRunner().invoke(app, ["deploy", "lab", "--bundle", str(supplies.bundle.folder)])
    assert deployed.stdout.count("was deployed already, 0 wheels copied") == 2
    second = run("provision", "lab", *arguments(supplies))["hosts"]
    assert [(each["ran"], each["restarts"]) for each in second] == [([], 0), ([], 0)]
    assert [each.host.read().boots for each in (one, two)] == [3, 3]
    assert what_a_host_is(one) == what_a_host_is(two) == expected
    for each in (one, two):
        assert_provisioned(each)
        assert_journal_closed(each)
        assert_free(each)
    # What drifts afterwards is told against that green run.
    with two.host.change() as state:
        state.services["Schedule"].status = "Stopped"
    (probed,) = run("hosts", "probe", "win-02")["hosts"]
    assert probed["green"]["what"] == "provision"
    assert [each["what"] for each in probed["drift_since_green"]] == ["services.Schedule"]
    assert run("hosts", "show", "win-02")["drift_since_green"] == probed["drift_since_green"]
    found = [
        file
        for file in folder.rglob("*")
        if file.is_file() and CANARY.encode() in file.read_bytes()
    ]
    assert found == []


# Each at its own distance, on top of the others: so they meet every step in some order. One at a
# time at every single request: `./dev soak hosts --every 1`.
_TROUBLES = {"drop-before": 97, "drop-after": 89, "quota": 113, "503": 127, "reboot": 331}


def mixed() -> tuple[Strike, ...]:
    strikes: list[Strike] = []
    for trouble, every in _TROUBLES.items():
        terms = "->".join(f"{every - 1}*ok->{trouble}" for _ in range(4000 // every))
        strikes += parse_troubles(f"{every // 2}*ok->{terms}")
    return tuple(strikes)


def test_trouble_on_the_way_loses_nothing_and_leaves_nothing_half_done(
    tmp_path: Path, supplies: Supplies, expected: dict[str, Any]
) -> None:
    with pretend_host(tmp_path / "host", change=updates_wait) as pretend:
        for strike in mixed():
            pretend.knobs.plan(strike)
        apply_until_done(pretend, supplies)
        pretend.knobs.forget()
        assert what_a_host_is(pretend) == expected
        assert_journal_closed(pretend)
        assert_free(pretend)
        again = apply_until_done(pretend, supplies)
        assert (again.outcome.ran, again.outcome.restarts, again.errors) == ([], 0, ())


def test_controllers_that_are_killed_are_followed_by_one_that_ends_their_work(
    tmp_path: Path, supplies: Supplies, expected: dict[str, Any]
) -> None:
    class Killed(BaseException):
        pass

    def dies_at(word: str) -> Callable[[str], None]:
        def report(line: str) -> None:
            # Of the two restarts the second: then the host is leased.
            if line.startswith(word) and "windows update" not in line:
                raise Killed

        return report

    with pretend_host(tmp_path / "host", change=updates_wait) as pretend:
        tokens = set()
        for word in ("winrm-quotas", "image/initrd.img", "restart"):
            with pretend.connect() as winrm, pytest.raises(Killed):
                Provisioner(
                    winrm, supplies.options(pretend), patience=FAST, report=dies_at(word)
                ).apply()
            lease = pretend.host.local_path(ROOT.inside("lease", "lease.json"))
            record = json.loads(lease.read_bytes())
            assert record["state"] == "busy"
            tokens.add(record["token"])
        assert len(tokens) == 1  # the lease of the first, until the last gives it back
        rest = apply_until_done(pretend, supplies)
        assert rest.errors == ()
        assert what_a_host_is(pretend) == expected
        assert_journal_closed(pretend)
        assert_free(pretend)
