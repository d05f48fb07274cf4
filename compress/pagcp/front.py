"""The front: which limits each round prunes to, so that one run leaves a point for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from secateur.compress.pagcp.settings import Settings
from secateur.core.budget import Budget, Limit, figure
from secateur.core.costs import Costs
from secateur.core.errors import BudgetError


def with_front(budget: Budget, settings: Settings) -> tuple[Budget, Settings]:
    """Budget and settings of a run whose rounds are the points of `settings.front`: its shares are of whatever the
    budget limits, and the budget itself is the last point; without a budget they are of FLOPs, and the smallest one is
    the budget."""
    shares = settings.front
    if not shares:
        return budget, settings
    if not budget:
        budget, shares = Budget.parse(f"flops<={100 * shares[-1]:g}%"), shares[:-1]
    return budget, replace(settings, front=shares, rounds=len(shares) + 1)


def check_front(budget: Budget, shares: Sequence[float], before: Costs) -> None:
    """Raises:
    BudgetError: a point that the budget does not leave room for.
    """
    fractions = [_fraction(limit, before) for limit in budget.limits]
    if shares and fractions and shares[-1] <= min(fractions):
        raise BudgetError(
            f"the front asks for {100 * shares[-1]:g}%, which is not above the budget {budget}",
            "the budget is the last point: name larger ones, or leave it out",
        )


def round_limits(
    budget: Budget, settings: Settings, number: int, before: Costs, start: Costs | None = None
) -> list[Limit]:
    """What a round prunes to: the point of the front, else a geometric step to the budget from where the run starts,
    which is the original unless `start` tells."""
    front = settings.front
    if not front:
        return step_limits(budget, (number + 1) / settings.rounds, start or before, before)
    fractions = {limit.kind: _fraction(limit, before) for limit in budget.limits}
    return [
        _limit(kind, max(front[number], fraction) if number < len(front) else fraction)
        for kind, fraction in fractions.items()
    ]


def step_limits(budget: Budget, share: float, start: Costs, before: Costs) -> list[Limit]:
    """Limits at a share of the way from costs to the budget, in geometric steps, relative to `before`; what is met
    already is limited by the budget itself."""
    found = []
    for limit in budget.limits:
        reached, original = figure(limit.kind, start, before)
        step = max(limit.absolute(original), reached * min(limit.absolute(original) / reached, 1.0) ** share)
        found.append(_limit(limit.kind, step / original))
    return found


def _limit(kind: str, share: float) -> Limit:
    return Limit(kind, share, True, f"{kind}<={100 * share:g}%")


def front_misses(budget: Budget, settings: Settings, reached: Sequence[Costs], before: Costs) -> list[str]:
    """Points of the front, but for the last one, that were not reached."""
    return [
        f"point {number}: {miss}"
        for number, costs in enumerate(reached[: len(settings.front)])
        for miss in Budget(tuple(round_limits(budget, settings, number, before))).misses(costs, before)
    ]


def epochs(settings: Settings) -> list[int]:
    """Of each round: on a front all alike; else the last one, which is what most people take, gets twice the share of
    the others."""
    total, rounds = settings.epochs, settings.rounds
    share = total // rounds if settings.front else total // (rounds + 1)
    return [share] * (rounds - 1) + [total - share * (rounds - 1)]


def _fraction(limit: Limit, before: Costs) -> float:
    """A limit as a share of the original, at most 1."""
    original = figure(limit.kind, before, before)[1]
    return min(limit.absolute(original) / original, 1.0)
