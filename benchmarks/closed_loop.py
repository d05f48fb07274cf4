"""A simulated device: free compute and the preferred task change, the controller follows at the next frame.

    secateur export runs/elastic --to elastic -o device
    python benchmarks/closed_loop.py device [--frames 200] [--output closed-loop.json]

Budgets follow a load that swings and jumps; each task is preferred for a while. Every frame picks widths, runs them,
and notes what it took (measured) against the budget, beside the metrics that the table expects. Then configurations
drawn at random from what was exported are timed one by one against the table, and the memory is noted that one width,
and all widths that were used, take. Writes figures, a plot.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core import machine
from secateur.core.files import write_json
from secateur.core.progress import say
from secateur.export.runtime import ElasticSession


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    empty = resident()
    session = ElasticSession(options.folder)
    image = np.random.default_rng(0).standard_normal(tuple(map(int, options.shape.split("x")))).astype(np.float32)
    session.run(image)
    one = resident()
    frames = run(session, options.frames, image)
    checked = check(session, options.configurations, image)
    memory = {"one_width_mib": one - empty, "all_used_mib": resident() - empty}
    output = options.output or Path("closed-loop.json")
    summary = summarise(frames) | within(checked, session) | memory
    document = {
        "command": "python benchmarks/closed_loop.py FOLDER", "summary": summary, "frames": frames, "checked": checked,
        "machine": machine.describe(), "versions": machine.versions(),
    }  # fmt: skip
    write_json(output, document)
    plot(frames, session.tasks, output.with_suffix(".svg"))
    say(", ".join(f"{key} {value:.3g}" for key, value in summary.items()))
    return 0


def resident() -> float:
    """MiB of memory that this process holds, by Linux's account."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def check(session: ElasticSession, count: int, image: np.ndarray[Any, Any]) -> list[dict[str, float]]:
    """Configurations drawn at random from the exported ones: latency by the table and measured, a median of 15."""
    controller, draw, found = session.controller, np.random.default_rng(1), []
    table = controller.table
    for _ in range(count):
        widths = {task: int(draw.integers(len(table.decoders[task]))) for task in session.tasks}
        choice = controller.choice(int(draw.choice(table.exported)), widths)
        session.run(image, choice=choice)
        times = []
        for _ in range(15):
            began = time.perf_counter()
            session.run(image, choice=choice)
            times.append(1e3 * (time.perf_counter() - began))
        found.append({"expected_ms": choice.costs["latency"], "measured_ms": float(np.median(times))})
    return found


def within(checked: list[dict[str, float]], session: ElasticSession) -> dict[str, float]:
    """How far the table is off, and how often within its stated error."""
    errors = np.array([abs(each["expected_ms"] / each["measured_ms"] - 1) for each in checked])
    stated = (session.controller.table.latency["cpu"].error_pct or 0.0) / 100
    return {
        "checked": len(errors), "error_median": float(np.median(errors)), "error_stated": stated,
        "within_stated": float(np.mean(errors <= stated)),
    }  # fmt: skip


def run(session: ElasticSession, count: int, image: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Drive a session for so many frames; one entry each."""
    controller = session.controller
    least, most = controller.pick(budget_ms=1e-6).costs["latency"], controller.pick().costs["latency"]
    frames = []
    for step in range(count):
        budget = budget_at(step, count, least, most)
        preferred = session.tasks[step * 2 * len(session.tasks) // count % len(session.tasks)]
        began = time.perf_counter()
        choice = controller.pick(budget_ms=budget, prefer={preferred: 3.0})
        picked = time.perf_counter()
        session.use(choice)
        session.run(image)
        frames.append(
            {
                "budget_ms": budget,
                "preferred": preferred,
                "expected_ms": choice.costs["latency"],
                "measured_ms": 1e3 * (time.perf_counter() - picked),
                "pick_ms": 1e3 * (picked - began),
                "met": choice.met,
                "widths": controller.table.widths(choice.configuration),
                "metrics": dict(choice.metrics),
            }
        )
    return frames


def budget_at(step: int, count: int, least: float, most: float) -> float:
    """A load that swings twice and takes half of the device away in the middle third."""
    swing = 0.6 + 0.4 * np.cos(4 * np.pi * step / count)
    taken = 0.5 if count // 3 <= step < 2 * count // 3 else 1.0
    return float(least + (1.1 * most - least) * swing * taken)


def summarise(frames: list[dict[str, Any]]) -> dict[str, float]:
    """Shares and medians over frames; the first frames open graphs and are left out of the times."""
    warm = frames[len(frames) // 10 :]
    return {
        "expected_within_budget": float(
            np.mean([each["expected_ms"] <= each["budget_ms"] * (1 + 1e-9) for each in frames if each["met"]])
        ),
        "measured_within_budget": float(
            np.mean([each["measured_ms"] <= each["budget_ms"] for each in warm if each["met"]])
        ),
        "pick_ms_median": float(np.median([each["pick_ms"] for each in warm])),
        "measured_over_expected_median": float(np.median([each["measured_ms"] / each["expected_ms"] for each in warm])),
        "configurations_used": float(len({tuple(each["widths"].items()) for each in frames})),
    }


def plot(frames: list[dict[str, Any]], tasks: tuple[str, ...], path: Path) -> None:
    """Budget and latency over time, and each task's expected metric below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2 + 1.4 * len(tasks)), layout="constrained")
    axes = figure.subplots(1 + len(tasks), 1, sharex=True)
    axes[0].step(range(len(frames)), [each["budget_ms"] for each in frames], label="budget", color="black")
    axes[0].plot([each["measured_ms"] for each in frames], ".", label="measured", markersize=3)
    axes[0].step(range(len(frames)), [each["expected_ms"] for each in frames], label="expected")
    axes[0].set_ylabel("ms")
    axes[0].set_ylim(0, 1.5 * max(each["budget_ms"] for each in frames))
    axes[0].legend(ncols=3, fontsize="small")
    for axis, task in zip(axes[1:], tasks, strict=True):
        axis.step(range(len(frames)), [each["metrics"][task] for each in frames])
        preferred = [each["preferred"] == task for each in frames]
        axis.fill_between(range(len(frames)), 0, 1, where=preferred, transform=axis.get_xaxis_transform(), alpha=0.15)
        axis.set_ylabel(task)
    axes[-1].set_xlabel("frame; shaded: the preferred task")
    figure.savefig(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `secateur export --to elastic` wrote, with latencies")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--configurations", type=int, default=50, help="to be timed one by one")
    parser.add_argument("--shape", default="1x3x64x64", help="of the model's input")
    parser.add_argument("--output", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
