"""Compressed: what every compression method returns, and its way into a bundle and back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
from torch import Tensor, nn

from secateur.compress.channel_map import ChannelMap
from secateur.core import machine
from secateur.core.budget import Budget, Tolerance
from secateur.core.bundle import Bundle, CostsEntry, Manifest, OnTarget, Point, TaskEntry, new_bundle
from secateur.core.costs import Costs
from secateur.core.device import device_of
from secateur.core.errors import BundleError
from secateur.core.files import canonical_json
from secateur.core.task import Workload


@dataclass(frozen=True)
class Start:
    """A compressed model that is compressed further, and how it was cut from the workload's own one."""

    model: nn.Module
    channels: ChannelMap

    def beside(self, model: nn.Module) -> Start:
        """A copy on the device of another model."""
        return Start(copy.deepcopy(self.model).to(device_of(model)), self.channels)


@dataclass(frozen=True)
class CompressedPoint:
    """One compressed model of a run, a point on its Pareto front. `metrics` are on the test split."""

    model: nn.Module
    channel_map: ChannelMap
    costs: Costs
    metrics: Mapping[str, float]
    delta_mtl: float
    latency_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(repr=False)
class Compressed:
    """The result of a compression run.

    Attributes:
        workload: the original, unchanged.
        points: from large to small; `chosen` is the one that the budget picked.
        costs_before, metrics_before: of the original model, metrics on the test split.
        misses: what of budget and tolerance does not hold, as sentences.
        history: decisions and fine-tuning curves, as the report shows them.
        oracle: forward FLOPs spent, and what the published loop would have spent.
        on_target: what limits on latency and energy were judged by, where there are any.
    """

    workload: Workload
    method: str
    budget: Budget
    tolerance: Tolerance
    points: list[CompressedPoint]
    chosen: int
    costs_before: Costs
    metrics_before: Mapping[str, float]
    misses: list[str]
    history: dict[str, Any]
    oracle: dict[str, float]
    settings: dict[str, Any]
    seed: int
    seconds: float
    on_target: OnTarget | None = field(default=None, kw_only=True)

    def on_cpu(self, workload: Workload) -> Self:
        """The result with its models on the CPU, of the workload as it is there."""
        for point in self.points:
            point.model.cpu()
        return replace(self, workload=workload.select_tasks(self.workload.task_names))

    def __repr__(self) -> str:
        flops, params = (
            100 * (getattr(self.costs, cost) / getattr(self.costs_before, cost) - 1) for cost in ("flops", "params")
        )
        return (
            f"<{type(self).__name__} {self.workload.name} by {self.method}: FLOPs {flops:+.1f} %, "
            f"parameters {params:+.1f} %, Δ_MTL {self.delta_mtl:+.2f} %, points: {len(self.points)}>"
        )

    @property
    def point(self) -> CompressedPoint:
        return self.points[self.chosen]

    @property
    def model(self) -> nn.Module:
        return self.point.model

    @property
    def costs(self) -> Costs:
        return self.point.costs

    @property
    def delta_mtl(self) -> float:
        """Δ_MTL of the chosen point, in percent."""
        return self.point.delta_mtl

    @property
    def budget_met(self) -> bool:
        return not self.misses

    @property
    def metrics(self) -> dict[str, Any]:
        """{"before": {task: value}, "after": {task: value}, "delta_mtl": percent}, on the test split."""
        return {
            "before": dict(self.metrics_before),
            "after": dict(self.point.metrics),
            "delta_mtl": self.delta_mtl,
        }

    def __str__(self) -> str:
        """What came out, in a few lines: `print(pruned)`."""
        from secateur.profiles.report import units

        old, new = self.costs_before, self.costs
        rows = [
            *((task, *map(units.number, (self.metrics_before[task], now))) for task, now in self.point.metrics.items()),
            ("FLOPs", units.flops(old.flops), units.flops(new.flops)),
            ("parameters", units.count(old.params), units.count(new.params)),
        ]
        return "\n".join(
            [
                f"{self.workload.name}, {self.method}, budget {self.budget}",
                *(f"  {label}: {before} → {after}" for label, before, after in rows),
                f"  Δ_MTL: {units.signed_percent(self.delta_mtl)}",
                f"not reached: {'; '.join(self.misses)}" if self.misses else "budget met",
            ]
        )

    def save(self, path: str | Path, *, force: bool = False, command: str = "") -> Bundle:
        """Write a bundle.

        Raises:
            OutputError: the folder holds something else, or cannot be written.
        """
        with new_bundle(Path(path), force) as (folder, finish):
            points = [_write_point(folder, number, point) for number, point in enumerate(self.points)]
            (folder / "history.json").write_text(canonical_json(self.history), encoding="utf-8")
            self.write_more(folder)
            finish(self._manifest(points, command))
        return Bundle.open(path)

    def write_more(self, folder: Path) -> None:
        """Files that a method adds to its bundles."""

    def _manifest(self, points: list[Point], command: str) -> Manifest:
        return Manifest(
            method=self.method,
            workload=self.workload.name,
            reference=self.workload.reference,
            tasks=[TaskEntry(name=task.name, better=task.better) for task in self.workload.tasks],
            budget=[str(limit) for limit in self.budget.limits],
            tolerance=str(self.tolerance),
            budget_met=self.budget_met,
            misses=self.misses,
            before=entry(self.costs_before),
            metrics_before=dict(self.metrics_before),
            points=points,
            chosen=self.chosen,
            on_target=self.on_target,
            oracle=self.oracle,
            settings=self.settings,
            seed=self.seed,
            command=command,
            seconds=round(self.seconds, 1),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine.describe(),
            versions=machine.versions(),
        )


def entry(costs: Costs) -> CostsEntry:
    """Costs as the manifest holds them."""
    return CostsEntry(**costs.as_json())


def _write_point(folder: Path, number: int, point: CompressedPoint) -> Point:
    home = folder / "points" / f"{number:02d}"
    home.mkdir(parents=True)
    state, shared = _unshared(point.model.state_dict())
    (home / "weights.safetensors").write_bytes(safetensors.torch.save(state, {"shared": json.dumps(shared)}))
    (home / "channels.json").write_text(canonical_json(point.channel_map.as_json()), encoding="utf-8")
    return Point(
        weights=f"points/{number:02d}/weights.safetensors",
        channels=f"points/{number:02d}/channels.json",
        costs=entry(point.costs),
        metrics=dict(point.metrics),
        delta_mtl=point.delta_mtl,
        latency_ms=dict(point.latency_ms),
    )


def _unshared(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors under one name each; other names of shared tensors → the name that is stored."""
    first: dict[tuple[int, tuple[int, ...], int], str] = {}
    stored, shared = {}, {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.storage_offset())
        if tensor.numel() and key in first:
            shared[name] = first[key]
        else:
            first[key] = name
            stored[name] = tensor.detach().cpu().contiguous().clone()
    return stored, shared


def load_model(bundle: Bundle, factory: Callable[[], nn.Module], point: int | None = None) -> nn.Module:
    """Rebuild a compressed model from the user's own class.

    Args:
        factory: makes a full-size instance, trained or not; the bundle's weights replace its own.
        point: number of the point on the front; the chosen one by default.

    Raises:
        BundleError: changed or truncated files, or a class that does not fit.
    """
    points = bundle.manifest.points
    number = bundle.manifest.chosen if point is None else point
    if not 0 <= number < len(points):
        raise BundleError(f"{bundle.path} has no point {number}", f"it has {len(points)}, counted from 0")
    model = cut_model(bundle, factory, number)
    state = _read_tensors(bundle.checked_file(points[number].weights))
    return filled(model, state).eval()


def filled(model: nn.Module, state: Mapping[str, Tensor], *, assign: bool = False) -> nn.Module:
    """A model with a bundle's weights, copied into its own or, with `assign`, in their place.

    Raises:
        BundleError: they are those of another model.
    """
    try:
        model.load_state_dict(state, assign=assign)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise BundleError(
            f"the bundle's weights do not fit the model: {reason}", "load the bundle with the class it was made from"
        ) from error
    return model


def cut_model(bundle: Bundle, factory: Callable[[], nn.Module], number: int) -> nn.Module:
    """A full-size instance of the model's class cut to the sizes of a point; its weights are still the factory's.

    Raises:
        BundleError: as `load_model`.
    """
    model = copy.deepcopy(factory())
    channel_map_of(bundle, number).apply(model)
    return model


def channel_map_of(bundle: Bundle, point: int | None = None) -> ChannelMap:
    """How a point of a bundle, the chosen one by default, was cut from the user's model.

    Raises:
        BundleError: a changed or damaged file.
    """
    points = bundle.manifest.points
    path = bundle.checked_file(points[bundle.manifest.chosen if point is None else point].channels)
    try:
        return ChannelMap.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}", "compress again") from error


def _read_tensors(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            shared = json.loads((file.metadata() or {}).get("shared", "{}"))
        return state | {name: state[source] for name, source in shared.items()}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is damaged: {error}", "compress again") from error
