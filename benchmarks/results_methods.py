"""Sections of docs/results.md: elastic widths and experts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from results_kit import DOCS, Document, goal, pct, section, table


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
    ratios, found, better, searches = [], [], 0, 0
    rows = []
    for run in document["runs"]:
        volumes = run["hypervolume"]
        for kind, shares in (("elastic", ratios), ("searched", found)):
            if kind in volumes:
                pairs = zip(volumes[kind], volumes["separate"], strict=True)
                shares.append([own / max(theirs, 1e-12) for own, theirs in pairs])
        for each, choice in zip(run["widths"], run["searched"], strict=True):
            deltas = [each.get(f"{name}_delta_mtl") for name in ("elastic", "searched", "separate", "pagcp")]
            shown = ("–" if delta is None else f"{delta:+.2f}" for delta in deltas)
            qualities = (f"{choice['uniform']:.3f}", f"{choice['searched']:.3f}")
            rows.append((run["seed"], f"{each['flops'] / 1e6:.1f}", *shown, *qualities))
            better, searches = better + (choice["searched"] >= choice["uniform"] - 1e-9), searches + 1
    least = min(run["flops_range"] for run in document["runs"])
    worst, means = min(map(min, ratios)), _means(ratios)
    head = ("seed", "MFLOPs", "uniform Δ_MTL %", "searched", "separate", "PAGCP", "uniform width, quality", "searched")
    picture = f"slimmable-{document['workload']}.svg"
    drawn = [f"![hypervolume of what the search finds, by budget]({picture})", ""] if (DOCS / picture).exists() else []
    return [
        *lines, *table(head, rows), "", *drawn,
        goal(f"hypervolume ≥ 98 % of separate models within each width's FLOPs ({means})", worst >= 0.98),
        *([f"- What is searched within those FLOPs, beside them: {_means(found)}."] if found else []),
        goal(
            f"≥ 16× range of FLOPs from one file ({least:.1f}×)", least >= 16,
            "Where there is attention, the stream stays whole (docs/slimmable.md).",
        ),
        goal(f"what is searched is never worse than a uniform width ({better} of {searches})", better == searches),
    ]  # fmt: skip


def _means(shares: Sequence[Sequence[float]]) -> str:
    """Of each width, the mean over seeds."""
    return ", ".join(_ratio(each) for each in zip(*shares, strict=True))


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
