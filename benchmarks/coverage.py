"""Channel dataflow on every torchvision classifier and on one model of every timm module: which of them can be cut?

    python benchmarks/coverage.py                       # all 154 models, in an environment with torchvision and timm
    python benchmarks/coverage.py --only swin,vit_tiny  # names that start with these
    python benchmarks/coverage.py --resume              # skip what stands in the results already
    python benchmarks/coverage.py --repositories        # segmentation_models_pytorch, transformers, monai, ultralytics

The models are those of the peer's sweep (results/torch_pruning_sweep.jsonl: torch-pruning 1.6, half of the channels at
once, on a machine like this one), with random weights. Per model: whether it traces, its groups, the share of its
parameter elements that some prunable group can remove, whether the model with half of the channels of *every* prunable
group cut, and again with random shares of all groups cut, gives what the masked model gives (channels drawn at random,
other than the trial cut's; where float32 differs, float64 decides), and the processor seconds spent. Models run in a
worker process that is killed after eight minutes of processor time. With `--repositories` they are those of
repositories.py, which the peer was not run on.
Writes benchmarks/results/coverage.json, or coverage_repositories.json.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import os
import select
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from repositories import repositories

HERE = Path(__file__).parent
PEER = HERE / "results" / "torch_pruning_sweep.jsonl"
RESULTS = HERE / "results" / "coverage.json"
TIMEOUT = 480
TOLERANCE, EXACT = 1e-4, 1e-9
"""Largest differences that are right, relative to the largest output: in float32, else in float64."""
SIZES = (64, 128, None)
"""Image sizes that are tried until the model's forward takes one; None is the model's own."""

Row = dict[str, Any]


def peer() -> dict[tuple[str, str], str]:
    """(library, model) → what the peer came to."""
    rows = [json.loads(line) for line in PEER.read_text().splitlines()]
    return {(library, name): str(outcome) for library, name, outcome, *_ in rows}


def build(library: str, name: str) -> Any:
    if library == "tv":
        import torchvision

        return torchvision.models.get_model(name, weights=None)
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    return repositories()[library, name][0]()


def example(model: Any, library: str, name: str) -> Any:
    """A batch of two images, the smallest that the model takes."""
    import torch

    own = 224 if library == "tv" else getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
    sizes = SIZES if library in ("tv", "timm") else (repositories()[library, name][1],)
    for size in sizes:
        inputs = torch.randn(2, 3, size or own, size or own)
        try:
            with torch.no_grad():
                model(inputs)
        except Exception:  # sizes are asserted in many ways
            if size == sizes[-1]:
                raise
        else:
            return inputs
    raise AssertionError


def examine(library: str, name: str) -> Row:
    """All figures of one model."""
    import torch

    from secateur.compress.dataflow.attempt import lively
    from secateur.compress.dataflow.trace import from_graphs, settle, training_graphs
    from secateur.core.errors import ModelError
    from secateur.profiles.graph import capture_tasks

    torch.manual_seed(0)
    model = lively(build(library, name)).eval()
    inputs = example(model, library, name)
    start = time.process_time()
    try:
        graphs, training = capture_tasks(model, inputs, ()), training_graphs(model, inputs, ())
    except ModelError as error:
        return {"outcome": "does not trace", "message": str(error)}
    exported = time.process_time()
    from_graphs(model, graphs, training)
    walked = time.process_time()
    groups = settle(partial(from_graphs, model, graphs, training), inputs, ())
    settled = time.process_time()
    off = check(groups, inputs)
    right = off <= TOLERANCE or exact(groups, inputs)
    return {
        "outcome": "nothing prunable" if not groups.prunable else "ok" if right else "wrong",
        "input": list(inputs.shape),
        "ops": len(graphs[0].nodes),
        "groups": len(groups),
        "prunable": len(groups.prunable),
        "share": round(share(groups), 4),
        "cut_params": sum(p.numel() for p in groups.cut(keep(groups)).parameters()) / params(model),
        "difference": off,
        "seconds": {
            "export": round(exported - start, 2),
            "groups": round(walked - exported, 2),
            "trial": round(settled - walked, 2),
        },
        "why_not": {group.name: group.why_not for group in groups.values() if not group.prunable},
    }


def params(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def keep(groups: Any, low: float = 0.5, high: float = 0.5) -> dict[str, Any]:
    """A share of every prunable group's channels, at random."""
    import numpy as np

    draw = np.random.default_rng(1)
    counts = {g.name: min(max(1, int(g.channels * draw.uniform(low, high))), g.channels) for g in groups.prunable}
    return {name: np.sort(draw.choice(groups[name].channels, count, replace=False)) for name, count in counts.items()}


def check(groups: Any, inputs: Any) -> float:
    """The largest relative difference between the model cut and masked: half of every group, and random shares."""
    import torch

    from secateur.compress.dataflow.attempt import difference, outputs

    other, worst = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(5)).to(inputs), 0.0
    for kept in (keep(groups), keep(groups, 0.2, 1.0)):
        found = outputs(groups.cut(kept).eval(), other, (), 0)
        masked = groups.mask(kept)(other).values()
        worst = max(worst, *(difference(one, two) for one, two in zip(masked, found, strict=True)))
    return worst


def exact(groups: Any, inputs: Any) -> bool:
    """Whether cut and masked model agree in float64: a top-k over nearly equal scores turns float32's rounding into
    another choice."""
    try:
        return check(groups.of(copy.deepcopy(groups.model).double()), inputs.double()) <= EXACT
    except Exception:  # a forward may insist on float32
        return False


def share(groups: Any) -> float:
    """The share of parameter elements that some prunable group removes a part of."""
    import torch

    from secateur.compress.channel_map import named_tensors

    tensors = named_tensors(groups.model)  # shared ones by all of their names
    touched = {p: torch.zeros(p.shape, dtype=torch.bool) for p in groups.model.parameters()}
    for group in groups.prunable:
        for member in group.members:
            if tensors[member.parameter] in touched:
                index = torch.from_numpy(member.index.ravel())
                touched[tensors[member.parameter]].index_fill_(member.dim, index, True)
    return sum(int(mask.sum()) for mask in touched.values()) / params(groups.model)


def work() -> None:
    """Read models from standard input, write a row for each."""
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        library, name = json.loads(line)
        try:
            row = examine(library, name)
        except Exception as error:  # a row for everything that happens
            row = {"outcome": "crash", "message": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        print("ROW" + json.dumps(row), flush=True)


def cpu_seconds(process: int) -> float:
    """Processor time that a process has used so far, by Linux's account."""
    try:
        user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:  # it has ended
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A process that examines models one after another, until one takes too long."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def examine(self, library: str, name: str) -> Row:
        process = self._process or subprocess.Popen(
            [sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([library, name]) + "\n")
        process.stdin.flush()
        end = cpu_seconds(process.pid) + TIMEOUT
        while cpu_seconds(process.pid) < end and process.poll() is None:
            if select.select([process.stdout], [], [], 1)[0]:
                line = process.stdout.readline()
                if line.startswith("ROW"):
                    row: Row = json.loads(line[3:])
                    return row
        outcome = "timeout" if process.poll() is None else f"died ({process.returncode})"
        process.kill()
        process.wait()
        self._process = None
        return {"outcome": outcome}


def run(wanted: list[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], Row]]:
    worker = Worker()
    for library, name in wanted:
        row = worker.examine(library, name)
        yield (library, name), row


def line(library: str, name: str, row: Row, theirs: str) -> str:
    seconds, groups = row.get("seconds", {}), f"{row.get('prunable', 0)}/{row.get('groups', 0)}"
    return (
        f"{library:5} {name:32} {row['outcome']:16} {groups:>9} {100 * row.get('share', 0):6.1f} % "
        f"{100 * row.get('cut_params', 1):6.1f} % {row.get('difference', float('nan')):9.1e} "
        f"{seconds.get('export', 0):6.1f} {seconds.get('groups', 0):6.2f} {seconds.get('trial', 0):6.1f}  "
        f"{theirs[:40]}{'  ' + row['message'][:200] if 'message' in row else ''}"
    )


def summary(rows: dict[str, Row]) -> Row:
    """The figures of the docs."""
    result: Row = {}
    for library in dict.fromkeys(name.partition("/")[0] for name in rows):
        own = [row for name, row in rows.items() if name.startswith(f"{library}/")]
        good = [row for row in own if row["outcome"] == "ok"]
        result[library] = {
            "models": len(own),
            "outcomes": dict(collections.Counter(row["outcome"] for row in own)),
            "mean_share": round(sum(row["share"] for row in good) / max(len(good), 1), 4),
            **({"peer_ok": sum(row["peer"] == "OK" for row in own)} if library in ("tv", "timm") else {}),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names that start with one of these, separated by commas")
    parser.add_argument("--resume", action="store_true", help="skip the models that have a row already")
    parser.add_argument("--repositories", action="store_true", help="the models of repositories.py instead")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        return work()
    from secateur.core import machine
    from secateur.core.files import write_json

    theirs = dict.fromkeys(repositories(), "") if asked.repositories else peer()
    output = asked.output or (RESULTS.with_stem("coverage_repositories") if asked.repositories else RESULTS)
    before = json.loads(output.read_text())["models"] if output.exists() else {}
    prefixes = tuple(filter(None, asked.only.split(",")))
    wanted = [key for key in sorted(theirs) if not prefixes or key[1].startswith(prefixes)]
    rows: dict[str, Row] = before if asked.resume or prefixes else {}
    if asked.resume:
        wanted = [key for key in wanted if "/".join(key) not in rows]
    heads = f"{'groups':>9} {'share':>8} {'cut to':>8} {'off':>9} export groups  trial  peer"
    print(f"{'':5} {'model':32} {'outcome':16} {heads}")
    for key, row in run(wanted):
        rows["/".join(key)] = row | ({} if asked.repositories else {"peer": theirs[key]})
        print(line(*key, row, theirs[key]), flush=True)
        command = f"python benchmarks/coverage.py{' --repositories' if asked.repositories else ''}"
        document = {"command": command, "machine": machine.describe(), "summary": summary(rows)}
        write_json(output, document | {"models": dict(sorted(rows.items()))})
    print(json.dumps(summary(rows), indent=2))


if __name__ == "__main__":
    main()
