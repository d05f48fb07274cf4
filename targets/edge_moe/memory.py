"""On-chip memory: what must be held at once, in bytes and in blocks of the FPGA.

With reordering two buffers of the largest weights suffice, whatever the number of experts. Without it, either every
token loads its experts again, or all experts of a layer are resident: `resident_experts`.
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.targets.edge_moe.board import Board
from secateur.targets.edge_moe.program import Program

BRAM18_BITS = 18 * 1024
URAM_BITS = 288 * 1024


@dataclass(frozen=True)
class OnChip:
    """Bytes by purpose, and blocks: whatever fits goes to URAM first where there is any."""

    parts: dict[str, int]
    bram18: int
    uram: int
    fits: bool

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


def on_chip(board: Board, program: Program, *, resident_experts: bool = False) -> OnChip:
    """Memory of an accelerator for a model.

    Args:
        resident_experts: hold all experts of the largest mixture, as one must that neither reorders nor reloads.
    """
    largest = max(stage.weight_bytes for stage in program.stages)
    experts = max((count for count, _ in program.mixtures), default=0)
    parts = {
        "weights": largest * (2 if board.double_buffer else 1),
        "features": program.tokens * program.width * board.feature_bits // 8,
        "queues": sum(experts * program.tokens * bits // 8 for bits in (16, 32)),
    }
    if resident_experts and program.mixtures:
        parts["resident experts"] = max(count * each for count, each in program.mixtures)
    bits = [8 * size for size in parts.values()]
    uram = min(board.chip.uram, sum(size // URAM_BITS for size in bits))
    left = sum(bits) - uram * URAM_BITS
    bram = -(-max(left, 0) // BRAM18_BITS)
    return OnChip(parts, bram, uram, bram <= board.chip.bram18)
