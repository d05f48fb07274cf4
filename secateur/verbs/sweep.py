"""sweep: many runs of pruning, over seeds, tolerances and criteria, by any number of workers.

Every combination is one cell of a study. Its bundle stands in `<output>/<cell>`; a run that was stopped on this machine
continues where it was, whoever takes it up.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur.compress import pagcp
from secateur.compress.pagcp.front import with_front
from secateur.compress.pagcp.hardware import Loop
from secateur.compress.pagcp.saliency import find
from secateur.compress.pagcp.settings import Settings
from secateur.core.budget import Budget, Tolerance
from secateur.core.bundle import Bundle, is_bundle
from secateur.core.errors import BudgetError, OutputError, SecateurError
from secateur.core.files import clear_errors
from secateur.core.progress import say
from secateur.core.task import Workload
from secateur.verbs.hardware import hardware_for
from secateur.verbs.prune import AnyBudget
from secateur.verbs.sources import AnyWorkload, find_workload
from secateur.verbs.staging import state_folder
from secateur.verbs.study import Result, Study


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. `drop` as a user types it: "1%" or "1%,depth=3%"."""

    seed: int
    drop: str
    saliency: str

    @property
    def name(self) -> str:
        return f"{self.saliency}-drop{self.drop}-seed{self.seed}".replace("%", "").replace(",", "-")


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, finished ones only, and the cells that failed with the reason."""

    study: str
    cells: Sequence[Cell]
    runs: dict[Cell, Result]
    failed: dict[Cell, str]

    @property
    def error(self) -> SecateurError | None:
        """What the first of the runs failed for, where every one did."""
        if self.runs or not self.failed:
            return None
        return SecateurError(
            f"every run failed: {next(iter(self.failed.values()))}",
            "what failed is kept in the study: repeat it under another one",
        )

    def summary(self) -> list[dict[str, Any]]:
        """One row per criterion and tolerance: means over seeds, and the standard deviation of Δ_MTL; best first."""
        rows = []
        for drop, name in dict.fromkeys((cell.drop, cell.saliency) for cell in self.cells):
            runs = [run for cell, run in self.runs.items() if (cell.drop, cell.saliency) == (drop, name)]
            if not runs:
                continue
            deltas = [run["delta_mtl"] for run in runs]
            rows.append(
                {
                    "saliency": name,
                    "drop": drop,
                    "runs": len(runs),
                    "delta_mtl": statistics.fmean(deltas),
                    "delta_mtl_sd": statistics.stdev(deltas) if len(deltas) > 1 else None,
                    "flops_left": statistics.fmean(run["flops_left"] for run in runs),
                    "params_left": statistics.fmean(run["params_left"] for run in runs),
                    "budget_met": sum(run["budget_met"] for run in runs),
                }
            )
        return sorted(rows, key=lambda row: -row["delta_mtl"])

    def as_json(self) -> dict[str, Any]:
        """The document of `sweep --json`."""
        return {
            "study": self.study,
            "runs": [{**vars(cell), **run} for cell, run in self.runs.items()],
            "failed": [{**vars(cell), "error": error} for cell, error in self.failed.items()],
            "summary": self.summary(),
        }


def sweep(
    workload: AnyWorkload,
    study: str,
    budget: AnyBudget = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    drops: Sequence[str] = ("1%",),
    saliencies: Sequence[str] = ("l1",),
    settings: Settings | None = None,
    output: str | os.PathLike[str] = "runs/sweep",
    heartbeat: int = 30,
) -> Sweep:
    """Prune a workload once for every combination of seed, tolerance and criterion. Limits on latency are those that
    this machine's calibration predicts: nothing is measured while workers share a machine.

    Any number of processes may call this with the same study at the same time, here or on other machines; each returns
    when all runs are done. A worker that dies loses nothing: its run is taken up by another one.

    Args:
        study: URL of an Optuna storage: `sqlite:///sweep.db`, `postgresql://host/sweeps`.
        drops: tolerances, each as `"1%"` or `"1%,depth=3%"`.
        settings: of every run; their own criterion is not used.
        output: folder for the bundles, one for each run; of this machine.
        heartbeat: seconds between signs of life; a worker that misses four of them is taken for dead.

    Raises:
        MissingExtraError: Optuna is not installed.
        BudgetError, WorkloadError, OutputError: wrong input, found before any long work.
    """
    workload, limits, settings = find_workload(workload), Budget.parse(budget), settings or Settings()
    cells = {
        cell.name: cell
        for seed, drop, name in itertools.product(seeds, drops, saliencies)
        for cell in [Cell(seed, drop, name)]
    }
    if not limits:
        raise BudgetError("no budget is given", 'for example: --budget "flops<=40%"')
    _check(cells.values(), workload)
    definition = {
        "workload": workload.reference or workload.name,
        "budget": str(limits),
        "settings": {key: value for key, value in settings.as_json().items() if key != "saliency"},
    }
    shared = Study(study, f"secateur sweep of {workload.name}", definition, heartbeat)
    loop = Loop(hardware) if (hardware := hardware_for(limits, "cpu")) else None
    shared.work(list(cells), lambda name: _run(workload, limits, cells[name], settings, Path(output) / name, loop))
    found = shared.results(list(cells))
    runs = {cells[name]: result for name, result in found.items() if "error" not in result}
    failed = {cells[name]: str(result["error"]) for name, result in found.items() if "error" in result}
    return Sweep(study, list(cells.values()), runs, failed)


def _check(cells: Any, workload: Workload) -> None:
    if not cells:
        raise BudgetError("the sweep has no runs", "give at least one seed, one tolerance and one criterion")
    for cell in cells:
        find(cell.saliency)
        Tolerance.parse(cell.drop).check(workload.task_names)


def _run(
    workload: Workload, budget: Budget, cell: Cell, settings: Settings, path: Path, loop: Loop | None = None
) -> Result:
    """One run into its bundle; one that is there already is taken as it is."""
    say(f"sweep: {cell.name}")
    chosen, tolerance = replace(settings, saliency=cell.saliency), Tolerance.parse(cell.drop)
    with _only_one(path.with_name(f".{path.name}.lock")):
        state = state_folder(path)
        if is_bundle(path):
            _check_same(Bundle.open(path), cell, tolerance, *with_front(budget, chosen))
        else:
            found = pagcp.prune(
                workload, budget, tolerance, chosen, seed=cell.seed, state=state, resume=True, loop=loop
            )
            found.save(path, command=f"secateur sweep: {cell.name}")
        shutil.rmtree(state, ignore_errors=True)
        return _result(Bundle.open(path))


def _check_same(bundle: Bundle, cell: Cell, tolerance: Tolerance, budget: Budget, settings: Settings) -> None:
    """Raises:
    OutputError: the bundle is of another run.
    """
    manifest = bundle.manifest
    found = (manifest.seed, manifest.tolerance, manifest.budget, manifest.settings)
    wanted = (cell.seed, str(tolerance), [str(limit) for limit in budget.limits], settings.as_json())
    if found != wanted:
        raise OutputError(f"{bundle.path} holds the result of another run", "choose another folder with -o")


def _result(bundle: Bundle) -> Result:
    manifest = bundle.manifest
    costs, before = manifest.point.costs, manifest.before
    return {
        "value": manifest.point.delta_mtl,
        "delta_mtl": manifest.point.delta_mtl,
        "metrics": dict(manifest.point.metrics),
        "flops_left": costs.flops / before.flops,
        "params_left": costs.params / before.params,
        "budget_met": manifest.budget_met,
        "seconds": manifest.seconds,
        "bundle": str(bundle.path),
        "machine": manifest.machine,
    }


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """One process at a time; the lock of one that dies is free."""
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
