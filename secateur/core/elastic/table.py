"""Table: what each configuration of an elastic model costs and how good its tasks are.

A configuration gives each stage a width. Stages that several tasks depend on are *shared*; the others form the
*decoder* of one task. A task's metric then depends on the shared widths and on those of its own decoder alone, and
costs add up, so that K shared rows and D_t rows of each decoder describe K·ΠD_t configurations:

    metric_t = metrics[t][k, d_t]        cost = shared[k] + Σ_t decoders[t][k, d_t]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from secateur.core.errors import BundleError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Better = Literal["higher", "lower"]
SCHEMA = 1
ADDITIVE = ("flops", "params", "size")
"""Kinds of cost that add up; the activations' peak is a maximum, and memory is size + that peak."""


@dataclass(frozen=True)
class Stage:
    """A part of a model whose width is chosen as one.

    Attributes:
        tasks: those whose predictions depend on it.
        widths: shares of its channels, ascending, the last one 1.
        channels: channel group → channels it keeps at each width.
    """

    name: str
    tasks: tuple[str, ...]
    widths: tuple[float, ...]
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Figures:
    """One figure of all configurations: a part for the shared stages [K], and one for each task's decoder [K, D_t]."""

    shared: Floats
    decoders: Mapping[str, Floats]

    def of(self, row: int, choice: Mapping[str, int]) -> float:
        """The sum for one configuration, of the decoders that run."""
        return float(self.shared[row] + sum(self.decoders[task][row, index] for task, index in choice.items()))

    def as_json(self) -> dict[str, Any]:
        return {"shared": _listed(self.shared), "decoders": {task: _listed(a) for task, a in self.decoders.items()}}

    @classmethod
    def from_json(cls, document: Any) -> Figures:
        decoders = {str(task): np.asarray(rows, dtype=float) for task, rows in document["decoders"].items()}
        return cls(np.asarray(document["shared"], dtype=float), decoders)


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Milliseconds on one target. `error_pct`: of measured ones the largest |sum - measured| / measured over 22
    configurations that the table was not made from, None where that was not tried; of predicted ones the error that
    the target's model states. `machine`: what was measured, or what the model is made from."""

    figures: Figures
    source: str
    machine: str
    error_pct: float | None = None
    original_ms: float | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "figures": self.figures.as_json(), "source": self.source, "machine": self.machine,
            "error_pct": self.error_pct, "original_ms": self.original_ms,
        }  # fmt: skip

    @classmethod
    def from_json(cls, document: Any) -> LatencyTable:
        return cls(
            Figures.from_json(document["figures"]), str(document["source"]), str(document["machine"]),
            document["error_pct"], document["original_ms"],
        )  # fmt: skip


@dataclass(frozen=True)
class Original:
    """Costs and metrics (on the same data as the table's) of the model before it was made elastic."""

    flops: float
    params: float
    size: float
    memory: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Table:
    """All that is known of an elastic model's configurations.

    Attributes:
        better: task → whether a higher or a lower metric is better.
        rows: width index of each shared stage [K, S].
        decoders: task → width index of each stage of its decoder [D_t, S_t]; one empty row where it has none.
        metrics: task → metric [K, D_t] as evaluated on calibration data.
        fitted: the same, made monotone along widths; choices are made by these.
        costs: figures of `flops`, `params`, `size`, and `activations` (bytes; decoders combine by maximum).
        memory_margin: factor on the activations that makes them an upper bound where decoders run interleaved.
        latency: target → milliseconds.
        energy: target → millijoules, always predicted.
        exported: rows that the exported files can run.
        notes: how the table was made: evaluations, error of the predictor, violations of monotonicity.
    """

    stages: tuple[Stage, ...]
    better: Mapping[str, Better]
    rows: Ints
    decoders: Mapping[str, Ints]
    metrics: Mapping[str, Floats]
    fitted: Mapping[str, Floats]
    costs: Mapping[str, Figures]
    original: Original
    memory_margin: float = 1.0
    latency: Mapping[str, LatencyTable] = field(default_factory=dict)
    energy: Mapping[str, Figures] = field(default_factory=dict)
    exported: tuple[int, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.better)

    @property
    def shared(self) -> tuple[int, ...]:
        """Positions of the shared stages."""
        return tuple(index for index, stage in enumerate(self.stages) if is_shared(stage, self.tasks))

    def decoder(self, task: str) -> tuple[int, ...]:
        """Positions of the stages of one task's decoder."""
        return tuple(
            index
            for index, stage in enumerate(self.stages)
            if stage.tasks == (task,) and not is_shared(stage, self.tasks)
        )

    @property
    def full(self) -> tuple[int, dict[str, int]]:
        """Row and decoder widths of the largest configuration."""
        return int(self.rows.sum(1).argmax()), {task: len(each) - 1 for task, each in self.decoders.items()}

    @property
    def configurations(self) -> int:
        """How many configurations the table describes."""
        count = len(self.rows)
        for rows in self.decoders.values():
            count *= len(rows)
        return count

    def configuration(self, row: int, choice: Mapping[str, int]) -> tuple[int, ...]:
        """The width index of every stage. Decoders that do not run keep their smallest width."""
        found = [0] * len(self.stages)
        for position, index in zip(self.shared, self.rows[row], strict=True):
            found[position] = int(index)
        for task, chosen in choice.items():
            for position, index in zip(self.decoder(task), self.decoders[task][chosen], strict=True):
                found[position] = int(index)
        return tuple(found)

    def widths(self, configuration: tuple[int, ...]) -> dict[str, float]:
        """Stage → share of its channels."""
        return {stage.name: stage.widths[index] for stage, index in zip(self.stages, configuration, strict=True)}

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "stages": [
                {**asdict(stage), "channels": {name: list(kept) for name, kept in stage.channels.items()}}
                for stage in self.stages
            ],
            "better": dict(self.better),
            "task_order": list(self.better),
            "rows": self.rows.tolist(),
            "decoders": {task: rows.tolist() for task, rows in self.decoders.items()},
            "metrics": {task: _listed(values) for task, values in self.metrics.items()},
            "fitted": {task: _listed(values) for task, values in self.fitted.items()},
            "costs": {kind: figures.as_json() for kind, figures in self.costs.items()},
            "original": asdict(self.original),
            "memory_margin": self.memory_margin,
            "latency": {target: table.as_json() for target, table in self.latency.items()},
            "energy": {target: figures.as_json() for target, figures in self.energy.items()},
            "exported": list(self.exported),
            "notes": dict(self.notes),
        }

    @classmethod
    def from_json(cls, document: Any) -> Table:
        """Read a table back.

        Raises:
            BundleError: damaged, or of a newer schema.
        """
        try:
            if document["schema"] > SCHEMA:
                raise BundleError("the elastic table was written by a newer Secateur", "pip install -U secateur")
            table = cls(
                stages=tuple(_stage(each) for each in document["stages"]),
                better={task: document["better"][task] for task in document["task_order"]},
                rows=_matrix(document["rows"]),
                decoders={task: _matrix(document["decoders"][task]) for task in document["task_order"]},
                metrics={task: np.asarray(document["metrics"][task], dtype=float) for task in document["task_order"]},
                fitted={task: np.asarray(document["fitted"][task], dtype=float) for task in document["task_order"]},
                costs={kind: Figures.from_json(each) for kind, each in document["costs"].items()},
                original=Original(**document["original"]),
                memory_margin=float(document["memory_margin"]),
                latency={target: LatencyTable.from_json(each) for target, each in document["latency"].items()},
                energy={target: Figures.from_json(each) for target, each in document.get("energy", {}).items()},
                exported=tuple(map(int, document["exported"])),
                notes=document["notes"],
            )
            table._check()
            return table
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise BundleError(f"the elastic table is damaged: {error!r}", "copy the bundle again") from error

    def _check(self) -> None:
        """Raise ValueError unless all arrays have the shapes that the stages imply."""
        figures = [*self.costs.values(), *(each.figures for each in self.latency.values()), *self.energy.values()]
        if self.rows.shape != (len(self.rows), len(self.shared)) or not len(self.rows):
            raise ValueError("rows do not fit the shared stages")
        for task, chosen in self.decoders.items():
            shape = (len(self.rows), len(chosen))
            arrays = [self.metrics[task], self.fitted[task], *(each.decoders[task] for each in figures)]
            if chosen.shape[1] != len(self.decoder(task)) or any(array.shape != shape for array in arrays):
                raise ValueError(f"the arrays of {task} do not fit its decoder")
        for stages, chosen in [(self.shared, self.rows), *((self.decoder(t), d) for t, d in self.decoders.items())]:
            limits = [len(self.stages[position].widths) for position in stages]
            if len(stages) and (chosen.min() < 0 or (chosen >= np.array(limits)).any()):
                raise ValueError("a width index is out of range")


def is_shared(stage: Stage, tasks: tuple[str, ...]) -> bool:
    """Whether a stage counts as shared: several tasks depend on it, or there is but one task."""
    return len(stage.tasks) > 1 or len(tasks) == 1


def _stage(document: Any) -> Stage:
    widths = tuple(map(float, document["widths"]))
    channels = {str(name): tuple(map(int, kept)) for name, kept in document["channels"].items()}
    return Stage(str(document["name"]), tuple(map(str, document["tasks"])), widths, channels)


def _matrix(rows: Any) -> Ints:
    found = np.asarray(rows, dtype=np.int64)
    return found.reshape(len(rows), -1)


def _listed(values: Floats) -> Any:
    """Numbers as JSON: counts as they are, as budgets may be set to just them; measurements to seven digits."""
    return np.vectorize(_rounded, otypes=[float])(values).tolist() if values.size else []


def _rounded(value: float) -> float:
    return value if float(value).is_integer() else float(f"{value:.7g}")
