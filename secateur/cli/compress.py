"""`secateur compress` and `secateur demo`: the whole way from a trained model to a bundle with its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.extracting import EXPERT_METHODS, expert_work
from secateur.cli.options import (
    RUNS,
    Budgets,
    Drops,
    Force,
    Front,
    More,
    OnDevice,
    Resume,
    Seed,
    Targets,
    WorkloadName,
    file_name,
)
from secateur.cli.slimming import refuse_options, slim_work
from secateur.cli.verb import Answer, typed, verb
from secateur.core.errors import BudgetNotMetError, StoppedError

if TYPE_CHECKING:
    from secateur.core.bundle import Bundle

DEMO_BUDGET, DEMO_DROP = ["flops<=40%", "params<=40%"], ["3%"]
DEMO_SETTINGS = ["lr=4e-3", "calibration_samples=128", "chunks=32"]
"""What makes a short run of `scenes` good: few epochs at a high rate, and a quick oracle."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    verb(app)(compress)
    verb(app)(demo)


def compress(
    context: typer.Context,
    workload: WorkloadName,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="pagcp: channel pruning (Ye et al., 2023); slimmable: one model that runs at many widths; "
            "experts: what some tasks of a mixture of experts need; experts,pagcp: one after the other.",
        ),
    ] = "pagcp",
    *,
    budget: Budgets,
    drop: Drops,
    more: More,
    target: Targets = ["cpu"],  # noqa: B006 - typer copies it
    front: Front = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Of fine-tuning, over all rounds.", show_default=False)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Prune and fine-tune; each leaves a point.", show_default=False)
    ] = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the bundle. [default: runs/WORKLOAD-METHOD]")
    ] = None,
    resume: Resume = False,
    paper: Annotated[bool, typer.Option("--paper", help="The published schedule; a budget is then optional.")] = False,
    remove_dead: Annotated[
        bool, typer.Option("--remove-dead", help="Also take out modules that no task needs.")
    ] = False,
    widths: Annotated[
        str | None,
        typer.Option("--widths", metavar="SHARES", help="Of slimmable: 0.25,0.5,0.75,1.", show_default=False),
    ] = None,
    layout: Annotated[str, typer.Option("--layout", help="Of slimmable's ONNX files: if, files or auto.")] = "auto",
    tasks: Annotated[
        list[str],
        typer.Option(
            "--tasks", help="Of experts: tasks to keep, depth,normals; several sets make a bank.", show_default=False
        ),
    ] = [],  # noqa: B006 - typer copies it
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Of experts: a smaller number for each token.", show_default=False)
    ] = None,
    device: OnDevice = None,
    force: Force = False,
) -> Answer:
    """Compress a trained model to a budget.

    Prunes, fine-tunes, exports to ONNX, measures and writes the report, all into one bundle.
    """
    if method == "slimmable":
        refused = {
            "--budget": budget,
            "--drop": drop,
            "--rounds": rounds,
            "--paper": paper,
            "--remove-dead": remove_dead,
            "--front": front,
            "--tasks": tasks,
            "--top-k": top_k,
        }
        refuse_options(refused)
        run = partial(
            slim_work, workload, output=output, widths=widths, layout=layout, epochs=epochs, more=more,
            targets=target, seed=seed, device=device,
            resume=resume, force=force,
        )  # fmt: skip
        return _resumable(context, run)
    refuse_options(
        {"--widths": widths, "--layout": layout != "auto"},
        "only slimmable models have several widths: --method slimmable",
    )
    if method in EXPERT_METHODS:
        others = {"--front": front, "--paper": paper, "--remove-dead": remove_dead}
        refuse_options(others, "this is of --method pagcp, and no option of an extraction")
        run = partial(
            expert_work, workload, method, output=output, tasks=tasks, budget=budget, drop=drop, top_k=top_k,
            epochs=epochs, rounds=rounds, more=more, targets=target, seed=seed, device=device,
            resume=resume, force=force,
        )  # fmt: skip
        return _resumable(context, run)
    if method != "pagcp":
        raise typer.BadParameter(
            f'this version compresses with "pagcp", "slimmable", "experts" or "experts,pagcp", not "{method}"',
            param_hint="--method",
        )
    if tasks or top_k is not None:
        raise typer.BadParameter("only an extraction keeps some tasks: --method experts", param_hint="--tasks")
    run = partial(
        prune_work, workload, output=output, budget=budget, drop=drop, epochs=epochs, rounds=rounds, paper=paper,
        remove_dead=remove_dead, front=front, more=more, targets=target, seed=seed, device=device,
        resume=resume, force=force,
    )  # fmt: skip
    return _resumable(context, run)


def demo(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="The small workload digits instead.")] = False,
    resume: Resume = False,
) -> Answer:
    """Compress an embedded model, start to end.

    The workload scenes to 40% of its FLOPs and parameters, into runs/demo, which is replaced.
    """
    name, epochs, more = ("digits", 9, []) if quick else ("scenes", 6, DEMO_SETTINGS)
    run = partial(
        prune_work, name, output=RUNS / "demo", budget=DEMO_BUDGET, drop=DEMO_DROP, epochs=epochs, remove_dead=True,
        more=more, resume=resume, force=True,
    )  # fmt: skip
    return _resumable(context, run)


def prune_work(
    workload: str,
    command: str,
    *,
    output: Path | None,
    budget: Sequence[str],
    drop: Sequence[str],
    targets: Sequence[str] = ("cpu",),
    seed: int = 0,
    device: str | None = None,
    resume: bool,
    force: bool,
    **settings: Any,
) -> Bundle:
    """Prune a workload's model into a bundle; `settings` as `secateur.verbs.prune.settings_of` takes them."""
    from secateur.api import compress_to_bundle
    from secateur.verbs.prune import settings_of
    from secateur.verbs.sources import named

    found, name = named(workload)
    return compress_to_bundle(
        found, output or RUNS / f"{file_name(name)}-pagcp", budget, drop, settings=settings_of(None, **settings),
        targets=targets, seed=seed, device=device, resume=resume, force=force, command=command,
    )  # fmt: skip


def _resumable(context: typer.Context, work: Callable[[str], Bundle]) -> Answer:
    """Do the work; whoever stops it is told how to go on."""
    from secateur.compress.ranks import WorkerDone
    from secateur.compress.speed import keep_freed_memory

    keep_freed_memory()
    command = typed(context)
    try:
        bundle = work(command)
    except WorkerDone:
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        again = command if "--resume" in context.obj else f"{command} --resume"
        raise StoppedError("stopped; nothing was lost", f"continue with: {again}") from None
    from secateur.cli.tables import show_bundle
    from secateur.verbs.benchmark import Benchmark

    manifest, measured = bundle.manifest, Benchmark.of(bundle)
    document = {
        "bundle": str(bundle.path),
        "report": str(bundle.file("report.html")),
        "method": manifest.method,
        "budget": manifest.budget,
        "budget_met": manifest.budget_met,
        "misses": manifest.misses,
        "costs": {
            "before": manifest.before.model_dump(exclude_none=True),
            "after": manifest.point.costs.model_dump(exclude_none=True),
        },
        "metrics": {
            "before": manifest.metrics_before,
            "after": manifest.point.metrics,
            "delta_mtl": manifest.point.delta_mtl,
        },
        "oracle": manifest.oracle,
        "on_target": manifest.on_target and manifest.on_target.model_dump(),
        "benchmark": measured and measured.as_json(),
        "seconds": manifest.seconds,
    }
    return Answer(document, lambda console: show_bundle(console, bundle, measured), _missed(bundle))


def _missed(bundle: Bundle) -> BudgetNotMetError | None:
    if bundle.manifest.budget_met:
        return None
    return BudgetNotMetError(
        f"not reached: {'; '.join(bundle.manifest.misses)}",
        f"the nearest result was kept in {bundle.path}; allow more, or give it more --epochs",
    )
