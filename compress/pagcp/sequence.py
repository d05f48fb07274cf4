"""One sequence of PAGCP: greedy over the groups, each pruned as far as every task's loss allows.

Ye et al., "Performance-aware Approximation of Global Channel Pruning for Multitask CNNs", T-PAMI 2023, algorithm 1:
the groups are pruned one after another on the model as pruned so far; the criterion is max_t L_t / B_t ≤ 1 + τ; B
follows the losses, so that the allowed drop compounds; a filter then drops the groups that cost most per saving.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from secateur.compress.dataflow import ChannelGroup
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.dataflow.groups import Index
from secateur.compress.pagcp.oracle import Oracle
from secateur.compress.pagcp.saliency import Criterion, lowest, score
from secateur.compress.pagcp.sampling import Estimate, Losses, Standing, read, values, written
from secateur.compress.pagcp.schedule import PROBE_RATIO, order, solve_lambda, tolerances
from secateur.compress.pagcp.search import Search, rise
from secateur.compress.pagcp.settings import Settings
from secateur.compress.pagcp.target import Target

Kept = dict[str, Index]
Counts = list[int] | range
PROBE_CHUNKS = 6
"""Chunks of calibration data that a trial cut is looked at on."""


@dataclass(frozen=True)
class Trial:
    """One candidate that the oracle judged, on so many of the calibration chunks."""

    ratio: float
    kept: int
    losses: Losses
    accepted: bool
    chunks: int


@dataclass(frozen=True)
class Decision:
    """What was decided for one group, and on what ground: each task's loss before, and its limit; `standing` is what is
    known of the losses afterwards."""

    group: str
    channels: int
    kept_before: int
    kept: list[int]
    tau: float
    base: Losses
    limits: Losses
    standing: Standing
    trials: list[Trial]
    flops_after: float
    params_after: float

    @property
    def accepted(self) -> Losses | None:
        """The losses after this decision; None when nothing was pruned."""
        return next((trial.losses for trial in self.trials if trial.accepted and trial.kept == len(self.kept)), None)

    @property
    def refused_rise(self) -> Losses:
        """L_t - B_t of the smallest step, where even that was refused; else empty."""
        if not self.trials or self.trials[0].accepted:
            return {}
        return {task: self.trials[0].losses[task] - base for task, base in self.base.items()}

    def as_json(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "channels": self.channels,
            "kept_before": self.kept_before,
            "kept": self.kept,
            "tau": self.tau,
            "base": self.base,
            "limits": self.limits,
            "standing": self.standing,
            "trials": [{**vars(trial), "losses": written(trial.losses)} for trial in self.trials],
            "flops_after": self.flops_after,
            "params_after": self.params_after,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Decision:
        standing = {task: Estimate(*known) for task, known in document["standing"].items()}
        trials = [Trial(**{**trial, "losses": read(trial["losses"])}) for trial in document["trials"]]
        return cls(**{**document, "standing": standing, "trials": trials})


@dataclass
class Sequence:
    """The state of one sequence: what is kept, what is known of its losses, the base losses and the tolerance.

    Attributes:
        units: each task's loss that τ is a share of; None for that of the model as pruned so far.
        counts: channel counts to stop at of the groups that are named; multiples of a power of two of the others.
        floors: channels that stay in a group.
    """

    oracle: Oracle
    costs: CostModel
    settings: Settings
    criterion: Criterion
    strictness: Mapping[str, float]
    kept: Kept
    standing: Standing
    ceiling: Losses
    target: Target
    units: Losses | None
    evidence: Mapping[str, Any] | None = None
    counts: Mapping[str, list[int]] = field(default_factory=dict)
    floors: Mapping[str, int] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = values(self.standing)

    def unit(self, base: Losses) -> Losses:
        """The loss that τ is a share of: what goes with losing all of a task's metric, or the base as it is now, so
        that the allowed drop compounds."""
        return {task: max(loss, 1e-12) for task, loss in (self.units or base).items()}

    def plan(self, rises: Mapping[str, float] | None = None) -> tuple[dict[str, float], float | None]:
        """(groups in order → share of τ, λ). Counts the pass for the base losses that the published loop makes too.

        Args:
            rises: what `probe` found, to order by the saving per that.
        """
        self.oracle.spent.published_loop_forward_flops += self.costs.flops(self._widths({})) * self.oracle.samples
        savings = {group.name: self._trial_saving(group) for group in self._open()}
        if self.settings.global_tolerance is None:
            shares = tolerances(savings, self.settings.price)
            return {name: shares[name] for name in order(savings, 1.0, rises)}, None
        scale = solve_lambda(self.settings.local_tolerance, self.settings.global_tolerance, len(savings))
        return {name: scale**step for step, name in enumerate(order(savings, scale, rises))}, scale

    def probe(self) -> dict[str, float]:
        """How far a trial cut of each group raises a task's loss at worst, in units of its strictness and of what τ is
        a share of, as a few chunks tell it."""
        rises = {}
        for group in self._open():
            keep = self._keep_without(group)(len(self.kept[group.name]) - self._trial_count(group.name))
            session = self.oracle.at(self.kept, group.name, self.standing)
            rises[group.name] = self._excess(values(session.peek(keep.tolist(), PROBE_CHUNKS)), self.base)
            session.close(None)
        return rises

    def _open(self) -> list[ChannelGroup]:
        """Groups that can lose channels."""
        return [group for group in self.oracle.groups.prunable if len(self.kept[group.name]) > self._floor(group.name)]

    def _trial_saving(self, group: ChannelGroup) -> float:
        return self.target.saving(self._widths({}), self._widths({group.name: self._trial_count(group.name)}))

    def _trial_count(self, name: str) -> int:
        """Channels that a trial cut leaves."""
        count = len(self.kept[name])
        trial = math.ceil(count * (1 - PROBE_RATIO))
        return _largest(self._allowed(name, count), trial) if name in self.counts else trial

    def _widths(self, change: Mapping[str, int]) -> np.ndarray:
        return self.costs.widths({name: len(kept) for name, kept in self.kept.items()} | dict(change))

    @property
    def done(self) -> bool:
        """Whether the budget is met by what is kept now."""
        return self.settings.stop_at_budget and self.target.met(self._widths({}))

    def decide(self, name: str, tau: float) -> Decision:
        """Judge one group by the oracle; does not change the state."""
        group = self.oracle.groups[name]
        kept = self.kept[name]
        session = self.oracle.at(self.kept, name, self.standing)
        search = Search(
            session, self._keep_without(group), lambda current: self._limits(tau, self._based(current)), self.base,
            self._candidates(name, len(kept)), self.settings.check_monotone,
        )  # fmt: skip
        best = search.bisect() if self.settings.bisect else search.sweep()
        self._count_published(name, search.counts, best)
        self.oracle.spent.not_monotone += search.not_monotone
        chosen = kept if best is None else search.keep(best)
        base = self._based(values(session.standing()))
        standing = session.standing(None if best is None else chosen.tolist())
        session.close(None if best is None else chosen.tolist())
        widths = self._widths({name: len(chosen)})
        return Decision(
            name, group.channels, len(kept), chosen.tolist(), tau, base, self._limits(tau, base), standing,
            trials(search), self.costs.flops(widths), self.costs.params(widths),
        )  # fmt: skip

    def _keep_without(self, group: ChannelGroup) -> Callable[[int], Index]:
        """Channels to remove → those that stay, the least salient ones gone."""
        kept = self.kept[group.name]
        scores = self.scores(group.name, self.kept)[kept]
        return lambda gone: kept[np.setdiff1d(np.arange(len(kept)), lowest(scores, gone))]

    def scores(self, name: str, kept: Kept) -> Tensor:
        """Saliency of a group's channels [channels] where these are kept."""
        return score(self.oracle.groups[name], self.oracle.state(kept), self.criterion, self.evidence)

    def weight(self, task: str) -> float:
        """What a rise of a task's loss is counted in: a share of its unit, the smaller the stricter the task."""
        return self.unit(self.base)[task] * max(self.strictness[task], 1e-3)

    def _limits(self, tau: float, base: Losses) -> Losses:
        unit = self.unit(base)
        return {
            task: min(value + tau * self.strictness[task] * unit[task], max(value, self.ceiling[task]))
            for task, value in base.items()
        }

    def _based(self, current: Losses) -> Losses:
        """B_t, where the losses of the model as pruned so far are known better by now: a base that is such a loss
        follows it."""
        follows = {task: base <= self.standing[task].value for task, base in self.base.items()}
        return {task: current[task] if follows[task] else max(base, current[task]) for task, base in self.base.items()}

    def hopeless(self, tau: float, refused: Losses) -> bool:
        """Whether a group need not be tried: its smallest step was refused by an earlier sequence of this round, when
        less was pruned, and raised a task's loss more than twice as far as it may rise now."""
        if not self.settings.skip_refused or not refused:
            return False
        limits = self._limits(tau, self.base)
        return any(limits[task] < base + 0.5 * refused[task] for task, base in self.base.items())

    def pass_over(self, name: str) -> None:
        """Leave a hopeless group as it is; the published loop would have tried its smallest step."""
        self._count_published(name, self._candidates(name, len(self.kept[name])), None)

    def apply(self, decision: Decision) -> None:
        """Take a decision over: what is kept, and B_t ← max(B_t, L_t)."""
        self.standing, self.base = decision.standing, dict(decision.base)
        if decision.accepted is not None:
            self.kept = {**self.kept, decision.group: np.array(decision.kept, dtype=np.int64)}
            self.base = {task: max(loss, self.standing[task].value) for task, loss in self.base.items()}
        self.decisions.append(decision)

    def filtered(self, before: Kept) -> set[str]:
        """The filter: names of the best share of the pruned groups by loss increase per cost saved."""
        whole = self.costs.widths({name: len(kept) for name, kept in before.items()})
        scored = []
        for decision in self.decisions:
            accepted = decision.accepted
            if accepted is not None:
                less = {name: len(kept) for name, kept in before.items()} | {decision.group: len(decision.kept)}
                saving = self.target.saving(whole, self.costs.widths(less))
                scored.append((rise(accepted, decision.base) / max(saving, 1e-12), decision.group))
        scored.sort()
        return {name for _, name in scored[: math.ceil(self.settings.keep_share * len(scored))]}

    def next_tolerance(self, tau: float, kept: Kept) -> float:
        """τ0 of the next sequence: the same while sequences close a good part of the gap to the target; else twice
        that, or what the cheapest refused step would have needed."""
        if not self.settings.stop_at_budget:
            return tau
        start = self.costs.widths({decision.group: decision.kept_before for decision in self.decisions} | {
            name: len(count) for name, count in kept.items() if name not in {d.group for d in self.decisions}
        })  # fmt: skip
        gap = self.target.gap(start)
        closed = gap - self.target.gap(self.costs.widths({name: len(count) for name, count in kept.items()}))
        if closed > 0.3 * gap:
            return tau
        nothing = all(len(decision.kept) == decision.kept_before for decision in self.decisions)
        needed = [
            tau / max(decision.tau, 1e-12) * self._excess(decision.trials[0].losses, decision.base)
            for decision in self._refused()
        ]
        return max(2 * tau, 1.05 * _least_finite(needed) if nothing else 0.0)

    def needed_rise(self, original: Losses) -> float:
        """How far above the original's losses the cheapest refused step would have taken a task."""
        return _least_finite([self._excess(decision.trials[0].losses, original) for decision in self._refused()])

    def _excess(self, losses: Losses, base: Losses) -> float:
        """max_t (L_t - B_t), in units of each task's strictness and of what τ is counted in."""
        return max((losses[task] - base[task]) / self.weight(task) for task in base)

    def _refused(self) -> list[Decision]:
        """Decisions whose smallest step was refused."""
        return [decision for decision in self.decisions if decision.trials and not decision.trials[0].accepted]

    def _candidates(self, name: str, count: int) -> list[tuple[float, int]]:
        """(ratio, channels removed) ascending and distinct; none beyond what the budget still asks for."""
        candidates: dict[int, float] = {}
        allowed = self._allowed(name, count)
        for ratio in self.settings.ratios:
            keep = count - max(1, int(count * ratio + 1e-9))
            gone = count - max(_largest(allowed, keep), self._floor(name))
            if gone > 0:
                candidates.setdefault(gone, ratio)
        listed = [(ratio, gone) for gone, ratio in candidates.items()]
        if self.settings.stop_at_budget:
            self.target.learn([self._widths({name: count - gone}) for _, gone in listed])
            enough = next(
                (i for i, (_, gone) in enumerate(listed) if self.target.met(self._widths({name: count - gone}))), None
            )
            listed = listed if enough is None else listed[: enough + 1]
        return listed

    def _allowed(self, name: str, count: int) -> Counts:
        """Channel counts that a group may keep, ascending: those that the device is fast at, where it has any within
        reach of the ratios, else multiples."""
        least = count - int(count * max(self.settings.ratios) + 1e-9)
        if fast := [each for each in self.counts.get(name, ()) if least <= each < count]:
            return fast
        step = self._step(name)
        return range(min(step, count), count + 1, step)

    def next_count(self, name: str, count: int) -> int:
        """The next larger channel count that a group may have."""
        step = self._step(name)
        return min((each for each in self.counts.get(name, ()) if each > count), default=(count // step + 1) * step)

    def _floor(self, name: str) -> int:
        """Channels that stay in a group."""
        return max(self.floors.get(name, 1), self.settings.min_channels)

    def _step(self, name: str) -> int:
        return channel_step(self.oracle.groups[name].channels, self.settings.round_to)

    def _count_published(self, name: str, counts: list[tuple[float, int]], best: int | None) -> None:
        """What the published loop would have spent on this group: a pass of the pruned copy for every ratio up to and
        including the first refused one."""
        kept = len(self.kept[name])
        tried = counts[: (-1 if best is None else best) + 2]
        flops = sum(self.costs.flops(self._widths({name: kept - gone})) for _, gone in tried)
        self.oracle.spent.published_loop_forward_flops += flops * self.oracle.samples


def _least_finite(values: list[float]) -> float:
    """The smallest of what is finite: no tolerance allows a loss that is not. 0 where there is none."""
    return min(filter(math.isfinite, values), default=0.0)


def trials(search: Search) -> list[Trial]:
    """What the oracle was asked about one group, from few channels removed to many."""
    return [
        Trial(search.counts[index][0], len(search.keep(index)), verdict.losses, verdict.accepted, verdict.chunks)
        for index, verdict in sorted(search.verdicts.items())
    ]


def channel_step(channels: int, largest: int) -> int:
    """Kept channel counts are multiples of this: the largest power of two up to `largest` that leaves a group at
    least four sizes to choose from. Unaligned counts cost CPUs more time than the channels they save."""
    return int(2 ** int(math.log2(max(1, min(largest, channels // 4)))))


def _largest(allowed: Counts, count: int) -> int:
    """The largest allowed count up to a number, or the smallest one."""
    return allowed[max(bisect.bisect_right(allowed, count) - 1, 0)]
