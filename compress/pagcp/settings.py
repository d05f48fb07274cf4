"""Settings of a PAGCP run: the published schedule, and ours."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from secateur.compress.training.recipe import Recipe
from secateur.core.errors import BudgetError

RATIOS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Candidate pruning ratios of a group: 0.05, 0.10 … 0.95."""


@dataclass(frozen=True)
class Settings:
    """How to prune.

    Args:
        local_tolerance: τ0, what the first group of a sequence may cost each task: a share of its metric, or of its
            loss where `compound`.
        global_tolerance: T, the product bound over all groups, from which λ follows.
        price: without T, a group's tolerance is τ times (its saving / the largest)^price: at 1 every group may cost as
            much per saving, at 0 every group as much.
        compound: τ is a share of the losses as they are by then, so that the allowed drop compounds (published); else
            of the tasks' metrics, at the exchange rate that trial cuts show, and a task that is nearly lost does not
            become free to cut.
        growth: a sequence may cost each task at most this factor less 1, in what τ is a share of, counted from the
            original model's losses and compounding over the sequences of a round; None for no such ceiling.
        keep_share: P, share of the groups that the filter keeps, best loss increase per cost removed first.
        ratios: candidate pruning ratios of a group in one sequence, ascending; half of its channels at most by
            default, so that one group does not pay for all before the others were asked.
        rounds: prune - fine-tune rounds; each ends in one point of the Pareto front.
        front: points that the rounds prune to, as shares of the original, largest first: of whatever the budget limits,
            which is then the last point, or of FLOPs; in place of geometric steps and of `rounds`.
        max_passes: sequences over all groups within one round before the round gives up on its budget.
        stop_at_budget: end a sequence as soon as the round's budget is met.
        bisect: find the largest accepted ratio by bisection, as the loss grows with the ratio; else try them in order.
        check_monotone: where the loss was seen to fall while more channels went, try the ratios in order after all,
            which gives the published decision there too.
        skip_refused: do not try a group again whose smallest step was refused before by far.
        saliency: which channels of a group go first: "l1" (published), "l2", "taylor", "fisher", "bn",
            "reconstruction", "random", or one that was registered.
        compensate: after a cut, solve the layers that read fewer channels and estimate batch norms anew, before
            fine-tuning.
        floor: no group goes below this share of what would stay in it if every group kept the same share: what a group
            is worth now says little of how it would be missed after fine-tuning.
        fixed: patterns of group names that keep all their channels ("encoder.stem.*"); `secateur inspect` lists them.
        min_channels: channels that always stay in a group.
        round_to: kept channel counts are multiples of up to this power of two, as devices like them; 1 for any count.
        epochs: of fine-tuning, over all rounds.
        lr, weight_decay, distillation, clip, feature_distillation, weighting, accumulate, patience, precision: of
            fine-tuning; see `secateur.compress.training.recipe.Recipe`.
        oracle_precision: of convolutions and matrix products in the oracle: "float32", or "auto" for bfloat16 where the
            device computes it and the model loses the same in it.
        cache_limit: bytes of activations that prefix caching may hold.
        remove_dead: take out the modules that no output in evaluation mode depends on.
        calibration_samples: samples of the calibration loader that the oracle uses; None for all.
        chunks: parts of the calibration samples that the oracle runs one by one; the more, the sooner it can stop.
        confidence: standard errors that a loss must be away from its limit for the oracle to decide on a part of the
            samples (as of a normal distribution; Student's t is used); None to look at all of them.
    """

    local_tolerance: float = 0.1
    global_tolerance: float | None = None
    price: float = 1.0
    compound: bool = False
    growth: float | None = 1.5
    keep_share: float = 0.8
    ratios: tuple[float, ...] = RATIOS[:10]
    rounds: int = 1
    front: tuple[float, ...] = ()
    max_passes: int = 24
    stop_at_budget: bool = True
    bisect: bool = True
    check_monotone: bool = False
    skip_refused: bool = True
    saliency: str = "l1"
    compensate: bool = False
    floor: float = 0.5
    fixed: tuple[str, ...] = ()
    min_channels: int = 1
    round_to: int = 8
    epochs: int = 12
    lr: float = 2e-3
    weight_decay: float = 1e-4
    distillation: float = 1.0
    clip: float = 1.0
    cache_limit: int = 2 * 2**30
    remove_dead: bool = False
    calibration_samples: int | None = 256
    chunks: int = 128
    confidence: float | None = 2.5
    feature_distillation: float = 0.0
    weighting: str = "fixed"
    accumulate: int = 1
    patience: int = 0
    precision: str = "auto"
    oracle_precision: str = "auto"

    def __post_init__(self) -> None:
        self.recipe(self.epochs)
        if self.oracle_precision not in ("auto", "float32"):
            raise BudgetError(f'unknown oracle_precision "{self.oracle_precision}"', "choose one of: auto, float32")
        for name in ("rounds", "max_passes", "min_channels", "round_to", "chunks"):
            if getattr(self, name) < 1:
                raise BudgetError(f"{name} is {getattr(self, name)}", "give at least 1")
        if list(self.front) != sorted(set(self.front), reverse=True) or not all(0 < share < 1 for share in self.front):
            shown = ",".join(f"{100 * share:g}%" for share in self.front)
            raise BudgetError(f"the front is {shown}", "give shares that fall, between 0% and 100%: 80%,60%,40%")
        if not self.ratios or not all(0 < ratio < 1 for ratio in self.ratios):
            raise BudgetError(f"ratios are {list(self.ratios)}", "give at least one, between 0 and 1")

    def recipe(self, epochs: int) -> Recipe:
        """How to fine-tune for so many epochs."""
        return Recipe(
            epochs, self.lr, self.weight_decay, self.distillation, self.clip,
            feature_distillation=self.feature_distillation, weighting=self.weighting, accumulate=self.accumulate,
            patience=self.patience, precision=self.precision,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        listed = {"ratios": list(self.ratios), "front": list(self.front), "fixed": list(self.fixed)}
        return asdict(self) | listed

    def published(self) -> Settings:
        """The published schedule (Ye et al., T-PAMI 2023): τ0 = 0.05, T = 5, P = 0.8, one round, no budget, L1."""
        return replace(
            self, local_tolerance=0.05, global_tolerance=5.0, compound=True, growth=None, keep_share=0.8,
            ratios=RATIOS, rounds=1, front=(), max_passes=1, stop_at_budget=False, check_monotone=True, saliency="l1",
            compensate=False, floor=0.0, round_to=1, calibration_samples=None, confidence=None,
            oracle_precision="float32",
        )  # fmt: skip
