"""slim: from a trained model to one that runs at many widths, and a table of what each of them costs and yields.

trace → stages → sort channels → train all widths together → evaluate widths into a table
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch

from secateur.compress import ranks
from secateur.compress.channel_map import ChannelMap
from secateur.compress.compressed import CompressedPoint, Start
from secateur.compress.dataflow import trace
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.journal import Journal
from secateur.compress.pagcp.calibration import calibration_batches
from secateur.compress.pagcp.round import describe_groups
from secateur.compress.pagcp.sensitivity import gradients
from secateur.compress.runs import fingerprint
from secateur.compress.slimmable.elastic import ElasticModel
from secateur.compress.slimmable.features import find_features
from secateur.compress.slimmable.result import Elastic, collect_statistics, judged_point, traced_inputs
from secateur.compress.slimmable.settings import Settings
from secateur.compress.slimmable.sort import sort_channels
from secateur.compress.slimmable.space import Space
from secateur.compress.slimmable.tabulate import Judge, tabulate
from secateur.compress.slimmable.train import train
from secateur.core.budget import Budget, Tolerance
from secateur.core.costs import Costs
from secateur.core.predict import check, evaluate
from secateur.core.seeds import seed_everything
from secateur.core.task import Workload
from secateur.profiles.count import count


def slim(
    workload: Workload,
    settings: Settings | None = None,
    *,
    seed: int = 0,
    state: Path | None = None,
    resume: bool = False,
    start: Start | None = None,
) -> Elastic:
    """Make a workload's model elastic. The workload's own model is not changed.

    Args:
        start: the model that is made elastic, where it is the workload's own one compressed; figures still refer to
            that.
        state: folder in which finished epochs and evaluations are kept; a killed run resumes from it and ends in the
            same result.

    Raises:
        BudgetError, ModelError, DataError: wrong input, found before any long work.
        WorkerDone: this is not the first of several processes, and its part, the training, is done.
    """
    started, settings = time.monotonic(), settings or Settings()
    check(workload)
    seed_everything(seed)
    start = start or Start(workload.model, ChannelMap())
    elastic, stayed = _elastic(workload, settings, start)
    features = find_features(elastic.space, traced_inputs(workload))
    journal = Journal(state, _identity(workload, start, settings, seed), resume=resume)
    curves = train(elastic, workload, settings, features=features, seed=seed, journal=journal)
    if not ranks.leads():
        raise ranks.WorkerDone
    if settings.half:
        _round_to_half(elastic)
    judge = Judge(elastic, workload, settings, seed, journal)
    table = tabulate(judge, settings, seed)
    point, before, metrics_before = _full_width(judge)
    groups = elastic.space.groups
    history: dict[str, Any] = {
        "groups": describe_groups(groups, CostModel(groups)), "sequences": [], "decisions": [],
        "fine_tuning": [{"round": 0, **entry} for entry in curves], "unsorted": stayed,
        "features": [feature.path for feature in features],
    }  # fmt: skip
    return Elastic(
        workload, "slimmable", Budget(), Tolerance(1.0), [point], 0, before, metrics_before, [], history, {},
        settings.as_json(), seed, time.monotonic() - started, elastic, table, collect_statistics(judge, table),
    )  # fmt: skip


def _elastic(workload: Workload, settings: Settings, start: Start) -> tuple[ElasticModel, list[str]]:
    """The model with sorted channels, elastic but not trained yet; and the groups whose order had to stay."""
    model, inputs = copy.deepcopy(start.model).eval(), traced_inputs(workload)
    groups = trace(model, inputs, workload.task_names)
    space = Space.of(groups, workload.task_names, settings.rule)
    slopes = None
    if settings.order == "taylor":
        batches = calibration_batches(workload.calibration, settings.calibration_samples)
        slopes = gradients(model, batches, workload.tasks)
    names = list(space.channels(space.largest))
    stayed = sort_channels(model, groups, names, inputs, workload.task_names, settings.order, slopes)
    return ElasticModel(model, space, private=settings.private_norms, base=start.channels), stayed


def _full_width(judge: Judge) -> tuple[CompressedPoint, Costs, dict[str, float]]:
    """The largest configuration as a point, with recalibrated statistics; the original's costs and test metrics."""
    elastic, workload = judge.elastic, judge.workload
    with torch.no_grad():
        for name, tensor in judge.statistics(elastic.space.largest).items():
            elastic.model.get_buffer(name).copy_(tensor)
    costs = count(workload.model, workload.example_input, workload.task_names).costs
    before = evaluate(workload.model, workload.test, workload.tasks, "evaluating")
    return judged_point(elastic.static(elastic.space.largest), elastic.base, workload, before), costs, before


@torch.no_grad()
def _round_to_half(elastic: ElasticModel) -> None:
    for tensor in elastic.parameters():
        tensor.copy_(tensor.half())


def _identity(workload: Workload, start: Start, settings: Settings, seed: int) -> dict[str, Any]:
    """What makes this run another run: everything that its result depends on."""
    return {
        "method": "slimmable", "seed": seed, "settings": settings.as_json(), "model": fingerprint(start.model),
        "original": fingerprint(workload.model),
    }  # fmt: skip
