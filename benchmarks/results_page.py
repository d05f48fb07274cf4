"""docs/results.md from the committed results: every figure with its command, machine and spread, every goal judged.

    python benchmarks/results_page.py           # writes docs/results.md
    python benchmarks/results_page.py --check    # says whether it is up to date

A section reads one JSON file of benchmarks/results/ and gives Markdown. Whether a goal was met is computed from the
figures; why one was missed is written beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
HEAD = """# Results

Written by `python benchmarks/results_page.py` from the JSON files of `benchmarks/results/`, which hold every seed, the
machine and the versions. Latencies are measured where nothing else is said; what a model says is called *predicted*.
Δ_MTL is the mean relative change of the tasks' metrics on test data, positive for better.
"""

Document = dict[str, Any]
Section = Callable[[Document], list[str]]
SECTIONS: list[tuple[str, str, Section]] = []
"""(heading, pattern of files, what makes the text)."""


def section(heading: str, pattern: str) -> Callable[[Section], Section]:
    """Register what writes the section of the files that match."""

    def register(function: Section) -> Section:
        SECTIONS.append((heading, pattern, function))
        return function

    return register


def page(folder: Path = RESULTS) -> str:
    """The whole page."""
    parts = [HEAD]
    for heading, pattern, write in SECTIONS:
        files = sorted(folder.glob(pattern))
        if files:
            parts.append(f"## {heading}\n")
        for path in files:
            document = json.loads(path.read_text(encoding="utf-8"))
            parts += ["\n".join([origin(path, document), "", *write(document), ""])]
    return "\n".join(parts)


def origin(path: Path, document: Document) -> str:
    """Where a section's figures come from."""
    machine = document.get("machine") or document.get("benchmark", {}).get("machine", {})
    versions = document.get("versions") or machine.get("versions", {})
    parts = [f"`{document['command']}`"] if "command" in document else []
    parts += [f"{machine.get('cores', '?')} cores of an {machine['cpu']}"] if "cpu" in machine else []
    parts += [f"{name} {versions[name]}" for name in ("torch", "onnxruntime", "torch-pruning") if name in versions]
    return " · ".join([*parts, f"[JSON](../benchmarks/results/{path.name})"])


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]


def goal(text: str, met: bool, why: str = "") -> str:
    """One line that judges a goal."""
    return f"- Goal: {text}: **{'met' if met else 'missed'}**." + (f" {why}" if why and not met else "")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds."""
    if len(values) == 1:
        return f"{values[0]:+.{digits}f}"
    return f"{statistics.mean(values):+.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def pct(share: float) -> str:
    return f"{100 * share:.1f} %"


@section("The demo", "demo-*.json")
def demo(document: Document) -> list[str]:
    before, after = document["costs"]["before"], document["costs"]["after"]
    timed = document["benchmark"]["results"][0]
    metrics = document["metrics"]
    rows = [(name, f"{metrics['before'][name]:.4g}", f"{metrics['after'][name]:.4g}") for name in metrics["after"]]
    rows += [(name, f"{before[name]:,}", f"{after[name]:,}") for name in ("flops", "params", "peak_memory_bytes")]
    off = {name: 1 - after[name] / before[name] for name in ("flops", "params")}
    return [
        *table(("", "before", "after"), rows), "",
        f"Budget {', '.join(document['budget'])}; compression took {document['seconds']:.0f} s; "
        f"{timed['speedup_against']:.2f}× faster on {timed['backend']}.",
        goal("≥ 60 % of FLOPs and of parameters off", min(off.values()) >= 0.6),
        goal(f"Δ_MTL ≥ −1 % (here {metrics['delta_mtl']:+.2f} %)", metrics["delta_mtl"] >= -1),
        goal("compression in under four minutes", document["seconds"] < 240),
    ]  # fmt: skip


@section("PAGCP against peers, at equal FLOPs and equal fine-tuning", "pagcp-*.json")
def pagcp(document: Document) -> list[str]:
    settings, results = document["settings"], document["results"]
    means = {name: statistics.mean(run["delta_mtl"] for run in runs) for name, runs in results.items()}
    rows = [
        (
            name,
            spread([run["delta_mtl"] for run in runs]),
            pct(statistics.mean(run["flops_share"] for run in runs)),
            pct(statistics.mean(run["params_share"] for run in runs)),
            f"{statistics.mean(run['seconds'] for run in runs):.0f}",
        )
        for name, runs in results.items()
    ]
    best = max((name for name in means if name != "PAGCP"), key=lambda name: means[name])
    ours = [run["delta_mtl"] for run in results["PAGCP"]]
    theirs = [run["delta_mtl"] for run in results[best]]
    noise = (statistics.variance(ours) + statistics.variance(theirs)) ** 0.5 if len(ours) > 1 else float("nan")
    return [
        f"**{settings['workload']}** to {100 * settings['flops']:g} % of the FLOPs, {settings['epochs']} epochs of "
        f"fine-tuning, seeds {settings['seeds']}:", "",
        *table(("method", "Δ_MTL %, mean ± sd", "FLOPs left", "parameters left", "seconds"), rows), "",
        goal(
            f"better than the best peer ({best}): {means['PAGCP'] - means[best]:+.2f} points, where seeds alone make "
            f"± {noise:.2f}",
            means["PAGCP"] > means[best],
        ),
    ]  # fmt: skip


@section("PAGCP to a latency, against PAGCP to FLOPs", "latency_budget.json")
def latency_budget(document: Document) -> list[str]:
    rows, won = [], []
    for workload, found in document.items():
        for seed, run in enumerate(found["runs"]):
            for kind in ("latency", "flops"):
                each = run[kind]
                rows.append(
                    (
                        workload, seed, each["budget"], f"{each['delta_mtl']:+.2f}", pct(each["latency_share"]),
                        pct(each["flops_share"]),
                    )
                )  # fmt: skip
            won.append(run["latency"]["delta_mtl"] > run["flops"]["delta_mtl"])
    return [
        "Commands: " + ", ".join(f"`{found['command']}`" for found in document.values()) + ". On a machine that others "
        "used at the time; latencies of one row differ by several percent from another day's.", "",
        *table(("workload", "run", "budget", "Δ_MTL %", "latency left", "FLOPs left"), rows), "",
        goal(
            f"at equal latency, better than pruning by FLOPs ({sum(won)} of {len(won)} runs)", all(won),
            "[pagcp.md](pagcp.md) says what is known of the reasons.",
        ),
    ]  # fmt: skip


@section("What PAGCP's decisions cost", "oracle.json")
def oracle(document: Document) -> list[str]:
    rows, worst = [], (float("inf"), float("inf"))
    for name, found in document["results"].items():
        rows.append((name, "published loop", f"{found['published']['forward_flops'] / 1e9:,.0f}", "", "", ""))
        for label in ("exact", "confident"):
            each = found[label]
            rows.append(
                (
                    name, label, f"{each['forward_flops'] / 1e9:,.0f}", f"{each['fewer_flops']:.1f}×",
                    f"{each['faster']:.1f}×", f"{100 * each['same_decisions']:.0f} %",
                )
            )  # fmt: skip
        worst = (min(worst[0], found["confident"]["fewer_flops"]), min(worst[1], found["confident"]["faster"]))
    why = (
        "What is left is the first look at every candidate and the model that it is compared with: at least a fifth of "
        "the samples each, since fewer decided wrongly (2 of 7 groups in an earlier version)."
    )
    return [
        *table(("workload", "oracle", "forward GFLOPs", "fewer", "faster", "same decisions"), rows), "",
        goal(f"≥ 10× fewer forward FLOPs everywhere (least: {worst[0]:.1f}×)", worst[0] >= 10, why),
        goal(f"≥ 5× less time everywhere (least: {worst[1]:.1f}×)", worst[1] >= 5),
    ]  # fmt: skip


@section("Mending a cut before fine-tuning", "compensation.json")
def compensation(document: Document) -> list[str]:
    kinds = ("cut", "statistics", "solved")

    def mean(row: Document, kind: str) -> str:
        return f"{row[kind]['delta_mtl']:+.1f} %"

    return [
        f"{document['unit']}.", "",
        *table(
            ("workload", "channels gone", "criterion", "cut", "norms estimated", "solved as well"),
            (
                (row["workload"], pct(row["share"]), row["criterion"], *(mean(row, kind) for kind in kinds))
                for row in document["results"]
            ),
        ),
    ]  # fmt: skip


@section("Channel groups of published multi-task structures", "dataflow.json")
def dataflow(document: Document) -> list[str]:
    rows = [
        (
            name, row["ops"], f"{row['prunable']} of {row['groups']}", pct(row["share"]), f"{row['difference']:.0e}",
            f"{row['seconds']['groups']:.2f}",
        )
        for name, row in document["results"].items()
    ]  # fmt: skip
    slowest = max(row["seconds"]["groups"] for row in document["results"].values())
    return [
        *table(("network", "ops", "prunable groups", "of the parameters", "masked − cut", "seconds"), rows), "",
        goal(f"graphs as large as MTI-Net's in < 5 s (slowest here: {slowest:.2f} s)", slowest < 5),
    ]  # fmt: skip


@section("Channel groups of published networks, against torch-pruning", "coverage.json")
def coverage(document: Document) -> list[str]:
    names = {"tv": "torchvision classifiers", "timm": "timm, one model of every module"}
    rows, right = [], True
    for key, name in names.items():
        found = document["summary"][key]
        good = found["outcomes"].get("ok", 0)
        right = right and good == found["models"]
        rows.append((name, found["models"], good, pct(found["mean_share"]), found["peer_ok"]))
    return [
        *table(("models", "tried", "masked == cut", "of the parameters prunable", "peer"), rows), "",
        goal("zero wrong models, zero crashes", right),
    ]  # fmt: skip


@section("One elastic model for all widths", "slimmable-*.json")
def slimmable(document: Document) -> list[str]:
    first = document["runs"][0]
    lines = [
        f"**{document['workload']}**, {first['settings']['epochs']} epochs for all widths together; a separate model "
        f"had {first['peer_epochs']}"
        + (", at full width it is the original; " if first["full"] == "original" else "; ")
        + f"learning rate {first['settings']['lr']:g}.",
        "",
    ]  # fmt: skip
    ratios, better, searches = [], 0, 0
    rows = []
    for run in document["runs"]:
        volumes = zip(run["hypervolume"]["elastic"], run["hypervolume"]["separate"], strict=True)
        ratios.append([own / max(theirs, 1e-12) for own, theirs in volumes])
        for each, choice in zip(run["widths"], run["searched"], strict=True):
            deltas = [each.get(f"{name}_delta_mtl") for name in ("elastic", "separate", "pagcp")]
            shown = ("–" if delta is None else f"{delta:+.2f}" for delta in deltas)
            qualities = (f"{choice['uniform']:.3f}", f"{choice['searched']:.3f}")
            rows.append((run["seed"], f"{each['flops'] / 1e6:.1f}", *shown, *qualities))
            better, searches = better + (choice["searched"] >= choice["uniform"] - 1e-9), searches + 1
    least = min(run["flops_range"] for run in document["runs"])
    worst, means = min(map(min, ratios)), ", ".join(_ratio(each) for each in zip(*ratios, strict=True))
    head = ("seed", "MFLOPs", "elastic Δ_MTL %", "separate", "PAGCP", "uniform width, quality", "searched")
    return [
        *lines, *table(head, rows), "",
        goal(f"hypervolume ≥ 98 % of separate models within each width's FLOPs ({means})", worst >= 0.98),
        goal(f"≥ 16× range of FLOPs from one file ({least:.1f}×)", least >= 16),
        goal(f"what is searched is never worse than a uniform width ({better} of {searches})", better == searches),
    ]  # fmt: skip


def _ratio(found: Sequence[float]) -> str:
    mean = statistics.mean(found)
    return pct(mean) if mean < 10 else "more than ten times"


@section("A controller in the loop", "closed-loop*.json")
def closed_loop(document: Document) -> list[str]:
    found = document["summary"]
    stated = pct(found["error_stated"])
    return [
        f"{len(document['frames'])} frames of `scenes-elastic` on a simulated load; each task is preferred in turn.",
        "", "![budget, latency and expected metrics over time](closed-loop.svg)", "",
        *table(("", ""), ((key.replace("_", " "), f"{value:.3g}") for key, value in found.items())), "",
        goal(
            f"≥ 90 % of {found['checked']:.0f} configurations within the stated error of {stated} "
            f"({pct(found['within_stated'])})",
            found["within_stated"] >= 0.9,
        ),
        goal(f"a choice in < 1 ms ({found['pick_ms_median']:.2f} ms)", found["pick_ms_median"] < 1),
    ]  # fmt: skip


@section("What one task of a mixture of experts needs", "experts.json")
def experts(document: Document) -> list[str]:
    rows = [
        (
            row["way"], row["task"], row["seed"], pct(row["params_pct"] / 100), pct(row["flops_of_dense_pct"] / 100),
            f"{row['delta_mtl']:+.2f}", pct(row["miss_rate"]),
        )
        for row in document["rows"]
    ]  # fmt: skip
    by_way: dict[str, list[float]] = {}
    for row in document["rows"]:
        by_way.setdefault(row["way"], []).append(row["delta_mtl"])
    means = {way: statistics.mean(values) for way, values in by_way.items()}
    exact, both = ([row for row in document["rows"] if row["way"] == way] for way in ("exact", "experts,pagcp"))
    alone, off = (1 - max(row["flops_of_dense_pct"] for row in found) / 100 for found in (exact, both))
    most = max(row["params_pct"] for row in both) / 100
    worst = min(row["delta_mtl"] for row in both)
    head = ("way", "task", "seed", "parameters left", "FLOPs of the dense model", "Δ %", "misses on test data")
    return [
        *table(head, rows), "",
        goal(
            "extraction and channel pruning: ≥ 88 % of FLOPs off against all experts for all tasks, and ≥ 50 % of the "
            f"parameters, at Δ ≥ −1 % ({pct(off)} and {pct(1 - most)} at least, {worst:+.2f} % at worst)",
            off >= 0.88 and most <= 0.5 and worst >= -1,
        ),
        f"Extraction alone takes {pct(alone)} of the FLOPs off at least: dense blocks and the task's head stay.",
        goal(
            "better than removal by global usage and at random, at equal parameters ("
            + ", ".join(f"{way} {means[way]:+.2f} %" for way in ("contribution", "usage", "random")) + ")",
            means["contribution"] > max(means["usage"], means["random"]),
        ),
    ]  # fmt: skip


@section("Expert by expert against dense and masked", "experts_speed.json")
def experts_speed(document: Document) -> list[str]:
    kinds = ("dense", "sparse", "batched")
    head = ("what runs", *(f"{kind}, ms" for kind in kinds), "dense over sparse")
    rows = [
        (name, *(f"{row['ms'][kind]:.2f}" for kind in kinds), f"{row['dense_over']['sparse']:.2f}")
        for name, row in document["rows"].items()
    ]
    ratios = {name: row["dense_over"]["sparse"] for name, row in document["rows"].items()}
    small, least = ratios.pop("scenes-moe, top-2 of 16"), min(ratios.values())
    return [
        *table(head, rows), "",
        goal(f"faster at published sizes and sparsity ({least:.2f}× at least)", least > 1),
        f"In torch a model as small as `scenes-moe` gains nothing ({small:.2f}×): calls cost more than products.",
    ]  # fmt: skip


@section("A bank of single-task models", "bank.json")
def bank(document: Document) -> list[str]:
    head = ("task loaded", "needed, MB", "read, MB", "resident so far, MB", "as separate models, MB")
    kinds = ("needed_bytes", "read_bytes", "resident_bytes", "separate_bytes")
    rows = [(row["task"], *(f"{row[kind] / 1e6:.2f}" for kind in kinds)) for row in document["rows"]]
    return [*table(head, rows), "", f"Stored: {document['stored_bytes'] / 1e6:.2f} MB."]


@section("An accelerator that works expert by expert (predicted)", "edge_moe.json")
def edge_moe(document: Document) -> list[str]:
    rows = [
        (name, f"{row['latency_ms']:.1f}", f"{row['energy_mj']:.0f}", f"{row['weight_bytes'] / 1e6:.1f}")
        for name, row in document["predicted"].items()
    ]
    ratios = document["ratios"]
    return [
        *table(("order", "latency, ms", "energy, mJ", "weights read, MB"), rows), "",
        f"Against token by token: {ratios['latency']:.1f}× faster, {ratios['energy']:.1f}× less energy, and "
        f"{ratios['on_chip_bytes_of_resident_experts']:.1f}× less on-chip memory than all experts resident.",
    ]  # fmt: skip


@section("Latency predicted from published measurements", "latency-published.json")
def published(document: Document) -> list[str]:
    names = {"cpu": "phone CPUs (ncnn)", "vulkan": "phone GPUs (ncnn, Vulkan)", "soft_core": "FPGA soft cores (DPU)"}
    rows = [
        (
            names[key], document[key]["predictions"], f"{document[key]['median_error_pct']:.1f} %",
            f"{document[key]['within_10_pct']:.1f} %",
            f"{document[key]['interval_90_holds_pct']:.1f} %" if "interval_90_holds_pct" in document[key] else "–",
        )
        for key in names
    ]  # fmt: skip
    cpu = document["cpu"]
    hard = cpu["threads_5+"]
    why = (
        f"On one thread {cpu['threads_1']['within_10_pct']:.0f} % lie within 10 %, on five and more (fast and "
        f"slow cores at once) {hard['within_10_pct']:.0f} %."
    )
    return [
        "The network left out is unseen on every device.", "",
        *table(("devices", "predictions", "median error", "within 10 %", "90 % interval holds"), rows), "",
        goal("phone CPUs, median ≤ 8 %", cpu["median_error_pct"] <= 8),
        goal("phone CPUs, ≥ 65 % within 10 %", cpu["within_10_pct"] >= 65, why),
        goal("phone GPUs, median ≤ 12 %", document["vulkan"]["median_error_pct"] <= 12, "Why is not known."),
        goal("DPU boards, median ≤ 10 %", document["soft_core"]["median_error_pct"] <= 10),
        goal("90 % intervals cover 85–95 %", 85 <= cpu["interval_90_holds_pct"] <= 95),
    ]  # fmt: skip


@section("Latency predicted from operators measured here", "latency-calibrated-*.json")
def calibrated(document: Document) -> list[str]:
    found = {"the calibration's own, left out": document["left_out"]}
    for state, each in document["sessions"].items():
        found |= {f"{family}, {state}": figures for family, figures in each["families"].items()}
        found[f"all three, {state}"] = each
    if busy := document.get("calibrated_busy"):
        found["calibrated while busy: its own, left out"] = busy["left_out"]
        found |= {f"calibrated while busy: all three, {state}": each for state, each in busy["sessions"].items()}
    rows = [
        (
            name, each["predictions"], f"{each['median_error_pct']:.1f} %", f"{each['within_10_pct']:.0f} %",
            f"{each['interval_90_holds_pct']:.0f} %" if "interval_90_holds_pct" in each else "",
        )
        for name, each in found.items()
    ]  # fmt: skip
    quiet, own = document["sessions"]["quiet"], document["left_out"]["interval_90_holds_pct"]
    states = [each["interval_90_holds_pct"] for each in document["sessions"].values()]
    return [
        f"{document['runtime']}; {document['operators']} operators measured hours before, {document['networks']} "
        "networks while nothing else ran. Below: variants of three networks that took no part, in the same state "
        "(quiet) and while other programs were at work (busy).", "",
        *table(("networks", "predictions", "median error", "within 10 %", "90 % interval holds"), rows), "",
        goal(f"≥ 90 % within 10 % ({quiet['within_10_pct']:.0f} %)", quiet["within_10_pct"] >= 90),
        goal(f"90 % intervals cover 85–95 % of networks left out ({own:.0f} %)", 85 <= own <= 95),
        goal(
            f"and 85 % or more of unseen networks in either state ({min(states):.0f} %)", min(states) >= 85,
            "Large weights take longer to come from memory while others use it, which the calibration did not see.",
        ),
    ]  # fmt: skip


@section("What these predictions were compared with", "latency-variants-*.json")
def variants(document: Document) -> list[str]:
    rows = [
        (state, len(times), f"{statistics.median(times):.2f} ms", f"{min(times):.2f} to {max(times):.2f} ms")
        for state, times in document["sessions"].items()
    ]
    return [f"{document['runtime']}:", "", *table(("machine", "networks", "median", "range"), rows)]


@section("Peak memory, predicted against what ONNX Runtime takes", "memory.json")
def memory(document: Document) -> list[str]:
    families: dict[str, list[float]] = {}
    for row in document["results"]:
        off = 100 * (row["predicted_activations"] / row["measured_activations"] - 1)
        families.setdefault(row["network"], []).append(off)
    rows = [
        (name, len(off), f"{statistics.median(off):+.0f} %", f"{min(off):+.0f} to {max(off):+.0f} %")
        for name, off in families.items()
    ]
    found, held = document["activations"], document["held"]
    return [
        *table(("networks", "tried", "predicted activations, median error", "range"), rows), "",
        f"All: median size of the error {found['median_error_pct']:.0f} %, bias {found['bias_error_pct']:+.0f} %. "
        f"After loading, a process holds {held['times_weights']:.2f} times the weights, and "
        f"{held['fixed_bytes'] / 1e6:.1f} MB.",
    ]  # fmt: skip


@section("TVM with our schedules against ONNX Runtime", "tvm.json")
def tvm(document: Document) -> list[str]:
    single = [row for row in document["results"] if row["threads"] == 1]
    rows = [
        (
            row["network"], f"{row['onnxruntime_ms']['median']:.2f}", f"{row['tvm_ms']['median']:.2f}",
            f"{row['tvm_over_onnxruntime']['median']:.2f} ({row['tvm_over_onnxruntime']['low']:.2f}–"
            f"{row['tvm_over_onnxruntime']['high']:.2f})",
        )
        for row in single
    ]  # fmt: skip
    worst = max(row["tvm_over_onnxruntime"]["median"] for row in single)
    return [
        "One thread; on two threads the machine was not free, and those rows are not shown.", "",
        *table(("network", "ONNX Runtime, ms", "TVM, ms", "ratio"), rows), "",
        goal(f"parity on convolution nets within 5 %, ≤ 1.5× on ViTs (worst: {worst:.2f}×)", worst <= 1.05),
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="do not write; exit code 1 when the page is out of date")
    text = page()
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
