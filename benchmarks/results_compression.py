"""Sections of docs/results.md: pruning, its costs, and what can be pruned."""

from __future__ import annotations

import statistics

from results_kit import Document, goal, pct, section, spread, table


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
        goal("compression in under four minutes", document["seconds"] < 240,
             "The time is that of two cores, and depends on them: see the runs beside this one."),
    ]  # fmt: skip


@section("Sixty percent off", "proof.json")
def proof(document: Document) -> list[str]:
    rows, short = [], []
    for name, runs in document["results"].items():
        deltas = [run["delta_mtl"] for run in runs]
        left = [max(run[key] for run in runs) for key in ("flops_share", "params_share")]
        met = max(left) <= 0.4 and statistics.mean(deltas) >= -1
        short += [] if met else [name]
        rows.append(
            (name, seeds_of(runs), runs[0]["epochs"], runs[0]["saliency"], *map(pct, left), spread(deltas),
             f"{min(deltas):+.2f}", "yes" if met else "no")
        )  # fmt: skip
    commands = {name: runs[0]["command"] for name, runs in document["results"].items()}
    return [
        "Pruned to `flops<=40%,params<=40%`, Δ_MTL on the test split; mean ± sd over seeds, and the worst of them:", "",
        *table(("workload", "seeds", "epochs", "channels by", "FLOPs left", "parameters left", "Δ_MTL %", "worst",
                "≥ −1 %"), rows), "",
        goal("≥ 60 % of FLOPs and of parameters off at a mean Δ_MTL ≥ −1 %, each", not short,
             f"Not on {', '.join(short)}."), "",
        "Made by (first seed):", "", *(f"- `{command}`" for command in commands.values()),
    ]  # fmt: skip


def seeds_of(runs: list[Document]) -> str:
    return ", ".join(str(run["seed"]) for run in runs)


@section("The time that sixty percent save", "speedup.json")
def speedup(document: Document) -> list[str]:
    results = document["results"]
    time, lines = [], list[str]()
    for name, found in results.items():
        left, reached = (found["flops_share"], found["params_share"]), found["speedup"] * found["flops_share"]
        ms = [f"{each:.2f}" for each in found["ms"]]
        time.append((name, *ms, f"{found['speedup']:.2f}×", f"{1 / left[0]:.2f}×", f"{reached:.2f}"))
        lines += [*beyond(name, found), ""] if reached < 0.8 else []
    slow = [name for name, *_, share in time if float(share) < 0.8]
    return [
        "ONNX Runtime, one thread, in turns with the original:", "",
        *table(("workload", "ms before", "ms after", "faster", "FLOPs ratio", "of the ratio"), time), "",
        goal("at least 0.8 of the FLOPs ratio, each", not slow, f"Not on {', '.join(slow)}: by layer below."), "",
        *lines,
    ]  # fmt: skip


def beyond(name: str, found: Document, most: int = 5) -> list[str]:
    """Where the time goes that a model takes beyond its share of FLOPs."""
    layers = sorted(found["layers"], key=lambda layer: -sum(layer["beyond"].values()))
    by_reason = {
        reason: sum(layer["beyond"].get(reason, 0.0) for layer in layers)
        for reason in ("allocation", "narrow", "without FLOPs")
    }
    total = sum(by_reason.values())
    rows = [
        (
            layer["name"], layer["kind"],
            pct(layer["flops"][1] / layer["flops"][0]) if layer["flops"][0] else "–",
            *(f"{ms:.3f}" for ms in layer["ms"]), f"{sum(layer['beyond'].values()):.3f}",
        )
        for layer in layers[:most]
    ]  # fmt: skip
    return [
        f"**{name}**: its layers take {total:.2f} ms more than their share of FLOPs: "
        f"{by_reason['allocation']:+.2f} ms since what was cut was not what takes time, {by_reason['narrow']:+.2f} ms "
        f"since narrow layers take longer per FLOP, {by_reason['without FLOPs']:+.2f} ms in operators without FLOPs "
        f"(by the profiler, which adds to each operator: it sees {sum(layer['ms'][1] for layer in layers):.2f} ms). "
        f"The {most} that take most beyond it:", "",
        *table(("layer", "operator", "FLOPs left", "ms before", "ms after", "ms beyond"), rows),
    ]  # fmt: skip


@section("PAGCP against peers, at equal FLOPs and equal fine-tuning", "pagcp-*.json")
def pagcp(document: Document) -> list[str]:
    settings = document["settings"]
    begun = {name: runs for name, runs in document["results"].items() if runs}  # the benchmark may have been stopped
    seeds = settings["seeds"][: min(map(len, begun.values()))]
    results = {name: runs[: len(seeds)] for name, runs in begun.items()}
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
    best = max((name for name in means if not name.startswith("PAGCP")), key=lambda name: means[name])
    ahead = f"{means['PAGCP'] - means[best]:+.2f} points"
    return [
        f"**{settings['workload']}** to {100 * settings['flops']:g} % of the FLOPs, {settings['epochs']} epochs of "
        f"fine-tuning, seeds {seeds}:", "",
        *table(("method", "Δ_MTL %, mean ± sd", "FLOPs left", "parameters left", "seconds"), rows), "",
        goal(
            f"better than the best peer ({best}): {ahead}, where seeds alone make ± {noise(results, best):.2f}",
            means["PAGCP"] > means[best],
        ) if len(seeds) > 1 else f"To the best peer ({best}): {ahead}; one seed, so nothing is judged by it.",
    ]  # fmt: skip


def noise(results: dict[str, list[Document]], best: str) -> float:
    """The standard deviation over seeds of the difference of PAGCP and its best peer."""
    spreads = (statistics.variance([run["delta_mtl"] for run in results[name]]) for name in ("PAGCP", best))
    return sum(spreads) ** 0.5


@section("What each part of PAGCP's decisions brings", "pagcp_parts-*.json")
def pagcp_parts(document: Document) -> list[str]:
    settings, results = document["settings"], document["results"]
    rows = [
        (
            name,
            spread([run["delta_mtl"] for run in runs]),
            pct(statistics.mean(run["flops_share"] for run in runs)),
            pct(statistics.mean(run["params_share"] for run in runs)),
            smallest(runs[0]["widths"]),
        )
        for name, runs in results.items()
    ]
    rates = ", ".join(f"{task} {rate:.1f}" for task, rate in document["exchange_rates"].items())
    return [
        f"**{settings['workload']}** to {100 * settings['flops']:g} % of the FLOPs, {settings['epochs']} epochs, seeds "
        f"{settings['seeds']}. To lose all of its metric, a task's loss rises by so many times itself: {rates}.", "",
        *table(("variant", "Δ_MTL %", "FLOPs left", "parameters left", "smallest share of a group"), rows),
    ]  # fmt: skip


def smallest(widths: dict[str, list[int]]) -> str:
    """The group that keeps the smallest share of its channels."""
    name = min(widths, key=lambda each: widths[each][0] / widths[each][1])
    return f"{widths[name][0]} of {widths[name][1]}, {name}"


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
        "What is left is one pass of the original model, and the two candidates on either side of each limit: where "
        "one lies close to it, most samples are needed, since fewer decide wrongly."
    )
    left = [name for name in ("digits", "multifashion", "scenes") if name not in document["results"]]
    where = "on these workloads" if left else "everywhere"
    return [
        *table(("workload", "oracle", "forward GFLOPs", "fewer", "faster", "same decisions"), rows), "",
        goal(f"≥ 10× fewer forward FLOPs {where} (least: {worst[0]:.1f}×)", worst[0] >= 10, why),
        goal(f"≥ 5× less time {where} (least: {worst[1]:.1f}×)", worst[1] >= 5),
        *([f"Not run: {', '.join(left)}, so that the goals, which are for every workload, stay open."] if left else []),
    ]  # fmt: skip


@section("Mending a cut, before and after fine-tuning", "compensation.json")
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
        "", "After fine-tuning by the default recipe, mean ± sd over seeds:", "",
        *table(
            ("workload", "channels gone", "criterion", "epochs", "from the cut", "from the solved"),
            (
                (row["workload"], pct(row["share"]), row["criterion"], row["epochs"],
                 *(f"{spread(row[kind])} %" for kind in ("cut", "solved")))
                for row in document["fine_tuned"]
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


@section("Channel groups of models of other repositories", "coverage_repositories.json")
def repositories(document: Document) -> list[str]:
    rows, right = [], True
    for name, found in document["summary"].items():
        good = found["outcomes"].get("ok", 0)
        right = right and good == found["models"]
        rows.append((name, found["models"], good, pct(found["mean_share"])))
    return [
        *table(("repository", "tried", "masked == cut", "of the parameters prunable"), rows), "",
        "Parameters that no output depends on (deep stages of an encoder of which a decoder reads the first ones) "
        "count as not prunable; `--remove-dead` takes them out.", "",
        goal("zero wrong models, zero crashes", right),
    ]  # fmt: skip
