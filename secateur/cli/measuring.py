"""`secateur select`, `secateur benchmark` and `secateur targets`: what fits, how fast it is, where it can be known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.options import Budgets, BundlePath, Force, Targets, WorkloadOption
from secateur.cli.slimming import select_widths
from secateur.cli.verb import Answer, typed, verb
from secateur.core.errors import TargetUnavailableError

if TYPE_CHECKING:
    from secateur.core.costs import Profile


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    verb(app)(select)
    verb(app)(benchmark)
    verb(app)(targets)
    verb(app)(calibrate)


def select(
    context: typer.Context,
    bundle: BundlePath,
    *,
    budget: Budgets,
    target: Annotated[str, typer.Option("--target", metavar="TARGET", help="Where a latency counts.")] = "cpu",
    prefer: Annotated[
        str | None, typer.Option("--prefer", metavar="WEIGHTS", help="Tasks that matter more: depth=2,segmentation=1.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the choice as a bundle of its own.", show_default=False)
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", metavar="TASKS", help="Of an elastic bundle: only these run.")
    ] = None,
    drop: Annotated[
        list[str],
        typer.Option("--drop", metavar="TASK=DROP", help="Of an elastic bundle: a task may lose so much: depth=1%."),
    ] = [],  # noqa: B006 - typer copies it
    objective: Annotated[
        str, typer.Option("--objective", help="Of an elastic bundle: chebyshev, paper or sum.")
    ] = "chebyshev",
    epochs: Annotated[
        int, typer.Option("--epochs", min=0, help="Of an elastic bundle, with -o: fine-tune the choice by itself.")
    ] = 0,
    workload: WorkloadOption = None,
    force: Force = False,
) -> Answer:
    """Choose the best saved point, or widths, within a budget."""
    weights = _weights(prefer)
    from secateur.core.elastic.files import is_elastic, read_table
    from secateur.core.shipped import bundle_of

    opened = bundle_of(bundle)
    if epochs and output is None:
        raise typer.BadParameter("what is fine-tuned must be written: give -o as well", param_hint="--epochs")
    if is_elastic(opened):
        return select_widths(
            opened, budget, target, weights, tasks=tasks, drop=drop, objective=objective, workload=workload,
            output=output, epochs=epochs, force=force, command=typed(context),
        )  # fmt: skip
    if tasks is not None or drop or epochs or objective != "chebyshev":
        read_table(opened)  # says that the bundle is static
    from secateur.cli.tables import show_bundle, show_selection
    from secateur.verbs.benchmark import Benchmark
    from secateur.verbs.select import select_point as choose

    selection = choose(
        opened, budget, target, weights, workload=workload, output=output, force=force, command=typed(context)
    )
    if output is None:
        return Answer(selection.as_json(), lambda console: show_selection(console, selection))
    made = selection.bundle
    return Answer(selection.as_json(), lambda console: show_bundle(console, made, Benchmark.of(made)), selection.error)


def benchmark(
    thing: Annotated[str, typer.Argument(metavar="BUNDLE|MODEL.ONNX|WORKLOAD", help="What to measure.")],
    target: Targets = ["cpu"],  # noqa: B006 - typer copies it
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="OTHER", help="Compare with this one, instead of a bundle's original."),
    ] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Also where the time goes, layer by layer.")] = False,
    shape: Annotated[
        list[str],
        typer.Option("--shape", metavar="INPUT=1x3x64x64", help="For inputs whose sizes an ONNX file leaves open."),
    ] = [],  # noqa: B006 - typer copies it
    predict: Annotated[
        bool, typer.Option("--predict", help="Run nothing: predict this machine too, from what calibrate learned.")
    ] = False,
    workload: WorkloadOption = None,
) -> Answer:
    """Measure a model on target hardware.

    A bundle is measured against its original, an ONNX file or a workload's model as it is.
    """
    shapes = dict(map(_shape, shape))
    from secateur.api import benchmark as measure
    from secateur.cli.tables import show_benchmark

    found = measure(thing, target, against, workload=workload, per_layer=per_layer, shapes=shapes, predict=predict)
    return Answer(found.as_json(), lambda console: show_benchmark(console, found), _nothing(found.profiles))


def targets(
    name: Annotated[str | None, typer.Argument(metavar="[TARGET]", help="One target, or a device's YAML file.")] = None,
) -> Answer:
    """List the targets.

    Each is measured or predicted here, or unavailable: then why, and how to get it.
    """
    from secateur.cli.listing import show_targets
    from secateur.targets.registry import status, status_of

    found = status() if name is None else [status_of(name)]
    return Answer({"targets": [each.as_json() for each in found]}, lambda console: show_targets(console, found))


def _nothing(profiles: Sequence[Profile]) -> TargetUnavailableError | None:
    """The error of a benchmark in which no target gave a figure."""
    if any(profile.source != "unavailable" for profile in profiles):
        return None
    first = profiles[0]
    return TargetUnavailableError(f"{first.target}: {first.reason}", first.how or "name another --target")


def _weights(text: str | None) -> dict[str, float]:
    """`depth=2,segmentation=1` → weights."""
    weights = {}
    for part in filter(None, (text or "").split(",")):
        task, _, number = part.partition("=")
        try:
            weights[task.strip()] = float(number)
        except ValueError:
            raise typer.BadParameter(
                f'cannot read "{part}"; write task=weight, for example: depth=2', param_hint="--prefer"
            ) from None
    return weights


def _shape(text: str) -> tuple[str, list[int]]:
    """`input=1x3x64x64` → name and sizes."""
    match = re.fullmatch(r"(.+)=([0-9]+(?:[x,][0-9]+)*)", text.strip())
    if match is None:
        raise typer.BadParameter(f'cannot read "{text}"; for example: input=1x3x64x64', param_hint="--shape")
    return match[1], [int(size) for size in re.split("[x,]", match[2])]


def calibrate(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="cpu (ONNX Runtime) or mobile (ncnn), on this machine.")
    ],
    minutes: Annotated[float, typer.Option("--minutes", help="At most; a later run goes on from here.")] = 10.0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Inside of one operator.")] = 1,
) -> Answer:
    """Measure this machine's operators.

    From them a model's latency is predicted without running it. Stop it at any time: what was measured is kept.
    """
    from secateur.api import calibrate as measure_operators
    from secateur.cli.listing import show_calibration

    found = measure_operators(target, minutes, threads)
    return Answer(found.as_json(), lambda console: show_calibration(console, found))
