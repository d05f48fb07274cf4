"""On-chip memory: what must be held at once, in bytes and in blocks of the FPGA.

With reordering two buffers of the largest weights suffice, whatever the number of experts. Without it, either every
token loads its experts again, or all experts of a layer are resident: `resident_experts`.
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.targets.edge_moe.board import Board
from secateur.targets.edge_moe.program import ViT, linear

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


def on_chip(board: Board, vit: ViT, *, resident_experts: bool = False) -> OnChip:
    """Memory of an accelerator for a model.

    Args:
        resident_experts: hold all experts of the largest mixture, as one must that neither reorders nor reloads.
    """
    stages = [linear(board, "", 1, vit.width, 3 * vit.heads * vit.head_width)]
    stages += [linear(board, "", 1, vit.width, hidden) for hidden in vit.hidden if hidden]
    experts = [mixture for mixture in vit.mixtures if mixture is not None]
    stages += [linear(board, "", 1, vit.width, hidden) for _, hidden in experts]
    largest = max(stage.weight_bytes for stage in stages)
    parts = {
        "weights": largest * (2 if board.double_buffer else 1),
        "features": vit.tokens * vit.width * board.feature_bits // 8,
        "queues": sum(max((count for count, _ in experts), default=0) * vit.tokens * bits // 8 for bits in (16, 32)),
    }
    if resident_experts and experts:
        each = [
            count * (linear(board, "", 1, vit.width, h).weight_bytes + linear(board, "", 1, h, vit.width).weight_bytes)
            for count, h in experts
        ]
        parts["resident experts"] = max(each)
    bits = [8 * size for size in parts.values()]
    uram = min(board.chip.uram, sum(size // URAM_BITS for size in bits))
    left = sum(bits) - uram * URAM_BITS
    bram = -(-max(left, 0) // BRAM18_BITS)
    return OnChip(parts, bram, uram, bram <= board.chip.bram18)
