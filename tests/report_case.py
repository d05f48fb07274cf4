"""Made-up reports for the tests: plausible in shape, and no figure of them was ever measured."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from secateur.core.bundle import Artefact, CostsEntry, Manifest, Point, TaskEntry
from secateur.core.costs import Latency, LayerProfile, Profile
from secateur.profiles.report import Report, Sample

METRICS = {
    "segmentation": ("higher", 0.8123),
    "depth": ("lower", 0.0871),
    "normals": ("lower", 14.2),
    "edges": ("higher", 0.701),
}
GAINS = {"segmentation": 0.004, "depth": -0.021, "normals": -0.006, "edges": -0.009}
MODULES = [
    f"{part}.layer{stage}.{block}.conv{conv}"
    for part, stage, block, conv in itertools.product(("encoder", *METRICS), (1, 2, 3), (0, 1), (1, 2))
]


@dataclass(frozen=True)
class LayerCost:
    name: str
    kind: str
    flops: int


def costs(share: float) -> CostsEntry:
    flops = int(412_000_000 * share)
    return CostsEntry(
        flops=flops,
        macs=flops // 2,
        params=int(1_240_000 * share),
        peak_memory_bytes=int(7_900_000 * share),
        size_bytes=int(4_980_000 * share),
    )


def metrics(strength: float = 1.0) -> dict[str, float]:
    signs = {name: 1 if better == "higher" else -1 for name, (better, _) in METRICS.items()}
    return {name: value * (1 + signs[name] * strength * GAINS[name]) for name, (_, value) in METRICS.items()}


def manifest(**changes: object) -> Manifest:
    points = [
        Point(
            weights=f"points/{index:02d}/weights.safetensors",
            channels=f"points/{index:02d}/channels.json",
            costs=costs(share),
            metrics=metrics(strength),
            delta_mtl=-0.8 * strength,
        )
        for index, (share, strength) in enumerate([(0.85, 0.1), (0.7, 0.25), (0.55, 0.6), (0.38, 1.0)])
    ]
    artefact = Artefact(
        format="onnx", path="artefacts/model.onnx", max_abs=3.1e-6, mean_abs=2.2e-7, metrics=metrics(), samples=64
    )
    document = {
        "method": "pagcp",
        "workload": "scenes",
        "reference": "scenes",
        "tasks": [TaskEntry(name=name, better=better) for name, (better, _) in METRICS.items()],
        "budget": ["flops<=40%"],
        "tolerance": "1%, depth=3%",
        "budget_met": True,
        "before": costs(1.0),
        "metrics_before": metrics(0.0),
        "points": points,
        "chosen": 3,
        "artefacts": [artefact],
        "oracle": {"forward_flops": 2.1e13, "published_loop_forward_flops": 1.9e14},
        "settings": {"rounds": 2, "epochs": 3, "paper": False, "saliency": "l1"},
        "seed": 7,
        "command": 'secateur compress scenes --method pagcp --budget "flops<=40%" --drop 1% --drop depth=3%',
        "seconds": 193.4,
        "created": "2026-11-23T21:40:00+00:00",
        "machine": {"cpu": "test CPU, made up", "cores": 2, "memory_gib": 8, "os": "Linux x86_64", "python": "3.11.2"},
        "versions": {"secateur": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.30.0"},
    }
    return Manifest.model_validate(document | changes)


def decision(round_: int, position: int, group: str, channels: int = 64) -> dict[str, object]:
    kept = channels - 4 * (1 + (position * 5 + round_) % 12)
    share, pruned = 1 - kept / channels, position % 5 != 4
    ratios = [0.5, 0.25, share, min(share + 0.05, 0.95)]
    curve = [
        {
            "ratio": ratio,
            "loss_ratio": {
                name: 1 + 0.049 * 0.97**position * (ratio / share) ** 2 / (index + 1)
                for index, name in enumerate(METRICS)
            },
            "accepted": ratio <= share,
        }
        for ratio in ratios
    ]
    return {
        "round": round_,
        "position": position,
        "group": group,
        "channels": channels,
        "kept_before": channels,
        "kept": kept if pruned else channels,
        "tau": 0.05 * 0.97**position,
        "pruned": pruned,
        "curve": curve,
        "flops_after": int(412_000_000 * (1 - 0.02 * position)),
        "params_after": int(1_240_000 * (1 - 0.02 * position)),
    }


def history(groups: int = 14, rounds: int = 2) -> dict[str, object]:
    names = [
        MODULES[(3 * index) % len(MODULES)] if index < len(MODULES) else f"extra.{index}" for index in range(groups)
    ]
    return {
        "groups": [
            {
                "name": "encoder.stem",
                "channels": 3,
                "prunable": False,
                "why_not": "the input's size is given",
                "flops_share": 0.1,
            }
        ],
        "decisions": [
            decision(number, position, name) for number in range(rounds) for position, name in enumerate(names)
        ],
        "fine_tuning": [
            {
                "round": epoch // 3,
                "epoch": epoch % 3,
                "loss": 2.1 * 0.9**epoch + 0.4 * (epoch == 3),
                "tasks": dict.fromkeys(METRICS, 0.5 * 0.9**epoch),
            }
            for epoch in range(6)
        ],
        "lambda": 0.97,
        "order": "descending",
    }


def layers(share: float = 1.0, names: list[str] | None = None) -> list[LayerCost]:
    return [
        LayerCost(name, "conv2d", int(1_000_000 * (1 + (7 * index) % 11) * share))
        for index, name in enumerate(names or MODULES)
    ]


def profiles(factor: float = 1.0) -> list[Profile]:
    parts = tuple(
        LayerProfile(name, "Conv", latency_ms=factor * (1 + index % 4) / 40) for index, name in enumerate(MODULES[:20])
    )
    cpu = Latency(4.21 * factor, 4.1 * factor, 4.6 * factor, 200)
    phone = Latency(3.3 * factor, 3.3 * factor, 3.3 * factor)
    return [
        Profile(
            "cpu",
            "ONNX Runtime, 1 thread",
            "measured",
            cpu,
            peak_memory_bytes=5_000_000,
            parity_max_abs=3.1e-6,
            layers=parts,
        ),
        Profile("mobile:pixel-6", "latency model", "predicted", phone, error_pct=12.0),
        Profile(
            "gpu",
            "TensorRT",
            "unavailable",
            reason="no NVIDIA GPU here",
            how="run it where there is one",
        ),
    ]


def samples(number: int = 6, side: int = 64) -> list[Sample]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side

    def picture(phase: float) -> np.ndarray:
        base = np.stack([np.sin(6 * x + phase), np.cos(5 * y + phase), np.sin(4 * (x + y) * phase)], axis=-1)
        return (127 + 100 * base + 20 * rng.random((side, side, 3))).astype(np.uint8)

    return [
        Sample(
            input=picture(index),
            tasks={
                name: {"label": picture(k), "before": picture(k + 0.1), "after": picture(k + 0.2)}
                for k, name in enumerate(METRICS, start=index)
            },
        )
        for index in range(number)
    ]


def full() -> Report:
    return Report(
        title="scenes, compressed by PAGCP",
        manifest=manifest(),
        history=history(),
        layers_before=layers(),
        layers_after=layers(0.4),
        profiles=profiles(0.5),
        profiles_before=profiles(),
        samples=samples(),
    )


def hostile(text: str) -> Report:
    """A report in which everything that a user can name is `text`."""
    task = TaskEntry(name=text, better="higher")
    point = Point(weights="w", channels="c", costs=costs(0.4), metrics={text: 0.5}, delta_mtl=-1.0)
    picture = np.zeros((4, 4, 3), np.uint8)
    curve = [{"ratio": 0.5, "loss_ratio": {text: 1.01}, "accepted": True}]
    parts = (LayerProfile(text, text, latency_ms=1),)
    return Report(
        title=text,
        manifest=manifest(
            workload=text,
            reference=text,
            method=text,
            command=text,
            tolerance=text,
            tasks=[task],
            metrics_before={text: 0.6},
            points=[point, point],
            chosen=1,
            budget_met=False,
            misses=[text],
            budget=[text],
            settings={text: text},
            versions={text: text},
            machine={text: text},
            created=text,
            artefacts=[Artefact(format=text, path=text, max_abs=0, mean_abs=0, metrics={text: 0.5}, samples=1)],
        ),
        history={
            "groups": [{"name": text, "prunable": False, "why_not": text}],
            "decisions": [decision(0, 0, text) | {"curve": curve}],
            "fine_tuning": [{"round": 0, "epoch": epoch, "loss": 1.0, "tasks": {text: 1.0}} for epoch in range(2)],
            "order": text,
            "lambda": 1.0,
        },
        layers_before=[LayerCost(text, text, 100)],
        layers_after=[LayerCost(text, text, 50)],
        profiles=[
            Profile(text, text, "measured", Latency(1, 1, 1), layers=parts),
            Profile(text, text, "unavailable", reason=text, how=text),
        ],
        profiles_before=[Profile(text, text, "measured", Latency(2, 2, 2), layers=parts)],
        samples=[Sample(picture, {text: {"label": picture, "before": picture, "after": picture}})],
    )
