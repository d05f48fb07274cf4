"""select: among the points that a run saved, the best one that meets a budget."""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur.compress.slimmable import Elastic
from secateur.core.budget import Budget, Tolerance
from secateur.core.bundle import Bundle, OnTarget, Point, check_output, new_bundle
from secateur.core.elastic.choose import Objective
from secateur.core.elastic.files import is_elastic
from secateur.core.errors import BudgetError, BudgetNotMetError, BundleError, DeviceError, WorkloadError
from secateur.export.formats import Options, Request
from secateur.verbs import benchmark, report
from secateur.verbs.complete import complete
from secateur.verbs.measure import Place, places
from secateur.verbs.points import Points, weights_of, widths
from secateur.verbs.prune import AnyBudget
from secateur.verbs.select_elastic import ElasticSelection, select_elastic, write_selection
from secateur.verbs.sources import AnyBundle, AnyWorkload, open_bundle, workload_of
from secateur.verbs.staging import check_state, finish, nothing_left, reserved, state_folder


@dataclass(frozen=True)
class Selection:
    """The point that was picked.

    Attributes:
        figures: what is known of the points on the target: "latency", medians in milliseconds, and "energy", in
            millijoules, by the point's number.
        measured: whether latencies were measured for this choice and not when the bundle was made.
        predicted: whether they were not measured at all.
        misses: what the point loses beyond what the run allowed, and what the written bundle was measured to miss.
    """

    bundle: Bundle
    point: int
    budget: Budget
    widths: dict[str, int]
    target: str
    figures: Mapping[str, Mapping[int, float]]
    measured: bool
    delta_mtl: float
    search_ms: float
    predicted: bool = False
    misses: tuple[str, ...] = ()

    @property
    def latency_ms(self) -> float | None:
        """The median on the target, None where it is not known."""
        return self.figures.get("latency", {}).get(self.point)

    @property
    def energy_mj(self) -> float | None:
        """On the target, always predicted; None where it is not known."""
        return self.figures.get("energy", {}).get(self.point)

    @property
    def error(self) -> BudgetNotMetError | None:
        """What its figures, and those of the written bundle, say against the choice."""
        if not self.misses:
            return None
        return BudgetNotMetError(
            f"not reached: {'; '.join(self.misses)}", f"it is kept in {self.bundle.path}; allow more, or compress less"
        )

    @property
    def entry(self) -> Point:
        return self.bundle.manifest.points[self.point]

    def as_json(self) -> dict[str, Any]:
        """The document of `select --json`."""
        expected = {
            "latency_ms": self.latency_ms,
            "energy_mj": self.energy_mj,
            "predicted": self.predicted,
            **self.entry.costs.model_dump(exclude_none=True),
            "metrics": self.entry.metrics,
        }
        return {
            "bundle": str(self.bundle.path),
            "point": self.point,
            "widths": self.widths,
            "budget": [str(limit) for limit in self.budget.limits],
            "budget_met": not self.misses,
            "misses": list(self.misses),
            "expected": {**expected, "delta_mtl": self.delta_mtl},
            "target": self.target,
            "search_ms": self.search_ms,
            "points": [
                {
                    **each.costs.model_dump(exclude_none=True), "metrics": each.metrics, "delta_mtl": each.delta_mtl,
                    "latency_ms": self.figures.get("latency", {}).get(number),
                    "energy_mj": self.figures.get("energy", {}).get(number),
                }
                for number, each in enumerate(self.bundle.manifest.points)
            ],
        }  # fmt: skip


def select(
    bundle: AnyBundle | Elastic,
    budget: AnyBudget,
    target: str = "cpu",
    prefer: Mapping[str, float] | None = None,
    *,
    tasks: Iterable[str] | None = None,
    floors: str | Mapping[str, str] | Tolerance | None = None,
    objective: Objective = "chebyshev",
    workload: AnyWorkload | None = None,
    output: str | os.PathLike[str] | None = None,
    epochs: int = 0,
    force: bool = False,
    command: str = "",
) -> Selection | ElasticSelection:
    """Pick the widths of an elastic model, or the saved point of a static bundle; see `select_elastic` and
    `select_point` for arguments and errors.

    Args:
        tasks, floors, objective: of elastic models only.
        epochs: of elastic bundles only, with an output: of fine-tuning the choice by itself.

    Raises:
        BudgetError: an elastic model that is not saved yet is to be written, or epochs are given without an output.
    """
    if isinstance(bundle, Elastic) and output is not None:
        raise BudgetError("an elastic model is written from its bundle", "save it, and select from what `save` returns")
    if epochs and output is None:
        raise BudgetError("a choice is fine-tuned as it is written", "name an output, or leave out epochs")
    if isinstance(bundle, Elastic):
        return select_elastic(
            bundle, budget, target, prefer, tasks=tasks, floors=Tolerance.parse(floors, math.inf), objective=objective
        )
    opened = open_bundle(bundle)
    if not is_elastic(opened) and tasks is None and floors is None and objective == "chebyshev" and not epochs:
        return select_point(
            opened, budget, target, prefer, workload=workload, output=output, force=force, command=command
        )
    chosen = select_elastic(
        opened, budget, target, prefer, tasks=tasks, floors=Tolerance.parse(floors, math.inf), objective=objective
    )
    if output is None:
        return chosen
    return write_selection(chosen, output, workload, epochs=epochs, force=force, command=command)


def select_point(
    bundle: AnyBundle,
    budget: AnyBudget,
    target: str = "cpu",
    prefer: Mapping[str, float] | None = None,
    *,
    workload: AnyWorkload | None = None,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    command: str = "",
) -> Selection:
    """Pick the saved point with the best Δ_MTL among those that meet every limit.

    Args:
        budget: flops, params, memory and size are known of every point; latency is taken from the bundle where it was
            measured on this machine and target, and measured now elsewhere.
        prefer: weights of the tasks in Δ_MTL; 1 for those that are not named.
        workload: of the bundle, instead of the one that it refers to.
        output: write a bundle whose chosen point is the pick, exported, measured and reported anew.

    Raises:
        BudgetNotMetError: no point meets the budget; the message says how near the nearest comes.
        TargetUnavailableError: a latency is limited on a target that cannot be had here.
    """
    started, opened, limits = time.perf_counter(), open_bundle(bundle), Budget.parse(budget)
    if not limits:
        raise BudgetError("no budget is given", 'for example: --budget "flops<=40%"')
    place, weights = _one_place(target), weights_of(opened.manifest, prefer or {})
    if output is not None:
        check_output(Path(output), force)
        check_state(Path(output), force=force)
    points = Points(opened, place, workload)
    number = points.best(limits, weights)
    selection = Selection(
        opened, number, limits, widths(opened, number), place.name, points.figures, points.measured,
        points.delta_mtl(number, weights), 1e3 * (time.perf_counter() - started),
        points.predicted, points.drops(number),
    )  # fmt: skip
    if output is None:
        return selection
    with reserved(Path(output), resume=False, force=force) as state, nothing_left(state):
        written = _write(selection, place, workload, Path(output), command)
    return replace(selection, bundle=written, misses=tuple(written.manifest.misses))


def _one_place(target: str) -> Place:
    found = places(target)
    if len(found) != 1:
        raise DeviceError(f'"{target}" names {len(found)} targets', "select for one, for example: --target cpu")
    return found[0]


def _write(selection: Selection, place: Place, workload: AnyWorkload | None, output: Path, command: str) -> Bundle:
    """A bundle of the same points whose chosen one is the pick. Without its workload it holds weights only."""
    bundle = selection.bundle
    again = [Request(each.format, Options.of(each.options)) for each in bundle.manifest.artefacts]
    staged = _copy(selection, state_folder(output) / "bundle", command)
    try:
        found = workload_of(bundle, workload)
    except WorkloadError as error:
        if workload is not None:
            raise
        warnings.warn(f"the new bundle holds weights only: {error.message}", stacklevel=3)
    else:
        staged = complete(staged, found, formats=list(dict.fromkeys(again)), where=[place])
    return finish(staged, output)


def _judge(selection: Selection) -> OnTarget | None:
    """What limits on a target were chosen by; the written bundle is judged by its own figures there."""
    if not selection.budget.on_target:
        return None
    return OnTarget(target=selection.target, basis="figures of the points of the bundle")


def _copy(selection: Selection, folder: Path, command: str) -> Bundle:
    source = selection.bundle
    if problems := source.verify():
        raise BundleError(problems[0], "copy the bundle again, or compress again")
    stale = {report.FILE, benchmark.FILE, *(name for each in source.manifest.artefacts for name in each.files)}
    points = [point.model_copy(update={"latency_ms": {}}) for point in source.manifest.points]  # of a stale benchmark
    manifest = source.manifest.model_copy(
        update={
            "points": points,
            "chosen": selection.point,
            "budget": [str(limit) for limit in selection.budget.limits],
            "budget_met": not selection.misses,
            "misses": list(selection.misses),
            "on_target": _judge(selection),
            "artefacts": [],
            "command": " && ".join(filter(None, (source.manifest.command, command))),
        }
    )
    with new_bundle(folder, force=True) as (staged, finish_manifest):
        for name in source.manifest.files:
            if name not in stale:
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source.file(name), staged / name)
        finish_manifest(manifest)
    return Bundle.open(folder)
