"""The grammar of troubles says which request meets what."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.winrmd.knobs import ANY, Knobs, Trouble
from harness.winrmd.troubles import parse_troubles


def test_terms_count_requests_of_one_action_or_of_all() -> None:
    strikes = parse_troubles("Command: 2*ok -> drop-after -> 3*ok -> 2*reboot")
    assert [(each.trouble, each.name, each.nth, each.times) for each in strikes] == [
        (Trouble.DROP_AFTER, "Command", 3, 1),
        (Trouble.REBOOT, "Command", 7, 2),
    ]
    (any_request,) = parse_troubles("503")
    assert (any_request.trouble, any_request.name, any_request.nth) == (
        Trouble.UNAVAILABLE,
        ANY,
        1,
    )


def test_a_used_up_quota_is_a_fault_of_its_own() -> None:
    (strike,) = parse_troubles("4*ok->quota")
    knobs = Knobs()
    knobs.plan(strike)
    taken = [knobs.take("Create") for _ in range(6)]
    assert [each is not None for each in taken] == [False] * 4 + [True, False]
    assert taken[4] is not None
    assert taken[4].make_fault is not None
    assert taken[4].make_fault().code == 2150859173
    knobs.plan(strike)
    knobs.forget()
    assert all(knobs.take("Create") is None for _ in range(6))


@pytest.mark.parametrize("spec", ["", "ok->", "0*ok", "burn", "fault", "Command:", "2*", "ok ok"])
def test_what_is_no_trouble_is_refused_with_the_words_there_are(spec: str) -> None:
    with pytest.raises(UsageError, match=r"is no trouble: write .* drop-after"):
        parse_troubles(spec)
