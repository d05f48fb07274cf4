"""The schedule of a sequence: λ solves the product equation; the order follows λ."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.compress.pagcp.schedule import order, solve_lambda


@given(tau=st.floats(0.005, 0.2), bound=st.floats(1.3, 8.0), groups=st.integers(3, 120))
def test_lambda_solves_the_product_equation(tau: float, bound: float, groups: int) -> None:
    scale = solve_lambda(tau, bound, groups)
    assert math.prod(1 + tau * scale**i for i in range(groups)) == pytest.approx(bound, rel=1e-6)


def test_a_bound_that_the_first_group_alone_exceeds_shrinks_tolerances_at_once() -> None:
    assert solve_lambda(0.5, 1.2, 5) < 1e-3


def test_tolerances_shrink_where_equal_ones_would_exceed_the_bound_and_grow_elsewhere() -> None:
    assert solve_lambda(0.05, 5.0, 60) < 1 < solve_lambda(0.05, 5.0, 20)
    assert solve_lambda(0.1, 1.1**7, 7) == pytest.approx(1.0)


@given(savings=st.dictionaries(st.text(min_size=1), st.floats(0, 1e9), min_size=1), scale=st.floats(0.1, 3))
def test_costly_groups_come_first_while_tolerances_shrink_and_last_while_they_grow(
    savings: dict[str, float], scale: float
) -> None:
    found = [savings[name] for name in order(savings, scale)]
    assert found == sorted(savings.values(), reverse=scale <= 1)
