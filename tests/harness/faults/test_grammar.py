"""The grammar of fault specifications, and plans made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    SystemExitedError,
    SystemNotFoundError,
    UsageError,
)
from harness.faults import BOUNDARIES, Action, Fault, FaultPlan, FaultSyntaxError, parse_spec
from harness.faults.service import service_error


def test_the_example_of_the_manual_means_what_it_says() -> None:
    assert parse_spec("2*ok->1*error(0xC037010E)->hang(200ms)->off") == (
        Fault(Action.OK, 2),
        Fault(Action.ERROR, 1, hresult=0xC037010E),
        Fault(Action.HANG, 1, delay_s=0.2),
        Fault(Action.OFF),
    )


@pytest.mark.parametrize(
    ("spec", "position", "problem"),
    [
        ("", 0, "expected one of"),
        ("okay", 0, "expected one of"),
        ("ok->", 4, "expected one of"),
        ("ok,off", 2, "expected -> or the end"),
        ("2ok", 1, r"expected \* after a count"),
        ("0*ok", 0, "a count is 1 at least"),
        ("error", 5, "needs an argument"),
        ("error(12", 8, "not closed"),
        ("error(0)", 6, "expected an HRESULT"),
        ("error(0x100000000)", 6, "expected an HRESULT"),
        ("ok->hang(200)", 9, "expected a time"),
        ("ok(1)", 2, "takes no argument"),
        ("off->ok", 3, "nothing follows off"),
        ("2*off", 2, "takes no count"),
    ],
)
def test_what_is_no_specification_is_refused_with_its_position(
    spec: str, position: int, problem: str
) -> None:
    with pytest.raises(FaultSyntaxError, match=problem) as refused:
        parse_spec(spec)
    assert refused.value.position == position


@given(
    st.lists(
        st.builds(
            lambda action, count, hresult, ms: Fault(
                action,
                count,
                hresult=hresult if action is Action.ERROR else 0,
                delay_s=ms / 1000 if action is Action.HANG else 0.0,
            ),
            st.sampled_from([each for each in Action if each is not Action.OFF]),
            st.integers(1, 99),
            st.integers(1, 0xFFFFFFFF),
            st.integers(1, 10_000),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_specification_is_read_back_from_its_own_words(faults: list[Fault]) -> None:
    assert parse_spec("->".join(map(str, faults))) == tuple(faults)


def test_calls_take_the_terms_in_order_and_go_through_afterwards() -> None:
    plan = FaultPlan.parse({"service.attach": "2*ok->error(0x80070020)"})
    met = [plan.next("service.attach").action for _ in range(5)]
    assert met == [Action.OK, Action.OK, Action.ERROR, Action.OK, Action.OK]
    assert [(boundary, fault.hresult) for boundary, fault in plan.met] == [
        ("service.attach", 0x80070020)
    ]


def test_off_lasts() -> None:
    plan = FaultPlan.parse({"service.attach": "off"})
    plan.add("service.attach", "die")
    assert [plan.next("service.attach").action for _ in range(3)] == [Action.OK] * 3


def test_an_unknown_boundary_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"did you mean service\.attach"):
        FaultPlan.parse({"service.atach": "die"})


def test_every_boundary_has_a_name_of_its_own() -> None:
    assert len(set(BOUNDARIES)) == len(BOUNDARIES)
    assert "guest.remove-scsi-device" in BOUNDARIES
    assert "guest.delete-container-state" in BOUNDARIES


@pytest.mark.parametrize(
    ("hresult", "kind"),
    [
        (0xC037010E, SystemNotFoundError),
        (0x8037010E, SystemNotFoundError),
        (0x80370110, SystemExitedError),
        (0xC0370109, ComputeTimeoutError),
        (0x80070020, ComputeServiceError),
        (0x8007010E, ComputeServiceError),
    ],
)
def test_an_hresult_becomes_the_error_that_a_service_raises_for_it(
    hresult: int, kind: type[ComputeServiceError]
) -> None:
    error = service_error("service.attach", hresult)
    assert type(error) is kind
    assert error.hresult == hresult
