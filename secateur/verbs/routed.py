"""Accelerators that work expert by expert: a workload's model predicted from its own routing tables, task by task."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import mean, median, quantiles
from typing import TYPE_CHECKING, Any

from torch import nn

from secateur.compress.experts.layers import look_for
from secateur.compress.experts.routing import routing_tables
from secateur.compress.experts.twin import twinned
from secateur.core.costs import Latency, LayerProfile, Profile, with_ratios
from secateur.core.errors import DeviceError
from secateur.core.inputs import takes_task
from secateur.core.task import Workload
from secateur.profiles.graph import capture_tasks
from secateur.targets.device import Device, RoutedLatency
from secateur.targets.edge_moe import Board, Prediction, Program, Stage, board, cycles, on_chip, predict, spans
from secateur.targets.edge_moe.graph import traced_program

if TYPE_CHECKING:
    from secateur.verbs.measure import Subject

SAMPLES = 64
"""Of the test split, whose routing is predicted from."""


def measure_routed(
    subjects: Mapping[str, Subject], device: Device, against: str | None, layers: bool
) -> dict[str, Profile]:
    """Each subject's predicted profile; the ratio of two predictions is their speed-up.

    Raises:
        DeviceError: a subject without a workload, or whose model has no experts.
    """
    return with_ratios({name: _profile(name, subject, device, layers) for name, subject in subjects.items()}, against)


def _profile(name: str, subject: Subject, device: Device, layers: bool) -> Profile:
    if subject.workload is None:
        raise DeviceError(
            f"{device.name} is predicted from a workload's routing, which {name} does not hold",
            "name a bundle or a workload",
        )
    assert isinstance(device.latency, RoutedLatency)
    workload, on = subject.workload(), board(device.latency.board)
    runs = _Runs.of(on, twinned_with_experts(workload, device), workload)
    times = runs.latencies_ms()
    low, *_, high = quantiles(times, n=10) if len(times) > 1 else times * 2
    return Profile(
        target=device.name,
        backend=f"cycle model of {on.name} on {on.chip.part}",
        source="predicted",
        latency=Latency(median(times), low, high, len(times)),
        energy_mj=sum(task["energy_mj"] for task in runs.by_task().values()),
        error_pct=on.error_pct,
        layers=runs.layers() if layers else (),
        details=runs.details(),
    )


def twinned_with_experts(workload: Workload, device: Device) -> nn.Module:
    """A traceable form of the workload's model.

    Raises:
        DeviceError: it has no experts.
    """
    if not look_for(workload.model):
        raise DeviceError(
            f"{device.name} works expert by expert, and {workload.name} has no expert layers", "choose another target"
        )
    return twinned(workload.model)


@dataclass(frozen=True)
class _Runs:
    """Programs of every task for the same samples, expert by expert and token by token."""

    board: Board
    programs: dict[str, list[Program]]
    loose: dict[str, list[Program]]

    @classmethod
    def of(cls, on: Board, model: nn.Module, workload: Workload) -> _Runs:
        """Where tasks run one at a time, each has its own program; else there is one for all of them."""
        names, layers = workload.task_names, look_for(model)
        graphs = capture_tasks(model, workload.example_input, names)
        labels = names if takes_task(model) else ("all tasks",)
        tables = [routing_tables(model, layers, workload.test, name, SAMPLES) for name in names[: len(labels)]]

        def programs(way: Board) -> dict[str, list[Program]]:
            runs = zip(labels, graphs, tables, strict=True)
            return {label: [traced_program(way, graph, table) for table in found] for label, graph, found in runs}

        return cls(on, programs(on), programs(on.model_copy(update={"reorder": False})))

    def latencies_ms(self) -> list[float]:
        """Of each sample, all tasks one after another: what one leaves to load is loaded while it still computes."""
        samples = zip(*self.programs.values(), strict=True)
        return [self._ms(list(itertools.chain(*(program.stages for program in tasks)))) for tasks in samples]

    def _ms(self, stages: Sequence[Stage]) -> float:
        return cycles(stages, double_buffer=self.board.double_buffer) / (1e3 * self.board.clock_mhz)

    def by_task(self) -> dict[str, dict[str, Any]]:
        """Means over the samples, and the same without reordering."""
        return {
            task: {**_means(self.board, programs), "token_by_token": _means(self.board, self.loose[task])}
            for task, programs in self.programs.items()
        }

    def details(self) -> dict[str, Any]:
        tasks, chip = self.by_task(), self.board.chip
        every = [programs[0] for programs in self.programs.values()]
        memory = max((on_chip(self.board, program) for program in every), key=lambda found: found.bytes)
        resident = max(on_chip(self.board, program, resident_experts=True).bytes for program in every)
        together = mean(self.latencies_ms())
        return {
            "samples": len(self.latencies_ms()),
            "tasks": tasks,
            "switching_ms": together - sum(task["latency_ms"] for task in tasks.values()),
            "on_chip": {
                "part": chip.part, "bytes": memory.bytes, "parts": memory.parts, "fits": memory.fits,
                "bram18": memory.bram18, "bram18_limit": chip.bram18, "uram": memory.uram, "uram_limit": chip.uram,
                "bytes_with_resident_experts": resident,
            },
        }  # fmt: skip

    def layers(self) -> tuple[LayerProfile, ...]:
        """Layer by layer, all tasks together, means over the samples."""
        sums: dict[tuple[str, str], list[float]] = {}
        for programs in self.programs.values():
            for program in programs:
                times = spans(program.stages, double_buffer=self.board.double_buffer)
                for stage, time in zip(program.stages, times, strict=True):
                    kind = "linear" if stage.expert is None else "experts"
                    total = sums.setdefault((stage.name, kind), [0.0] * 3)
                    for place, value in enumerate((2 * stage.macs, stage.weight_bytes + stage.feature_bytes, time)):
                        total[place] += value / len(programs)
        return tuple(
            LayerProfile(name, kind, round(flops), round(moved), time / (1e3 * self.board.clock_mhz))
            for (name, kind), (flops, moved, time) in sums.items()
        )


def _means(on: Board, programs: Sequence[Program]) -> dict[str, float]:
    """Each figure of a prediction, its mean over programs."""
    found = [predict(on, program) for program in programs]
    names = [field.name for field in fields(Prediction) if field.name != "memory"]
    return {name: mean(getattr(each, name) for each in found) for name in names}
