"""One round of PAGCP: sequences over the groups of one model until the round's target is met; the answer is a cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from secateur.compress.channel_map import ChannelMap
from secateur.compress.dataflow import trace
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.dataflow.groups import Keep
from secateur.compress.journal import Journal
from secateur.compress.pagcp import saliency
from secateur.compress.pagcp.calibration import calibration_batches, chunked
from secateur.compress.pagcp.exchange import loss_per_drop
from secateur.compress.pagcp.hardware import device_counts
from secateur.compress.pagcp.oracle import Oracle, Spent
from secateur.compress.pagcp.prefix import differences
from secateur.compress.pagcp.restore import restore
from secateur.compress.pagcp.sampling import Estimate, Losses, Standing, exactly, means, written
from secateur.compress.pagcp.sensitivity import evidence
from secateur.compress.pagcp.sequence import Decision, Kept, Sequence, channel_step
from secateur.compress.pagcp.settings import Settings
from secateur.compress.pagcp.target import Target
from secateur.compress.speed import fast_bfloat16
from secateur.core.budget import Limit
from secateur.core.costs import Costs
from secateur.core.errors import DataError, ModelError
from secateur.core.inputs import batch_size
from secateur.core.progress import bar
from secateur.core.task import Workload
from secateur.targets.hardware import Hardware

T = TypeVar("T")


@dataclass
class Record:
    """What a run leaves for the report: groups, decisions in order, what the oracle spent, the original's losses."""

    spent: Spent = field(default_factory=Spent)
    original: dict[str, float] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    sequences: list[dict[str, Any]] = field(default_factory=list)


class Round:
    """Prunes one model; finished decisions are kept in the journal under `round<number><label>/`."""

    def __init__(
        self,
        model: nn.Module,
        workload: Workload,
        settings: Settings,
        strictness: Mapping[str, float],
        journal: Journal,
        record: Record,
        number: int,
        hardware: Hardware | None = None,
        label: str = "",
    ) -> None:
        """`label`: of a second run within the same round."""
        self._settings, self._strictness, self._journal, self._record = settings, strictness, journal, record
        self._number, self._label, self._hardware = number, f"round{number}{label}", hardware
        self._passes = sum(each["round"] == number for each in record.sequences)
        self._tasks = workload.tasks
        self._batches = calibration_batches(workload.calibration, settings.calibration_samples)
        chunks = chunked(self._batches, settings.chunks)
        self._groups = trace(model, chunks[0][0], workload.task_names)
        if not self._groups.prunable:
            raise ModelError("no channel of the model can be removed", "secateur inspect shows why, group by group")
        self._fixed = self._groups.matching(settings.fixed)
        self._oracle = Oracle(
            self._groups, chunks, workload.tasks, settings.cache_limit, record.spent, settings.confidence,
            oracle_precision(settings, model),
        )  # fmt: skip
        self._refused: dict[str, Losses] = {}
        self._choices: list[Kept] = []
        self._cached: dict[int, dict[str, int]] | None = None
        self._costs = CostModel(self._groups)
        self._criterion = saliency.find(settings.saliency)
        self._evidence = evidence(self._criterion, self._groups, self._batches, workload.tasks)
        if not record.groups:
            record.groups = describe_groups(self._groups, self._costs)

    def prune(self, limits: list[Limit], before: Costs) -> ChannelMap:
        """Sequences until the limits are met, or the passes are used up."""
        target = Target(limits, before, self._costs, self._hardware)
        counts = device_counts(self._costs, self._hardware) if self._hardware and target.limits_latency else {}
        floors = self._floors(target)
        kept: Kept = {group.name: np.arange(group.channels) for group in self._groups.prunable}
        tau, rise = self._settings.local_tolerance, (self._settings.growth or math.inf) - 1
        self._oracle.reference = self._reference(kept)
        whole = means(self._oracle.reference)
        self._record.original = self._record.original or whole
        units = None if self._settings.compound else self._units(kept)
        for attempt in range(self._settings.max_passes + 1):
            label = f"{self._label}/pass{attempt}"
            if attempt == self._settings.max_passes and not self._met(target, kept):
                return self._groups.channel_map(kept)
            standing = self._standing(f"{label}/base", kept) if attempt else exactly(whole)
            sequence = Sequence(
                self._oracle, self._costs, self._settings, self._criterion, self._strictness, kept, standing,
                self._ceiling(rise, units), target, units, self._evidence, counts, floors,
            )  # fmt: skip
            if sequence.done:
                break
            fresh = self._sequence(sequence, tau, attempt)
            tau, rise = sequence.next_tolerance(tau, fresh), (1 + rise) * (self._settings.growth or 1) - 1
            if all(len(fresh[name]) == len(kept[name]) for name in kept):
                rise = max(rise, 1.05 * sequence.needed_rise(self._record.original))
            kept = fresh
        return self._groups.channel_map(self._restored(sequence, attempt - 1) if attempt else kept)

    def _met(self, target: Target, kept: Kept) -> bool:
        widths = self._costs.widths({name: len(channels) for name, channels in kept.items()})
        return self._settings.stop_at_budget and target.met(widths)

    def _restored(self, sequence: Sequence, attempt: int) -> Kept:
        """What is kept after giving back what was taken beyond the limits."""
        whole: Kept = {group.name: np.arange(group.channels) for group in self._groups.prunable}

        def encode(kept: Kept) -> dict[str, list[int]]:
            return {name: channels.tolist() for name, channels in kept.items()}

        def decode(document: dict[str, list[int]]) -> Kept:
            return {name: np.array(channels, dtype=np.int64) for name, channels in document.items()}

        found = self._step(f"{self._label}/restored", sequence.kept, lambda: restore(sequence, whole), encode, decode)
        for name, there in sequence.kept.items():
            if len(found[name]) > len(there):
                self._record.decisions.append(
                    {
                        "round": self._number, "pass": self._passes + attempt, "group": name,
                        "channels": len(whole[name]), "kept_before": len(there), "kept": len(found[name]),
                        "pruned": False, "curve": [],
                    }
                )  # fmt: skip
        return found

    def _reference(self, kept: Kept) -> list[Losses]:
        """The losses on each chunk of the model as the round finds it."""

        def losses() -> list[Losses]:
            found = list(self._oracle.chunk_losses(kept))
            for task, loss in means(found).items():
                if not math.isfinite(loss):
                    raise DataError(
                        f'the loss of "{task}" is {loss} on some of the calibration data',
                        "leave such samples out, or let the loss of one with nothing to learn from be 0",
                    )
            return found

        return self._step(f"{self._label}/reference", kept, losses, list, list)

    def _floors(self, target: Target) -> dict[str, int]:
        """Channels that stay in each group: `floor` of what would stay if all groups kept the same share, in steps, of
        which there is one at least; all of those that are fixed."""
        floor = self._settings.floor
        share = floor * target.alike() if floor else 0.0
        steps = {each: channel_step(each.channels, self._settings.round_to) for each in self._groups.prunable}
        floors = {
            each.name: max(1, math.ceil(share * each.channels / step)) * step if floor else 1
            for each, step in steps.items()
        }
        return floors | {each.name: each.channels for each in steps if each.name in self._fixed}

    def _units(self, kept: Kept) -> Losses:
        """Each task's rise of loss that goes with losing all of its metric."""

        samples = sum(batch_size(inputs) for inputs, _ in self._batches)

        def count(channels: Mapping[str, int]) -> None:
            self._record.spent.forward_flops += self._costs.flops(self._costs.widths(channels)) * samples

        def units() -> Losses:
            return loss_per_drop(self._groups, self._batches, self._tasks, self._criterion, self._evidence, count)

        return self._step(f"{self._label}/units", kept, units, dict, dict)

    def _standing(self, key: str, kept: Kept) -> Standing:
        def decode(document: dict[str, Any]) -> Standing:
            return {task: Estimate(*known) for task, known in document.items()}

        return self._step(key, kept, lambda: self._oracle.standing(kept), dict, decode)

    def _decide(self, key: str, sequence: Sequence, name: str, tau: float) -> Decision:
        def decide() -> Decision:
            return sequence.decide(name, tau)

        return self._step(key, sequence.kept, decide, Decision.as_json, Decision.from_json)

    def _probe(self, key: str, sequence: Sequence) -> dict[str, float]:
        """What trial cuts cost, where the order is to be by what they save on hardware per that."""
        if not sequence.target.on_hardware:
            return {}
        return self._step(key, sequence.kept, sequence.probe, dict, dict)

    def _ceiling(self, rise: float, units: Losses | None) -> dict[str, float]:
        """The largest loss that a sequence may leave each task with: so far above the original's."""
        original, strictness = self._record.original, self._strictness
        units = units or original
        return {
            task: loss + rise * strictness[task] * units[task] if strictness[task] else loss
            for task, loss in original.items()
        }

    def _sequence(self, sequence: Sequence, tau: float, attempt: int) -> Kept:
        """One sequence and its filter. When the budget was met on the way, everything up to there is kept."""
        before = dict(sequence.kept)
        label = f"{self._label}/pass{attempt}"
        plan, scale = sequence.plan(self._probe(f"{label}/probe", sequence))
        number = self._passes + attempt
        self._record.sequences.append(
            {"round": self._number, "pass": number, "lambda": scale, "tau": tau, "order": list(plan)}
        )
        with bar(f"round {self._number + 1}, pass {attempt + 1}:", len(plan)) as progress:
            for name, share in plan.items():
                if sequence.done:
                    break
                progress.note(name)
                if sequence.hopeless(tau * share, self._refused.get(name, {})):
                    sequence.pass_over(name)
                else:
                    decision = self._decide(f"{label}/{name}", sequence, name, tau * share)
                    self._refused[name] = decision.refused_rise
                    sequence.apply(decision)
                    self._note(sequence.kept)
                progress.advance()
        best = sequence.filtered(before)
        passed = {decision.group for decision in sequence.decisions if sequence.done or decision.group in best}
        for decision in sequence.decisions:
            self._record.decisions.append(_line(decision, self._number, number, decision.group in passed))
        return before | {name: sequence.kept[name] for name in passed}

    def _step(
        self, key: str, kept: Kept, compute: Callable[[], T], encode: Callable[[T], Any], decode: Callable[[Any], T]
    ) -> T:
        """A journalled step, taken while `kept` is kept, that also remembers what the oracle had spent and cached."""
        spent = self._record.spent

        def restore(document: Any) -> T:
            vars(spent).update(document["spent"])
            self._cached = {int(chunk): dict(numbers) for chunk, numbers in document["cached"].items()}
            return decode(document["result"])

        def resumed() -> T:
            if self._cached is not None:
                choices = {
                    chunk: {task: self._choices[number] for task, number in numbers.items()}
                    for chunk, numbers in self._cached.items()
                }
                self._oracle.prefix.refill(choices)
                self._cached = None
            return compute()

        def finished(result: T) -> dict[str, Any]:
            return {"result": encode(result), "spent": dict(vars(spent)), "cached": self._cache_state()}

        self._note(kept)
        return self._journal.step(key, resumed, finished, restore)

    def _note(self, kept: Kept) -> None:
        """Number the choices of channels as they come."""
        if not self._choices or self._choices[-1] is not kept:
            self._choices.append(kept)

    def _cache_state(self) -> dict[str, list[tuple[str, int]]]:
        """For each chunk whose activations are cached, to which choice those of each task belong, in order: one of the
        choices so far, or the next, which a decision has just made."""
        filled = self._oracle.prefix.filled
        distinct = {id(keep): keep for keeps in filled.values() for keep in keeps.values()}
        numbers = {key: self._number_of(keep) for key, keep in distinct.items()}
        return {
            str(chunk): [(task, numbers[id(keep)]) for task, keep in keeps.items()] for chunk, keeps in filled.items()
        }

    def _number_of(self, keep: Keep) -> int:
        for number in reversed(range(len(self._choices))):
            if not differences(keep, self._choices[number]):
                return number
        return len(self._choices)


def oracle_precision(settings: Settings, model: nn.Module) -> torch.dtype:
    """What the oracle is to compute in, where it can."""
    device = next(model.parameters()).device.type
    return torch.bfloat16 if settings.oracle_precision == "auto" and fast_bfloat16(device) else torch.float32


def describe_groups(groups: Any, costs: CostModel) -> list[dict[str, Any]]:
    """The groups as the report and `inspect` list them; `flops_share` is the share of the model's FLOPs that would
    go with the whole group (all but one channel)."""
    whole = costs.widths({})
    total = max(costs.flops(whole), 1e-12)
    return [
        {
            "name": group.name,
            "channels": group.channels,
            "prunable": group.prunable,
            "why_not": group.why_not,
            "members": [{"parameter": member.parameter, "dim": member.dim} for member in group.members],
            "flops_share": 1 - costs.flops(costs.widths({group.name: 1})) / total if group.prunable else None,
        }
        for group in groups.values()
    ]


def _line(decision: Decision, number: int, attempt: int, passed: bool) -> dict[str, Any]:
    """A decision as the report shows it."""
    return {
        "round": number,
        "pass": attempt,
        "group": decision.group,
        "channels": decision.channels,
        "kept_before": decision.kept_before,
        "kept": len(decision.kept) if passed else decision.kept_before,
        "tau": decision.tau,
        "limit": max(limit / max(decision.base[task], 1e-12) for task, limit in decision.limits.items()),
        "pruned": passed and len(decision.kept) < decision.kept_before,
        "curve": [
            {
                "ratio": trial.ratio,
                "kept": trial.kept,
                "loss_ratio": written(
                    {task: trial.losses[task] / max(base, 1e-12) for task, base in decision.base.items()}
                ),
                "accepted": trial.accepted,
            }
            for trial in decision.trials
        ],
        "flops_after": round(decision.flops_after),
        "params_after": round(decision.params_after),
    }
