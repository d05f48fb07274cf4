"""Sections of docs/results.md: latency and memory, predicted and measured."""

from __future__ import annotations

import statistics

from results_kit import Document, goal, section, table


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


@section("Soft cores: our predictor beside ZigZag", "cross_check.json")
def cross_check(document: Document) -> list[str]:
    def ratio(each: Document, figure: str) -> str:
        return f"{each[f'{figure}_zigzag'] / each[f'{figure}_ours']:.2f}"

    figures = ("busy", "cycles", "energy_mj")
    networks = [
        (
            name, f"{each['published_ms']:.2f}", f"{each['ours_ms']:.2f}",
            f"{each['zigzag_ms']:.2f} + {each['outside_ms']:.2f}", *(ratio(each, figure) for figure in figures),
        )
        for name, each in document["networks"].items()
    ]  # fmt: skip
    kinds = [
        (name, each["layers"], *(ratio(each, figure) for figure in figures)) for name, each in document["kinds"].items()
    ]
    ratios = ("busy cycles", "all cycles", "energy")
    return [
        f"`{document['target']}`, zigzag-dse {document['versions']['zigzag-dse']}. All predicted but the first column, "
        "which is published and which our constants were fitted to. ZigZag takes convolutions and products; the time "
        "to start and other operators are ours, added to it. Ratios are ZigZag over ours, of those layers.", "",
        *table(("network", "published, ms", "ours, ms", "ZigZag + rest, ms", *ratios), networks), "",
        *table(("kind of layer", "layers", *ratios), kinds),
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
    agreed = [f"{each['within_10_pct']:.0f} %" for each in document.get("measured_again", {}).values()]
    quiet, own = document["sessions"]["quiet"], document["left_out"]["interval_90_holds_pct"]
    states = [each["interval_90_holds_pct"] for each in document["sessions"].values()]
    return [
        f"{document['runtime']}; {document['operators']} operators and {document['networks']} networks were measured "
        "before. Below: variants of three networks that took no part, with nothing else running (quiet) and while "
        "other programs were at work (busy)."
        + (f" Measured again, {' and '.join(agreed)} were within 10 % of the first time." if agreed else ""), "",
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
    rows = [
        (
            row["network"], row["threads"], f"{row['onnxruntime_ms']['median']:.2f}", f"{row['tvm_ms']['median']:.2f}",
            f"{row['tvm_over_onnxruntime']['median']:.2f} ({row['tvm_over_onnxruntime']['low']:.2f}–"
            f"{row['tvm_over_onnxruntime']['high']:.2f})",
        )
        for row in document["results"]
    ]  # fmt: skip
    ratios = {(row["network"], row["threads"]): row["tvm_over_onnxruntime"]["median"] for row in document["results"]}
    slow = [f"{name} on {threads}" for (name, threads), ratio in ratios.items() if ratio > 1.05 and "ViT" not in name]
    vit = max(ratio for (name, _), ratio in ratios.items() if "ViT" in name)
    return [
        *table(("network", "threads", "ONNX Runtime, ms", "TVM, ms", "ratio"), rows), "",
        goal("parity on convolution nets within 5 %, on one and two threads", not slow,
             f"Not {', '.join(slow)}."),
        goal(f"≤ 1.5× on ViTs (worst: {vit:.2f}×)", vit <= 1.5),
    ]  # fmt: skip
