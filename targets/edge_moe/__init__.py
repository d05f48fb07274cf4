"""An FPGA that works expert by expert: a cycle model of Edge-MoE-style accelerators (Sarkar et al., ICCAD 2023).

board = board("zcu102")
predict(board, program(board, vit, routing)).latency_ms
"""

from secateur.targets.edge_moe.board import Board, board
from secateur.targets.edge_moe.events import simulate
from secateur.targets.edge_moe.graph import traced_program
from secateur.targets.edge_moe.memory import on_chip
from secateur.targets.edge_moe.program import Program, Routing, Stage, ViT, program
from secateur.targets.edge_moe.report import Prediction, predict
from secateur.targets.edge_moe.schedule import cycles, spans

__all__ = [
    "Board", "Prediction", "Program", "Routing", "Stage", "ViT", "board", "cycles", "on_chip", "predict", "program",
    "simulate", "spans", "traced_program",
]  # fmt: skip
