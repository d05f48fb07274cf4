"""Budgets are read from what a person would type: what is understood, what is asked back, and what holds."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from secateur.core.budget import Budget, Tolerance
from secateur.core.costs import Costs
from secateur.core.errors import BudgetError

ORIGINAL = Costs(flops=1_000_000, params=2_000, peak_memory_bytes=8_192, size_bytes=4_096)


@pytest.mark.parametrize(
    ("text", "kind", "value", "relative"),
    [
        ("flops<=40%", "flops", 0.4, True),
        ("FLOPs <= 40 %", "flops", 0.4, True),
        ("flops<40%", "flops", 0.4, True),
        ("flops=80M", "flops", 80e6, False),
        ("macs<=40M", "flops", 80e6, False),  # 1 MAC = 2 FLOPs
        ("macs<=40%", "flops", 0.4, True),
        ("params<=2M", "params", 2e6, False),
        ("params<=1.5e1K", "params", 15e3, False),
        ("latency<=8ms", "latency", 8.0, False),
        ("latency<=800us", "latency", 0.8, False),
        ("latency<=0.5s", "latency", 500.0, False),
        ("memory<=4MiB", "memory", 4 * 2**20, False),
        ("memory<=4KiB", "memory", 4 * 2**10, False),
        ("size<=1MB", "size", 1e6, False),
        ("energy<=3mJ", "energy", 3.0, False),
        ("energy<=30%", "energy", 0.3, True),
    ],
)
def test_documented_spellings(text: str, kind: str, value: float, relative: bool) -> None:
    (limit,) = Budget.parse(text).limits
    assert (limit.kind, limit.relative) == (kind, relative)
    assert limit.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("flops<40", 'the budget "flops<40" has no unit', 'did you mean "flops<=40%"'),
        ("flops<=40parsecs", '"parsecs" is no unit of flops', "flops<=80M"),
        ("memory<=4M", '"M" is no unit of memory', "memory<=4MiB"),
        ("speed<=4ms", 'unknown kind of budget "speed"', "latency"),
        ("fast please", "cannot read", "flops<=40%"),
        ("flops>=40%", "cannot read", "flops<=40%"),
        ("flops<=-4%", "cannot read", "flops<=40%"),
        ("flops<=0%", "leaves nothing", "above zero"),
        ("flops<=140%", "above the original", "at most 100%"),
        ("params<=1e999M", "limits nothing", "smaller"),
        ("drop<=1%", "is a tolerance", "--drop 1%"),
        (["flops<=40%", "macs<=1G"], "two budgets for flops", "once"),
        (0.4, "a budget is text, not 0.4", "flops<=40%"),
        ([0.4], "a budget is text, not 0.4", "flops<=40%"),
    ],
)
def test_what_is_not_understood_is_asked_back(text: object, message: str, hint: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)  # type: ignore[arg-type]
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_several_budgets_in_one_text_or_in_many() -> None:
    assert Budget.parse("flops<=40%, params<=2M") == Budget.parse(["flops<=40%", "params<=2M"])
    assert not Budget.parse(None)
    assert not Budget.parse([" ", ","])
    assert str(Budget.parse([])) == "none"


UNITS = {
    "flops": "%KMGT",
    "macs": "%KMGT",
    "params": "%KMGT",
    "latency": ["%", "us", "ms", "s"],
    "memory": ["%", "KiB", "MiB"],
}


@st.composite
def budgets(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from(sorted(UNITS)))
    number = draw(st.floats(0.01, 100))
    return f"{kind}<={number!r}{draw(st.sampled_from(list(UNITS[kind])))}"


@given(budgets())
@example("macs<=1G")
def test_what_is_shown_reads_back_as_the_same_budget(text: str) -> None:
    budget = Budget.parse(text)
    (again,) = Budget.parse(str(budget)).limits
    assert again.kind == budget.limits[0].kind
    assert again.value == pytest.approx(budget.limits[0].value, rel=1e-9)


NEAR = st.text(alphabet="flopsmacdr<=:.,%0123456789eEKMGiBu -+\n" + "µK³ſ", max_size=20)


def refusal(parse: Callable[[Any], object], text: object) -> BudgetError | None:
    try:
        parse(text)
    except BudgetError as error:
        return error
    return None


@given(st.one_of(st.text(max_size=40), NEAR))
def test_any_text_is_a_budget_or_a_clear_error(text: str) -> None:
    for parse in (Budget.parse, Tolerance.parse):
        error = refusal(parse, text)
        assert error is None or (error.message and error.hint)


@given(st.dictionaries(st.text(max_size=8), st.text(alphabet=string.printable, max_size=8), max_size=3))
def test_any_mapping_is_a_tolerance_or_a_clear_error(drops: dict[str, str]) -> None:
    error = refusal(Tolerance.parse, drops)
    assert error is None or (error.message and error.hint)


def test_misses_say_what_was_reached_in_the_words_of_the_limit() -> None:
    reached = Costs(flops=431_000, params=1_500, peak_memory_bytes=6_144, size_bytes=1_024)
    budget = Budget.parse(["flops<=40%", "params<=1.5K", "memory<=4KiB", "size<=50%", "latency<=8ms"])
    assert budget.misses(reached, ORIGINAL, on_target={"latency": (9.5, 20.0)}) == [
        "flops<=40%: reached 43.1%",
        "memory<=4KiB: reached 6 KiB",
        "latency<=8ms: reached 9.5 ms",
    ]
    assert Budget.parse(["flops<=43.1%", "latency<=50%"]).misses(reached, ORIGINAL, {"latency": (9.5, 20.0)}) == []


@pytest.mark.parametrize("text", ["latency<=8ms", "energy<=3mJ"])
def test_a_limit_on_what_was_not_measured_asks_for_a_target(text: str) -> None:
    with pytest.raises(BudgetError, match="needs a target"):
        Budget.parse(text).misses(ORIGINAL, ORIGINAL)


@pytest.mark.parametrize(
    ("drops", "expected"),
    [
        (None, {"depth": 0.01, "edges": 0.01}),
        ("2%", {"depth": 0.02, "edges": 0.02}),
        (["1%", "depth=3%"], {"depth": 0.03, "edges": 0.01}),
        ("2%, depth=3%", {"depth": 0.03, "edges": 0.02}),
        (["drop<=1%", "drop.depth<=3%"], {"depth": 0.03, "edges": 0.01}),
        ({"*": "0.5%", "depth": "3 %"}, {"depth": 0.03, "edges": 0.005}),
        ({"depth": "0%"}, {"depth": 0.0, "edges": 0.01}),
        ({"left eye": "3%"}, {"left eye": 0.03, "edges": 0.01}),
        ("2%, drop.left eye<=3%", {"left eye": 0.03, "edges": 0.02}),
    ],
)
def test_tolerances(drops: object, expected: dict[str, float]) -> None:
    tolerance = Tolerance.parse(drops)  # type: ignore[arg-type]
    assert {task: tolerance.of(task) for task in expected} == pytest.approx(expected)
    again = Tolerance.parse(str(tolerance))
    assert {task: again.of(task) for task in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("drops", "message"),
    [
        ("1", 'the drop "1" has no unit'),
        ("depth=3", "has no unit"),
        ("depth", "cannot read"),
        ("-1%", "cannot read"),
        ("100%", "losing everything"),
        ({"depth": 0.03}, "cannot read|has no unit"),
        ({"*": 0.03}, "a drop is text, not 0.03"),
        (0.01, "a drop is text, not 0.01"),
    ],
)
def test_drops_that_are_not_understood(drops: object, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Tolerance.parse(drops)  # type: ignore[arg-type]


def test_a_drop_for_a_task_that_does_not_exist() -> None:
    with pytest.raises(BudgetError, match='no task "dpeth"') as caught:
        Tolerance.parse("dpeth=3%").check(["depth", "edges"])
    assert "depth, edges" in caught.value.hint
    Tolerance.parse("depth=3%").check(["depth", "edges"])
