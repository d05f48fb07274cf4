"""One elastic model against models trained separately at each width, against PAGCP, and against uniform widths only.

    python benchmarks/slimmable.py digits --epochs 6 [--seeds 0 1 2]
    python benchmarks/slimmable.py scenes --bundle scenes-elastic --seeds 0 --peers separate --full original

The last is for one that was trained before; at full width, the original stands for the separately trained model, and
`--peer-epochs 3` fine-tunes peers for less long than the elastic model was trained.

For every seed: the elastic model is trained, its configurations tabulated; at each uniform width, the model cut to
that width (channels sorted alike) is fine-tuned by itself for as many epochs, with the original as teacher, and PAGCP
prunes to as many FLOPs with as much fine-tuning. Judged on test data: the elastic model's uniform widths against
either (hypervolume of what fits each budget, relative to the original, reference twice as bad), and what the search,
which sees calibration data, finds within the FLOPs of each uniform width. Writes
benchmarks/results/slimmable-WORKLOAD.json.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from secateur.compress import pagcp
from secateur.compress.finetune import finetune
from secateur.compress.journal import Journal
from secateur.compress.slimmable import Settings, load_elastic, slim
from secateur.compress.slimmable.costs import Costing
from secateur.compress.slimmable.elastic import ElasticModel
from secateur.compress.slimmable.sort import sort_channels
from secateur.compress.slimmable.tabulate import Judge
from secateur.core import machine
from secateur.core.budget import Budget, Tolerance
from secateur.core.elastic import Choice, Chooser, Wish
from secateur.core.elastic import Table as ElasticTable
from secateur.core.files import write_json
from secateur.core.predict import evaluate
from secateur.core.progress import say
from secateur.core.shipped import bundle_of
from secateur.core.task import Workload, delta_mtl
from secateur.profiles.control import REFERENCE, control, hypervolume, plot
from secateur.workloads import workload as workload_by_name

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
PEERS = ("separate", "pagcp")


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    torch.set_num_threads(options.threads)
    workload, runs = workload_by_name(options.workload), list[dict[str, Any]]()
    for seed in options.seeds:
        runs.append(one_seed(workload, options, seed))
        document = {
            "command": " ".join(["python benchmarks/slimmable.py", *given]), "workload": options.workload,
            "runs": runs, "machine": machine.describe(), "versions": machine.versions(),
        }  # fmt: skip
        write_json(options.output or RESULTS / f"slimmable-{options.workload}.json", document)
    show(runs)
    return 0


def elastic_model(
    workload: Workload, options: argparse.Namespace, seed: int
) -> tuple[ElasticModel, ElasticTable, Settings, float]:
    """The elastic model of a seed, its table and settings, and the seconds that it took."""
    if options.bundle:
        bundle = bundle_of(options.bundle)
        elastic, table, _ = load_elastic(bundle, workload)
        return elastic, table, Settings.from_json(bundle.manifest.settings), bundle.manifest.seconds
    settings = Settings(epochs=options.epochs, widths=tuple(options.widths), lr=options.lr)
    started = time.monotonic()
    result = slim(workload, settings, seed=seed)
    return result.elastic, result.table, settings, time.monotonic() - started


def one_seed(workload: Workload, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Everything that is compared, for one seed."""
    elastic, table, settings, seconds = elastic_model(workload, options, seed)
    judge, costing = Judge(elastic, workload, settings, seed), Costing(elastic.space)
    before = evaluate(workload.model, workload.test, workload.tasks)
    peers = replace(settings, epochs=options.peer_epochs or settings.epochs)
    most, widths = costing.flops(elastic.space.largest), []
    for at in elastic.space.uniform():
        flops = costing.flops(at)
        found = {"elastic": evaluate(elastic.static(at, judge.statistics(at)), workload.test, workload.tasks)}
        if flops == most and options.full == "original":
            found["separate"] = before
        elif "separate" in options.peers:
            found["separate"] = separate(workload, elastic, at, peers, seed)
        if flops < most and "pagcp" in options.peers:
            found["pagcp"] = pruned(workload, flops / most, peers, seed)
        widths.append({"configuration": list(at), "flops": flops, **found})
        for name, metrics in found.items():
            widths[-1][f"{name}_delta_mtl"] = delta_mtl(workload.tasks, before, metrics)
            say(f"seed {seed}, {flops / most:.1%} of FLOPs, {name}: Δ_MTL {widths[-1][f'{name}_delta_mtl']:+.2f} %")
    budgets = [each["flops"] for each in widths]
    chooser = Chooser(table)
    choices = [chooser.pick(Wish({"flops": budget}, objective="sum")) for budget in budgets]
    for each, choice in zip(widths, choices, strict=True):
        at = choice.configuration
        each["searched_configuration"] = list(at)
        each["searched"] = evaluate(elastic.static(at, judge.statistics(at)), workload.test, workload.tasks)
        each["searched_delta_mtl"] = delta_mtl(workload.tasks, before, each["searched"])
        say(f"seed {seed}, {each['flops'] / most:.1%} of FLOPs, searched: Δ_MTL {each['searched_delta_mtl']:+.2f} %")
    controlled = control(table, list(np.geomspace(1.2 * budgets[0], most, 6)))
    plot(table, {f"{workload.name}, searched": controlled}, DOCS / f"slimmable-{workload.name}.svg")
    return {
        "seed": seed, "seconds": round(seconds), "settings": settings.as_json(), "original": before, "widths": widths,
        "hypervolume": volumes(workload, before, widths, ("elastic", "searched", *options.peers)),
        "full": options.full, "peer_epochs": peers.epochs, "flops_range": most / budgets[0],
        "searched": searched(elastic, table, choices),
        "control": controlled.as_json(), "notes": dict(table.notes),
    }  # fmt: skip


def separate(
    workload: Workload, elastic: ElasticModel, at: tuple[int, ...], settings: Settings, seed: int
) -> dict[str, float]:
    """Test metrics of the original cut to a configuration and fine-tuned by itself."""
    space, model = elastic.space, copy.deepcopy(workload.model)
    names = list(space.channels(space.largest))
    sort_channels(model, space.groups, names, workload.example_input, workload.task_names, settings.order)
    space.channel_map(at).apply(model)
    recipe = replace(settings.recipe(settings.epochs), lr=settings.lr)
    journal = Journal(None, {}, resume=False)
    finetune(model, workload, recipe, seed=seed, label="separate", journal=journal)
    return evaluate(model, workload.test, workload.tasks)


def pruned(workload: Workload, share: float, settings: Settings, seed: int) -> dict[str, float]:
    """Test metrics of the original pruned by PAGCP to a share of its FLOPs, fine-tuned for as many epochs."""
    chosen = pagcp.Settings(epochs=settings.epochs, remove_dead=True)
    budget = Budget.parse(f"flops<={100 * share:.3f}%")
    return dict(pagcp.prune(workload, budget, Tolerance.parse("5%"), chosen, seed=seed).point.metrics)


def volumes(
    workload: Workload, before: dict[str, float], widths: list[dict[str, Any]], names: tuple[str, ...]
) -> dict[str, list[float]]:
    """By name, for the FLOPs of each width: the hypervolume of that width and the smaller ones."""
    found = {}
    for name in names:
        models = [each.get(name) or each.get("separate", before) for each in widths]
        found[name] = [volume(workload, before, models[: count + 1]) for count in range(len(models))]
    return found


def volume(workload: Workload, before: dict[str, float], found: list[dict[str, float]]) -> float:
    """Hypervolume of a set of models, the original's being 1."""
    points = [
        [
            m[t.name] / before[t.name] if t.better == "lower" else before[t.name] / max(m[t.name], 1e-12)
            for t in workload.tasks
        ]
        for m in found
    ]
    return hypervolume(np.array(points), REFERENCE) / (REFERENCE - 1) ** len(workload.tasks)


def searched(elastic: ElasticModel, table: ElasticTable, choices: list[Choice]) -> list[dict[str, float]]:
    """At the FLOPs of each uniform width: mean scaled metric of that width, and of what the search finds."""
    rows, found = table.rows.tolist(), []
    for at, best in zip(elastic.space.uniform(), choices, strict=True):
        row = rows.index([at[place] for place in table.shared])
        chosen = {t: table.decoders[t].tolist().index([at[p] for p in table.decoder(t)]) for t in table.tasks}
        found.append(
            {
                "uniform": quality(table, row, chosen),
                "searched": quality(table, best.row, dict(best.decoders)),
            }
        )
    return found


def quality(table: Any, row: int, chosen: dict[str, int]) -> float:
    """Mean over tasks of the fitted metric, scaled to 0..1 over the table."""
    scaled = []
    for task, d in chosen.items():
        values = table.fitted[task]
        q = (values[row, d] - values.min()) / max(float(np.ptp(values)), 1e-12)
        scaled.append(float(q if table.better[task] == "higher" else 1 - q))
    return float(np.mean(scaled))


def show(runs: list[dict[str, Any]]) -> None:
    table = Table("seed", "MFLOPs", "uniform Δ_MTL %", "searched", "separate", "PAGCP", "uniform q", "searched q")
    for run in runs:
        for each, choice in zip(run["widths"], run["searched"], strict=True):
            deltas = [each.get(f"{name}_delta_mtl") for name in ("elastic", "searched", *PEERS)]
            table.add_row(
                str(run["seed"]), f"{each['flops'] / 1e6:.2f}",
                *("–" if delta is None else f"{delta:+.2f}" for delta in deltas),
                f"{choice['uniform']:.3f}", f"{choice['searched']:.3f}",
            )  # fmt: skip
    Console().print(table)
    for run in runs:
        volumes = run["hypervolume"]
        for peer in (each for each in PEERS if each in volumes):
            pairs = zip(volumes["elastic"], volumes[peer], strict=True)
            shares = ", ".join(f"{100 * own / max(theirs, 1e-12):.1f} %" for own, theirs in pairs)
            say(f"seed {run['seed']}: hypervolume within each width's FLOPs, of that of {peer}: {shares}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", help="a built-in name, or package.module:function")
    parser.add_argument("--bundle", help="an elastic bundle of the workload to judge, instead of training one")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.125, 0.25, 0.5, 1.0])
    parser.add_argument("--lr", type=float, default=Settings.lr, help="of the elastic model and of separate ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--full", choices=("separate", "original"), default="separate", help="peer at full width")
    parser.add_argument("--peer-epochs", type=int, help="of fine-tuning (default: as many as the elastic model had)")
    parser.add_argument("--output", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
