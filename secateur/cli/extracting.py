"""What `compress --method experts` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.cli.options import RUNS, file_name

if TYPE_CHECKING:
    from secateur.core.bundle import Bundle

EXPERT_METHODS = ("experts", "experts,pagcp")


def expert_work(
    workload: str,
    method: str,
    command: str,
    *,
    output: Path | None,
    tasks: Sequence[str],
    budget: Sequence[str],
    drop: Sequence[str],
    top_k: int | None,
    epochs: int | None,
    rounds: int | None,
    more: Sequence[str],
    targets: Sequence[str],
    seed: int,
    device: str | None,
    resume: bool,
    force: bool,
) -> Bundle:
    """Extract what some tasks of a workload's model need, into a bundle."""
    from secateur.compress.experts import Settings
    from secateur.verbs.changes import changed
    from secateur.verbs.extract import extract_to_bundle, pruning_of
    from secateur.verbs.sources import find_workload

    found = find_workload(workload)
    kept = "-and-".join(tasks or ["all"]).replace(",", "-").replace(" ", "")
    sets, prune = [one.split(",") for one in tasks], method == "experts,pagcp"
    settings = changed(Settings(), () if prune else more, top_k=top_k, epochs=epochs, rounds=rounds)
    return extract_to_bundle(
        found, output or RUNS / f"{file_name(found.name)}-{kept}", sets or None, budget, drop,
        settings=settings, prune=pruning_of(settings, more) if prune else False, targets=targets, seed=seed,
        device=device, resume=resume, force=force, command=command,
    )  # fmt: skip
