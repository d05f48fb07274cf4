"""How far predicted latencies can be trusted: published devices, soft cores, and this machine's calibration.

python benchmarks/latency.py published      # leaves networks out; writes results/latency-published.json, plots
python benchmarks/latency.py variants cpu   # measures 100 variants of three networks, on a quiet machine or --busy
python benchmarks/latency.py calibrated cpu # predicts them from what `secateur calibrate cpu` (or mobile) learned
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

from secateur.core import machine
from secateur.core.files import write_json
from secateur.profiles.latency import terms
from secateur.profiles.latency.estimate import Estimate
from secateur.profiles.latency.fit import Fold, data, leave_one_out
from secateur.profiles.latency.fit_soft_core import leave_one_out as leave_cores_out
from secateur.profiles.latency.kernels import KernelModel
from secateur.profiles.latency.mixture import adapt, fit
from secateur.profiles.latency.published import beliefs, known
from secateur.profiles.latency.read import read_onnx_bytes
from secateur.targets.calibration.meters import METERS
from secateur.targets.calibration.run import Calibration, read
from secateur.targets.calibration.sketch import Sketch, Value

HERE = Path(__file__).parent
VARIANTS = 100


def summary(errors: np.ndarray) -> dict[str, float]:
    """Of relative errors: median in percent, and shares within 10 and 20 %."""
    absolute = np.abs(errors[np.isfinite(errors)])
    return {
        "predictions": int(absolute.size),
        "median_error_pct": round(100 * float(np.median(absolute)), 2),
        "within_10_pct": round(100 * float(np.mean(absolute < 0.1)), 1),
        "within_20_pct": round(100 * float(np.mean(absolute < 0.2)), 1),
    }


def of_fold(fold: Fold) -> dict[str, object]:
    known = np.isfinite(fold.log_ms)
    errors = np.where(known, fold.errors, np.nan)
    found: dict[str, object] = {**summary(errors), "interval_90_holds_pct": round(100 * fold.coverage(), 1)}
    found["by_network"] = {
        name: {**summary(row), "bias_pct": round(100 * float(np.nanmedian(row)), 1)}
        for name, row in zip(fold.names, errors, strict=True)
    }
    if fold.settings[0].backend == "cpu":
        threads = np.array([each.threads for each in fold.settings])
        for label, chosen in (("1", threads == 1), ("2-4", (threads > 1) & (threads < 5)), ("5+", threads > 4)):
            found[f"threads_{label}"] = summary(errors[:, chosen])
    return found


def new_devices(count: int, seed: int = 0) -> dict[str, float]:
    """A device as new: the population is fitted without it, its setting found from `count` networks that were measured
    on it, and all others are the test."""
    settings, _, each, log_ms, traits = data("cpu")
    random, errors = np.random.default_rng(seed), []
    for index in range(0, len(settings), 6):
        others = [at for at, other in enumerate(settings) if other.device != settings[index].device]
        population = fit(each[:, others], log_ms[:, others], traits[others], beliefs("cpu"))
        have = np.flatnonzero(np.isfinite(log_ms[:, index]))
        given = random.choice(have, count, replace=False)
        rest = np.setdiff1d(have, given)
        mine = each[:, [index]]
        device = adapt(population, mine[given], log_ms[given][:, [index]], traits[[index]], beliefs("cpu"))
        errors += np.expm1(device.predict(mine[rest])[:, 0] - log_ms[rest, index]).tolist()
    return summary(np.array(errors))


def chosen_by_half(halves: int = 300) -> dict[str, object]:
    """What is left of the accuracy when the two constants of the CPU's terms that were found by trial are chosen by
    half of the networks, and judged on the other half; means over random halves."""
    tried, off = [(idle, slow) for idle in (0.0, 0.3, 0.6, 1.0) for slow in (1.0, 1.75, 2.5)], []
    for idle, slow in tried:
        with patch.multiple(terms, _IDLE=idle, _UNALIGNED=slow):
            known.cache_clear()
            fold = leave_one_out("cpu")
        off.append(np.where(np.isfinite(fold.log_ms), np.abs(fold.errors), np.nan))
    known.cache_clear()
    random, within, median, picked = np.random.default_rng(0), [], [], []
    for _ in range(halves):
        mixed = random.permutation(len(off[0]))
        mine, rest = np.array_split(mixed, 2)
        best = max(range(len(off)), key=lambda at: float(np.mean(off[at][mine][np.isfinite(off[at][mine])] < 0.1)))
        found = off[best][rest][np.isfinite(off[best][rest])]
        within.append(np.mean(found < 0.1))
        median.append(np.median(found))
        picked.append(tried[best])
    return {
        "halves": halves,
        "within_10_pct": round(100 * float(np.mean(within)), 1),
        "median_error_pct": round(100 * float(np.mean(median)), 2),
        "picked": {f"idle {idle}, unaligned {slow}": picked.count((idle, slow)) for idle, slow in tried},
    }


def run_published() -> None:
    document: dict[str, object] = {"command": "python benchmarks/latency.py published"}
    for backend in ("cpu", "vulkan"):
        fold = leave_one_out(backend)  # type: ignore[arg-type]
        document[backend] = of_fold(fold)
        plot(fold, HERE.parent / "docs" / f"latency-{backend}.svg")
    document["constants_chosen_by_half_of_the_networks"] = chosen_by_half()
    rows, predicted = leave_cores_out()
    document["soft_core"] = summary(predicted / np.array([row.ms for row in rows]) - 1)
    document["new_device"] = {f"{count}_networks_measured": new_devices(count) for count in (1, 3, 5)}
    write_json(HERE / "results" / "latency-published.json", document)
    for name in ("cpu", "vulkan", "soft_core", "new_device"):
        print(name, document[name] if name != "cpu" else {k: v for k, v in document[name].items() if k != "by_network"})  # type: ignore[attr-defined]


def plot(fold: Fold, path: Path) -> None:
    """Errors of each network over all settings, as boxes."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "secateur"
    from matplotlib import pyplot as plt

    errors = [100 * row[np.isfinite(known)] for row, known in zip(fold.errors, fold.log_ms, strict=True)]
    order = np.argsort([np.median(np.abs(each)) for each in errors])
    figure, axis = plt.subplots(figsize=(7, 6), layout="constrained")
    axis.boxplot([errors[index] for index in order], orientation="horizontal", whis=(5, 95), showfliers=False)
    axis.set_yticks(range(1, len(order) + 1), [fold.names[index] for index in order], fontsize=8)
    axis.axvspan(-10, 10, alpha=0.15)
    axis.axvline(0, linewidth=0.5)
    axis.set_xlim(-70, 70)
    axis.set_xlabel("error of the prediction, % (box: half of the devices; whiskers: 90 %)")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def residual(width: Callable[[int], int]) -> Sketch:
    """A ResNet-18 at 96 pixels, every width as asked."""
    sketch = Sketch((3, 96, 96))
    x = sketch.pool(sketch.conv(sketch.input, width(48), 7, 2, relu=True))
    for stage, channels in enumerate((64, 128, 192, 320)):
        outs = width(channels)
        for block in range(2):
            stride = 2 if stage and not block else 1
            hidden = sketch.conv(x, width(channels), 3, stride, relu=True)
            y = sketch.conv(hidden, outs, 3)
            x = y if block == 0 else sketch.activation(sketch.add(y, x), "relu")
    return sketch.finish(sketch.linear(sketch.pool(x, whole=True), 100))


def mobile(width: Callable[[int], int]) -> Sketch:
    """A MobileNetV3-like network at 128 pixels."""
    sketch = Sketch((3, 128, 128))
    x = sketch.conv(sketch.input, width(16), 3, 2, relu=True)
    for channels, repeats, kernel, stride in ((24, 2, 3, 2), (40, 3, 5, 2), (96, 3, 3, 2), (160, 2, 5, 2)):
        outs = width(channels)
        for block in range(repeats):
            hidden = width(5 * channels)
            y: Value = sketch.activation(sketch.conv(x, hidden), "hswish")
            y = sketch.conv(y, hidden, kernel, stride if block == 0 else 1, depthwise=True)
            y = sketch.conv(sketch.activation(y, "hswish"), outs)
            x = sketch.add(y, x) if block else y
    return sketch.finish(sketch.linear(sketch.pool(x, whole=True), 100))


def dense(width: Callable[[int], int]) -> Sketch:
    """A SqueezeNet-like network at 160 pixels: concatenated branches, no shortcuts."""
    sketch = Sketch((3, 160, 160))
    x = sketch.pool(sketch.conv(sketch.input, width(64), 3, 2, relu=True))
    for squeeze, expand, pooled in (
        (16, 64, False),
        (24, 96, True),
        (48, 160, False),
        (64, 224, True),
        (80, 256, False),
    ):
        hidden = sketch.conv(x, width(squeeze), relu=True)
        one, three = sketch.conv(hidden, width(expand), relu=True), sketch.conv(hidden, width(expand), 3, relu=True)
        x = sketch.concat(one, three)
        x = sketch.pool(x) if pooled else x
    return sketch.finish(sketch.linear(sketch.pool(x, whole=True), 100))


def variants() -> list[tuple[str, Sketch]]:
    """(family, network) of each: networks that no calibration draws, at widths that pruning or slimming leaves."""
    random, found = np.random.default_rng(20), []
    for index in range(VARIANTS):
        family = (residual, mobile, dense)[index % 3]
        pruned = index % 2 == 1  # any count, or multiples of eight as slimmable widths have

        def width(channels: int, pruned: bool = pruned) -> int:
            kept = random.uniform(0.3, 1.0) * channels
            return max(4, round(kept)) if pruned else max(8, 8 * round(kept / 8))

        found.append((family.__name__, family(width)))
    return found


def run_variants(target: str, state: str) -> None:
    """Measured now, beside what was measured with the same runtime in other states of the machine."""
    meter, path = METERS[target](1), HERE / "results" / f"latency-variants-{target}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = (before.get("runtime"), before.get("machine")) == (meter.version, machine.describe())
    sessions = before.get("sessions", {}) if same else {}
    sessions[state] = [round(meter.model(sketch), 4) for _, sketch in variants()]
    document = {
        "command": f"python benchmarks/latency.py variants {target}", "machine": machine.describe(),
        "runtime": meter.version, "sessions": sessions,
    }  # fmt: skip
    write_json(path, document)


def run_calibrated(target: str, busy: bool) -> None:
    """What the calibration of now predicts; one that was made while other programs ran stands beside the quiet one."""
    kept = json.loads((HERE / "results" / f"latency-variants-{target}.json").read_text(encoding="utf-8"))
    path, calibration = HERE / "results" / f"latency-calibrated-{target}.json", read(target)
    if kept["runtime"] != calibration.version:
        raise SystemExit(f"the variants were measured with {kept['runtime']}: measure them again")
    model = calibration.model()
    names, found = zip(*((name, model.predict(read_onnx_bytes(each.onnx()))) for name, each in variants()), strict=True)
    figures: dict[str, object] = {
        "operators": len(calibration.operators), "networks": len(calibration.models), "left_out": left_out(calibration),
        "sessions": {state: session(names, found, np.array(ms)) for state, ms in kept["sessions"].items()},
        "measured_again": again(kept["sessions"]),
        "predicted_ms": [round(each.ms, 4) for each in found],
    }  # fmt: skip
    head = {
        "command": f"python benchmarks/latency.py calibrated {target}", "machine": kept["machine"],
        "runtime": calibration.version,
    }  # fmt: skip
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    both = {**before, "calibrated_busy": figures} if busy else {**before, **figures}
    write_json(path, {**both, **head})
    print(json.dumps({key: value for key, value in figures.items() if key != "predicted_ms"}, indent=1))


def again(sessions: dict[str, list[float]]) -> dict[str, object]:
    """How far the variants' own measurements agree with those of the first quiet session: a prediction can hardly do
    better."""
    return {
        state: summary(np.array(times) / np.array(sessions["quiet"]) - 1)
        for state, times in sessions.items()
        if state not in ("quiet", "busy")
    }


def session(names: Sequence[str], found: Sequence[Estimate], measured: np.ndarray) -> dict[str, object]:
    """Errors over all variants and family by family, and how many lie in their intervals."""
    errors = np.array([each.ms for each in found]) / measured - 1
    inside = [each.low <= ms <= each.high for each, ms in zip(found, measured, strict=True)]
    families = {name: summary(errors[[each == name for each in names]]) for name in sorted(set(names))}
    low, high = (np.median([getattr(each, end) / each.ms - 1 for each in found]) for end in ("low", "high"))
    return {
        **summary(errors), "interval_90_holds_pct": round(100 * float(np.mean(inside)), 1),
        "interval_90_pct": [round(100 * float(low)), round(100 * float(high))], "families": families,
    }  # fmt: skip


def left_out(calibration: Calibration, folds: int = 8) -> dict[str, float]:
    """The calibration's own networks, predicted with their intervals by what the others teach."""
    operators, models = KernelModel.fit(calibration.operators), list(calibration.models.values())
    errors, inside = [], []
    for fold in range(folds):
        model = operators.with_models([each for index, each in enumerate(models) if index % folds != fold])
        for network, times in models[fold::folds]:
            found = model.predict(network)
            errors += [found.ms / ms - 1 for ms in times]
            inside += [found.low <= ms <= found.high for ms in times]
    return {**summary(np.array(errors)), "interval_90_holds_pct": round(100 * float(np.mean(inside)), 1)}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["published", "variants", "calibrated"])
    parser.add_argument("target", nargs="?", default="cpu", choices=sorted(METERS))
    parser.add_argument("--busy", action="store_true", help="other programs are (or were, while calibrating) at work")
    parser.add_argument("--state", help="a name for these measurements of the variants, instead of quiet or busy")
    given = parser.parse_args(arguments)
    if given.what == "published":
        run_published()
    elif given.what == "variants":
        run_variants(given.target, given.state or ("busy" if given.busy else "quiet"))
    else:
        run_calibrated(given.target, given.busy)


if __name__ == "__main__":
    main(sys.argv[1:])
