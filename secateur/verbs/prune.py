"""prune: PAGCP on a workload, to a budget."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from secateur.compress import pagcp
from secateur.compress.compressed import Compressed
from secateur.compress.pagcp.settings import Settings
from secateur.core.budget import Budget, Tolerance
from secateur.core.device import on_device
from secateur.core.errors import BudgetError
from secateur.core.task import Workload
from secateur.verbs.changes import changed
from secateur.verbs.sources import AnyStart, started_from

AnyBudget = str | Iterable[str] | Budget | None
AnyDrop = str | Iterable[str] | Mapping[str, str] | Tolerance | None


def prune(
    workload: AnyStart,
    budget: AnyBudget = None,
    drop: AnyDrop = None,
    *,
    epochs: int | None = None,
    rounds: int | None = None,
    seed: int = 0,
    paper: bool = False,
    remove_dead: bool = False,
    settings: Settings | None = None,
    state: str | os.PathLike[str] | None = None,
    resume: bool = False,
    inplace: bool = False,
    front: str | None = None,
    target: str = "cpu",
    device: str | None = None,
) -> Compressed:
    """Prune a model's channels to a budget with PAGCP, every task within its own tolerance.

    Args:
        workload: or its reference: a built-in name or `package.module:function`; or what compression made of one, in
            memory or in a bundle: its chosen model is pruned further.
        budget: `"flops<=40%"`, or several; all must hold. Optional with `paper`.
        drop: allowed relative drop of the metrics: `"1%"`, `["1%", "depth=3%"]` or `{"*": "1%", "depth": "3%"}`.
        epochs: of fine-tuning, over all rounds.
        rounds: prune and fine-tune rounds; each leaves one point to select from.
        paper: the published schedule instead of ours.
        remove_dead: also take out modules that no task's prediction depends on.
        settings: everything else that can be set; what is given by name goes above it.
        state: folder in which finished steps are kept, so that `resume=True` continues a run that was stopped.
        inplace: also cut the workload's own model to the result.
        front: points that the run leaves on its way, of whatever the budget limits: `"80%,60%,40%"`.
        target: that limits on latency and energy refer to.
        device: that decisions and training run on, `cuda` for example; where the workload's model is by default. The
            result is on the CPU.

    Raises:
        BudgetError, ModelError, DataError, WorkloadError: wrong input, found before any long work.
        DeviceError: nothing predicts the latency or energy of the target, or there is no such device.
    """
    from secateur.verbs.hardware import hardware_for, loop_for

    (found, start), folder = started_from(workload), None if state is None else Path(state)
    limits = Budget.parse(budget)
    there = on_device(found, device)
    result = pagcp.prune(
        there,
        limits,
        Tolerance.parse(drop),
        settings_of(settings, epochs=epochs, rounds=rounds, paper=paper, remove_dead=remove_dead, front=front),
        seed=seed,
        state=folder,
        resume=resume,
        loop=loop_for(hardware_for(limits, target), found),
        start=start and start.beside(there.model),
    ).on_cpu(on_device(found, "cpu"))
    if inplace:
        _cut_inplace(found, result)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def settings_of(
    settings: Settings | None,
    *,
    epochs: int | None = None,
    rounds: int | None = None,
    paper: bool = False,
    remove_dead: bool = False,
    front: str | None = None,
    more: Iterable[str] = (),
) -> Settings:
    """The settings of a run: what is given by name goes above what `settings` says.

    Args:
        front: as a user types it: "80%,60%,40%".
        more: any field of `Settings`, as "name=value".

    Raises:
        BudgetError: a field that does not exist, or a value that it cannot have.
    """
    settings = settings or Settings()
    settings = settings.published() if paper else settings
    if front is not None and rounds is not None:
        raise BudgetError("both --front and --rounds are given", "each point of a front is a round: leave out --rounds")
    points = None if front is None else tuple(map(_share, front.split(",")))
    return changed(settings, more, epochs=epochs, rounds=rounds, front=points, remove_dead=remove_dead or None)


def _share(text: str) -> float:
    try:
        return float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        raise BudgetError(f'the front has a point "{text}"', "for example: --front 80%,60%,40%") from None


def _cut_inplace(workload: Workload, result: Compressed) -> None:
    """Make the user's own object the chosen model; the result keeps a copy of the original."""
    result.workload = workload.with_model(copy.deepcopy(workload.model))
    result.point.channel_map.apply(workload.model)
    workload.model.load_state_dict(result.model.state_dict())
