"""extract: from a multi-task mixture of experts, the model that some of its tasks need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from secateur.compress import experts, pagcp
from secateur.compress.compressed import Compressed
from secateur.compress.experts.compose import then_prune
from secateur.compress.journal import check_own
from secateur.core.budget import Budget, Tolerance
from secateur.core.bundle import Bundle
from secateur.core.device import on_device
from secateur.core.errors import BudgetError
from secateur.core.task import Workload
from secateur.profiles.graph import capture_tasks
from secateur.targets.hardware import Hardware
from secateur.verbs.changes import changed
from secateur.verbs.compress import staged
from secateur.verbs.hardware import hardware_for, loop_for
from secateur.verbs.prune import AnyBudget, AnyDrop
from secateur.verbs.sources import AnyWorkload, find_workload

AnyTasks = str | Iterable[str | Iterable[str]] | None


def extract(
    workload: AnyWorkload,
    tasks: AnyTasks = None,
    budget: AnyBudget = None,
    drop: AnyDrop = None,
    *,
    top_k: int | None = None,
    epochs: int | None = None,
    rounds: int | None = None,
    prune: bool | pagcp.Settings = False,
    seed: int = 0,
    settings: experts.Settings | None = None,
    state: str | os.PathLike[str] | None = None,
    resume: bool = False,
    target: str = "cpu",
    device: str | None = None,
) -> Compressed:
    """Extract the model that some tasks of a mixture of experts need.

    Args:
        workload: or its reference: a built-in name or `package.module:function`.
        tasks: to keep, `"depth"`, `"depth,normals"` or a list; all by default. A list of lists are sets of tasks
            between which a device switches: the bundle is a bank then, see `secateur.compress.experts.bank`.
        budget: `"params<=30%"` of the whole multi-task model, or several; without one every expert stays that the tasks
            use on the calibration data, and the result computes the same on it, bit for bit.
        drop: allowed relative drop of the metrics, as for `prune`.
        top_k: experts that each token goes through, if fewer than the model's.
        epochs, rounds: of fine-tuning; steps to the budget, each of which leaves a point to select from.
        prune: extract exactly, and let PAGCP prune what is left to the budget; True, or how.
        settings: everything else that can be set; what is given by name goes above it.
        state: folder in which finished steps are kept, so that `resume=True` continues a run that was stopped.
        target: that limits on latency and energy refer to; relative ones are shares of what the whole model takes there
            for the tasks that are kept.
        device: as for `prune`.

    Raises:
        ModelError: no expert layers, or routers that do not fit their experts.
        BudgetError, DataError, WorkloadError: wrong input, found before any long work.
        DeviceError: nothing predicts the latency or energy of the target.
    """
    folder = None if state is None else Path(state)
    if folder is not None:
        check_own(folder)
    found, limits, tolerance = find_workload(workload), Budget.parse(budget), Tolerance.parse(drop)
    given = changed(settings or experts.Settings(), (), top_k=top_k, epochs=epochs, rounds=rounds)
    hardware = hardware_for(limits, target)
    there = on_device(found, device)
    result = _run(there, _sets(tasks), limits, tolerance, given, prune, seed, folder, resume, hardware)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return result.on_cpu(on_device(found, "cpu"))


def extract_to_bundle(
    workload: AnyWorkload,
    output: str | os.PathLike[str],
    tasks: AnyTasks = None,
    budget: AnyBudget = None,
    drop: AnyDrop = None,
    *,
    settings: experts.Settings | None = None,
    prune: bool | pagcp.Settings = False,
    targets: str | Iterable[str] = ("cpu",),
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    command: str = "",
) -> Bundle:
    """As `extract`, into a complete bundle: exported with proof, measured, reported.

    Raises:
        OutputError: the output holds something else, or the state of a stopped run that is not to be resumed.
        ExportError, ParityError: the artefact does not compute the same; the bundle is kept without it.
    """
    limits, tolerance, sets = Budget.parse(budget), Tolerance.parse(drop), _sets(tasks)
    given, hardware = settings or experts.Settings(), hardware_for(limits, targets)
    names = "; ".join(", ".join(names) for names in sets) or "all tasks"
    what = f"extracting {names} to {limits if limits else 'what they use'}"
    return staged(
        workload, output, what,
        lambda found, state: _run(found, sets, limits, tolerance, given, prune, seed, state, resume, hardware),
        targets=targets, device=device, resume=resume, force=force, command=command,
    )  # fmt: skip


def pruning_of(settings: experts.Settings, more: Iterable[str] = ()) -> pagcp.Settings:
    """How PAGCP prunes what an extraction left: with as many epochs and rounds; any other field as "name=value"."""
    return changed(pagcp.Settings(epochs=settings.epochs, rounds=settings.rounds), more)


def _run(
    workload: Workload, sets: list[tuple[str, ...]], limits: Budget, tolerance: Tolerance, settings: experts.Settings,
    prune: bool | pagcp.Settings, seed: int, state: Path | None, resume: bool, hardware: Hardware | None,
) -> Compressed:  # fmt: skip
    if prune and not limits:
        raise BudgetError("no budget is given to prune to", 'for example: --budget "flops<=10%"')
    several = sets if len(sets) > 1 else []
    if prune and several:
        raise BudgetError(
            "channels are pruned for one set of tasks, and several are given", "join them: --tasks depth,normals"
        )
    if prune:  # what cannot be traced is refused before the extraction, not after it
        capture_tasks(workload.model, workload.example_input, workload.task_names)
    tasks = tuple(dict.fromkeys(name for names in sets for name in names)) if sets else None
    folder = None if state is None else state / "experts"
    loop = loop_for(hardware, workload.select_tasks(tasks) if tasks else workload)
    first = experts.extract(
        workload, tasks, None if prune else limits, tolerance, settings, sets=several, seed=seed, state=folder,
        resume=resume, loop=loop,
    )  # fmt: skip
    if not prune:
        return first
    second = prune if isinstance(prune, pagcp.Settings) else pruning_of(settings)
    folder = None if state is None else state / "pagcp"
    return then_prune(first, limits, tolerance, second, seed=seed, state=folder, resume=resume, loop=loop)


def _sets(tasks: AnyTasks) -> list[tuple[str, ...]]:
    """Sets of tasks: one, unless several are given as lists of their own."""
    if tasks is None:
        return []
    parts = [tasks] if isinstance(tasks, str) else list(tasks)
    if all(isinstance(part, str) for part in parts):
        parts = [",".join(map(str, parts))]
    return [_names(part) for part in parts]


def _names(tasks: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(part.strip() for part in (tasks.split(",") if isinstance(tasks, str) else tasks))
