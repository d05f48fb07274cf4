"""Giving back: within the limits, what helps; nothing that fits and helps is left."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from published_loop import plain_losses

from secateur.compress.dataflow import ChannelGroups, trace
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.journal import Journal
from secateur.compress.pagcp import restore as restoring
from secateur.compress.pagcp.calibration import chunked
from secateur.compress.pagcp.oracle import Oracle
from secateur.compress.pagcp.restore import restore
from secateur.compress.pagcp.round import Record, Round
from secateur.compress.pagcp.saliency import find
from secateur.compress.pagcp.sampling import exactly, means, values
from secateur.compress.pagcp.sequence import Kept, Sequence
from secateur.compress.pagcp.target import Target
from secateur.core.budget import Budget
from secateur.core.task import Workload
from secateur.profiles.count import count

SETTINGS = replace(tiny.FAST, calibration_samples=None, confidence=None, round_to=1)
EQUAL = {"quadrant": 1.0, "brightness": 1.0}


@pytest.fixture(autouse=True)
def all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "CHUNKS", 10**6)


def sequence(squares: Workload, kept: Kept, budget: str, strictness: dict[str, float] = EQUAL) -> Sequence:
    """A sequence that stands at a choice of channels."""
    groups = trace(squares.model, squares.calibration[0][0], squares.task_names)
    oracle = Oracle(groups, chunked(squares.calibration, 8), squares.tasks, 2**30)
    before, costs = count(squares.model, squares.example_input, squares.task_names).costs, CostModel(groups)
    base = means(list(oracle.chunk_losses(kept)))
    units = means(list(oracle.chunk_losses(whole(groups))))
    return Sequence(
        oracle, costs, SETTINGS, find("l1"), strictness, kept, exactly(base), base,
        Target(Budget.parse(budget).limits, before, costs), units,
    )  # fmt: skip


def whole(groups: ChannelGroups) -> Kept:
    return {group.name: np.arange(group.channels) for group in groups.prunable}


def shrunk(squares: Workload, share: float) -> tuple[Kept, Kept]:
    """(all channels, the first ones of each group)."""
    full = whole(trace(squares.model, squares.example_input, squares.task_names))
    return full, {name: channels[: max(1, int(share * len(channels)))] for name, channels in full.items()}


def losses(squares: Workload, kept: Kept) -> dict[str, float]:
    cut = trace(squares.model, squares.example_input, squares.task_names).cut(kept)
    return plain_losses(cut, squares.calibration, squares.tasks)


def test_what_comes_back_was_there_fits_and_helps(squares: Workload) -> None:
    full, kept = shrunk(squares, 0.5)
    one = sequence(squares, kept, "flops<=50%")
    found = restore(one, full)
    assert any(len(found[name]) > len(kept[name]) for name in kept)
    for name in kept:
        assert set(kept[name]) <= set(found[name]) <= set(full[name])
    assert one.target.met(one.costs.widths({name: len(channels) for name, channels in found.items()}))
    before, after = losses(squares, kept), losses(squares, found)
    unit = one.unit(one.base)
    assert sum(after[task] / unit[task] for task in after) < sum(before[task] / unit[task] for task in before)


@pytest.mark.parametrize("name", ["deep.0", "block.0.0"])
def test_channels_that_come_back_count_as_in_the_model_that_has_them(squares: Workload, name: str) -> None:
    full, kept = shrunk(squares, 0.5)
    one = sequence(squares, kept, "flops<=100%")
    found = values(one.oracle.at(kept, name, one.standing).peek(full[name].tolist(), 10**6))
    assert found == pytest.approx(losses(squares, {**kept, name: full[name]}), rel=1e-4)
    assert found != pytest.approx(one.base, rel=1e-2)


def test_no_step_that_fits_is_left(squares: Workload) -> None:
    full, kept = shrunk(squares, 0.5)
    one = sequence(squares, kept, "flops<=40%")
    widths = {name: len(channels) for name, channels in restore(one, full).items()}
    assert one.target.met(one.costs.widths(widths))
    for name, kept_count in widths.items():
        assert kept_count == len(full[name]) or not one.target.met(one.costs.widths({**widths, name: kept_count + 1}))


def test_without_room_nothing_comes_back(squares: Workload) -> None:
    full, kept = shrunk(squares, 0.5)
    one = sequence(squares, kept, "flops<=90%,params<=1%")
    assert restore(one, full) == kept


def test_with_room_for_all_everything_comes_back(squares: Workload) -> None:
    full, kept = shrunk(squares, 0.5)
    found = restore(sequence(squares, kept, "flops<=100%"), full)
    assert {name: list(channels) for name, channels in found.items()} == {
        name: list(channels) for name, channels in full.items()
    }


def test_a_round_ends_within_its_limit_and_says_what_came_back(squares: Workload, tmp_path: Path) -> None:
    before = count(squares.model, squares.example_input, squares.task_names).costs
    record, settings = Record(), replace(SETTINGS, max_passes=20, local_tolerance=0.5)
    one = Round(squares.model, squares, settings, EQUAL, Journal(tmp_path, {}, resume=False), record, 0)
    channels = one.prune(list(Budget.parse("flops<=45%").limits), before)
    cut = copy.deepcopy(squares.model)
    channels.apply(cut)
    assert count(cut, squares.example_input, squares.task_names).costs.flops <= 0.45 * before.flops
    assert any(line["kept"] > line["kept_before"] for line in record.decisions)
    last = {line["group"]: line["kept"] for line in record.decisions}
    for group in trace(cut, squares.example_input, squares.task_names).prunable:
        assert last.get(group.name, group.channels) == group.channels
