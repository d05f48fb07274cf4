"""The prediction for one inference: latency, traffic, memory and energy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from secateur.targets.edge_moe.board import Board
from secateur.targets.edge_moe.memory import OnChip, on_chip
from secateur.targets.edge_moe.program import Program
from secateur.targets.edge_moe.schedule import cycles


@dataclass(frozen=True)
class Prediction:
    """Predicted, never measured. `expert_*` are the parts of the mixtures' experts, `experts_loaded` how many had
    tokens."""

    cycles: int
    latency_ms: float
    weight_bytes: int
    feature_bytes: int
    expert_cycles: int
    expert_weight_bytes: int
    experts_loaded: int
    macs: int
    energy_mj: float
    memory: OnChip

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "memory": {**asdict(self.memory), "bytes": self.memory.bytes}}


def predict(board: Board, program: Program) -> Prediction:
    """What a board would need for one inference."""
    stages = program.stages
    experts = [stage for stage in stages if stage.expert is not None]
    total = cycles(stages, double_buffer=board.double_buffer)
    weights, features = sum(stage.weight_bytes for stage in stages), sum(stage.feature_bytes for stage in stages)
    seconds = total / (board.clock_mhz * 1e6)
    moved = (weights + features) * board.energy.dram_pj_per_byte * 1e-12
    return Prediction(
        cycles=total,
        latency_ms=1e3 * seconds,
        weight_bytes=weights,
        feature_bytes=features,
        expert_cycles=cycles(experts, double_buffer=board.double_buffer),
        expert_weight_bytes=sum(stage.weight_bytes for stage in experts),
        experts_loaded=len({(stage.name, stage.expert) for stage in experts}),
        macs=sum(stage.macs for stage in stages),
        energy_mj=1e3 * (seconds * board.energy.watts + moved),
        memory=on_chip(board, program),
    )
