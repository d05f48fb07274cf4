"""Sequences under the oracle, judged by the plainest thing there is: cut the model, call it, compute the losses."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from published_loop import plain_losses, published_procedure

from secateur.compress.dataflow import trace
from secateur.compress.journal import Journal
from secateur.compress.pagcp.round import Record, Round
from secateur.compress.pagcp.sampling import means
from secateur.compress.pagcp.sequence import channel_step
from secateur.compress.pagcp.settings import Settings
from secateur.core.budget import Budget
from secateur.core.task import Workload
from secateur.profiles.count import count

FREE = replace(
    tiny.FAST, stop_at_budget=False, max_passes=1, local_tolerance=0.1, calibration_samples=None, price=0.0,
    compound=True, growth=None, round_to=1, confidence=None,
)  # fmt: skip
"""One sequence over all groups, not stopped by a budget, judged on all samples; equal tolerances, no ceiling, any
channel count."""
EQUAL = {"quadrant": 1.0, "brightness": 1.0}


@dataclass
class Ran:
    record: Record
    decisions: list[dict[str, Any]]
    base: dict[str, float]
    units: dict[str, float]
    kept: dict[str, list[int]]


def ran(
    squares: Workload, folder: Path, settings: Settings, strictness: dict[str, float] = EQUAL, budget: str = ""
) -> Ran:
    """One round, with its decisions as the journal holds them."""
    record = Record()
    one = Round(squares.model, squares, settings, strictness, Journal(folder, {}, resume=False), record, 0)
    before = count(squares.model, squares.example_input, squares.task_names).costs
    channels = one.prune(list(Budget.parse(budget or None).limits), before)
    steps = json.loads((folder / "journal.json").read_text())["steps"]
    decisions = [steps[f"round0/pass0/{name}"]["result"] for name in record.sequences[0]["order"]]
    kept = {name: dims[0].tolist() for name, dims in channels.kept.items() if 0 in dims}
    units = steps["round0/units"]["result"] if "round0/units" in steps else {}
    return Ran(record, decisions, means(steps["round0/reference"]["result"]), units, kept)


@pytest.mark.parametrize("strictness", [EQUAL, {"quadrant": 0.5, "brightness": 1.5}])
def test_every_decision_keeps_its_promise_on_the_really_cut_model(
    squares: Workload, tmp_path: Path, strictness: dict[str, float]
) -> None:
    found = ran(squares, tmp_path / "state", FREE, strictness)
    groups = trace(squares.model, squares.calibration[0][0])
    base, kept = plain_losses(squares.model, squares.calibration, squares.tasks), {}
    assert found.base == pytest.approx(base, rel=1e-4)
    pruned = 0
    for decision in found.decisions:
        assert decision["base"] == pytest.approx(base, rel=1e-3)
        for trial in decision["trials"]:
            limits = {task: decision["base"][task] * (1 + decision["tau"] * strictness[task]) for task in base}
            if trial["chunks"] == 16:  # of two samples each
                assert trial["accepted"] == all(trial["losses"][task] <= limits[task] for task in base)
            else:
                assert not trial["accepted"]
        if len(decision["kept"]) == decision["kept_before"]:
            continue
        kept[decision["group"]] = decision["kept"]
        losses = plain_losses(groups.cut(kept), squares.calibration, squares.tasks)
        (promised,) = [t["losses"] for t in decision["trials"] if t["accepted"] and t["kept"] == len(decision["kept"])]
        assert promised == pytest.approx(losses, rel=1e-3)
        for task, loss in losses.items():
            assert loss <= base[task] * (1 + decision["tau"] * strictness[task]) * (1 + 1e-3)
        base = {task: max(base[task], loss) for task, loss in losses.items()}
        pruned += 1
    assert pruned >= 3


def test_no_task_passes_its_ceiling(squares: Workload, tmp_path: Path) -> None:
    """Lenient tolerances, but a sequence may not take a task's loss beyond 1.2 times the original's."""
    found = ran(squares, tmp_path / "state", replace(FREE, local_tolerance=5.0, growth=1.2))
    pruned = [decision for decision in found.decisions if len(decision["kept"]) < decision["kept_before"]]
    kept = {decision["group"]: decision["kept"] for decision in pruned}
    losses = plain_losses(trace(squares.model, squares.calibration[0][0]).cut(kept), squares.calibration, squares.tasks)
    assert pruned
    assert all(losses[task] <= 1.2 * loss * (1 + 1e-3) for task, loss in found.base.items())


def test_the_dear_groups_may_cost_more(squares: Workload, tmp_path: Path) -> None:
    found = ran(squares, tmp_path / "state", replace(FREE, price=1.0))
    taus = [decision["tau"] for decision in found.decisions]
    assert taus == sorted(taus, reverse=True)
    assert taus[0] == FREE.local_tolerance
    assert taus[-1] < 0.5 * taus[0]


def test_tolerances_are_shares_of_the_metrics_and_not_of_what_is_left_of_the_model(
    squares: Workload, tmp_path: Path
) -> None:
    """Where the allowed drop compounds, a task that is nearly lost becomes free to cut."""
    found = ran(squares, tmp_path / "state", replace(FREE, compound=False))
    assert any(decision["base"][task] > 1.5 * found.base[task] for decision in found.decisions for task in found.base)
    for decision in found.decisions:
        limits = {task: decision["base"][task] + decision["tau"] * loss for task, loss in found.units.items()}
        assert decision["limits"] == pytest.approx(limits)


def test_channel_counts_are_aligned(squares: Workload, tmp_path: Path) -> None:
    found = ran(squares, tmp_path / "state", replace(FREE, local_tolerance=5.0, round_to=4))
    assert any(len(decision["kept"]) < decision["kept_before"] for decision in found.decisions)
    for decision in found.decisions:
        if len(decision["kept"]) < decision["kept_before"]:
            assert len(decision["kept"]) % channel_step(decision["channels"], 4) == 0


def test_a_stricter_task_ends_with_a_lower_loss(squares: Workload, tmp_path: Path) -> None:
    def rises(strictness: dict[str, float]) -> dict[str, float]:
        found = ran(squares, tmp_path / "state", FREE, strictness)
        groups = trace(squares.model, squares.calibration[0][0])
        small = groups.cut({decision["group"]: decision["kept"] for decision in found.decisions})
        return {
            task: loss / found.base[task]
            for task, loss in plain_losses(small, squares.calibration, squares.tasks).items()
        }

    strict, lenient = rises({"quadrant": 0.1, "brightness": 1.9}), rises({"quadrant": 1.9, "brightness": 0.1})
    assert strict["quadrant"] < lenient["quadrant"]
    assert lenient["brightness"] < strict["brightness"]


def test_the_filter_keeps_the_best_share(squares: Workload, tmp_path: Path) -> None:
    for share in (0.3, 0.8, 1.0):
        found = ran(squares, tmp_path / "state", replace(FREE, keep_share=share))
        candidates = sum(len(decision["kept"]) < decision["kept_before"] for decision in found.decisions)
        assert candidates >= 3
        assert sum(line["pruned"] for line in found.record.decisions) == math.ceil(share * candidates)


def test_no_prefix_cache_gives_the_same_decisions_for_more_flops(squares: Workload, tmp_path: Path) -> None:
    cached, bare = (ran(squares, tmp_path / "state", replace(FREE, cache_limit=limit)) for limit in (2**30, 0))
    assert [d["kept"] for d in cached.decisions] == [d["kept"] for d in bare.decisions]
    assert cached.record.spent.forward_flops < bare.record.spent.forward_flops


def test_bisection_decides_as_the_sweep_for_fewer_flops(squares: Workload, tmp_path: Path) -> None:
    """With tolerances that let many ratios pass, which is where a sweep is long."""
    lenient = replace(FREE, local_tolerance=5.0)
    bisected = ran(squares, tmp_path / "one", replace(lenient, check_monotone=True))
    swept = ran(squares, tmp_path / "other", replace(lenient, bisect=False))
    for one, other in zip(bisected.decisions, swept.decisions, strict=True):
        assert one["group"] == other["group"]
        assert one["kept"] == other["kept"]
    spent = bisected.record.spent
    assert spent.forward_flops < swept.record.spent.forward_flops
    assert spent.forward_flops < spent.published_loop_forward_flops
    assert swept.record.spent.evaluations > spent.evaluations > 0


@pytest.mark.parametrize("bound", [1.2, 2.0])
def test_the_published_settings_decide_as_the_published_procedure(
    squares: Workload, tmp_path: Path, bound: float
) -> None:
    """Order, λ, τ, channels kept and the filter; λ is below 1 for the small bound and above for the large one."""
    settings = replace(tiny.FAST.published(), local_tolerance=0.05, global_tolerance=bound, bisect=False)
    found = ran(squares, tmp_path / "state", settings)
    published = published_procedure(squares, squares.calibration, 0.05, bound)
    assert [decision["group"] for decision in found.decisions] == published.plan
    assert [decision["tau"] for decision in found.decisions] == pytest.approx(published.taus, rel=1e-3)
    by_name = {decision["group"]: decision["kept"] for decision in found.decisions}
    pruned = {line["group"] for line in found.record.decisions if line["pruned"]}
    assert {name: by_name[name] for name in pruned} == published.kept


@pytest.mark.parametrize("floor", [0.5, 0.9])
def test_no_group_goes_far_below_what_it_would_keep_if_all_kept_alike(
    squares: Workload, tmp_path: Path, floor: float
) -> None:
    settings = replace(FREE, stop_at_budget=True, max_passes=20, local_tolerance=1.0, floor=floor)
    found = ran(squares, tmp_path / "state", settings, budget="flops<=30%")
    groups = trace(squares.model, squares.calibration[0][0])

    def alike(share: float) -> float:
        keep = {group.name: range(max(1, int(share * group.channels))) for group in groups.prunable}
        return count(groups.cut(keep), squares.example_input, squares.task_names).costs.flops

    whole = count(squares.model, squares.example_input, squares.task_names).costs.flops
    share = max(step / 64 for step in range(1, 65) if alike(step / 64) <= 0.3 * whole)
    last = {line["group"]: line["kept"] for line in found.record.decisions}
    for group in groups.prunable:
        assert last.get(group.name, group.channels) >= math.floor(floor * share * group.channels)
    assert any(last[group.name] < share * group.channels for group in groups.prunable if group.name in last)
