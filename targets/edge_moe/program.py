"""The program: a vision transformer as the stages that the accelerator runs one after another.

A stage computes, and needs weights on the chip before. Cycle counts follow the published kernels: a pipelined loop
takes a tile of `linear_in` x `linear_out` weights, or a word of the AXI bus, in every cycle; reading, computing and
writing overlap within a stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from secateur.targets.edge_moe.board import Board

Routing = Sequence[Sequence[Sequence[int]]]
"""For each mixture, for each token, the experts it goes through."""


@dataclass(frozen=True)
class ViT:
    """Sizes of a transformer. `mixtures`: for each block None where the MLP is dense, else (experts, hidden width).

    `hidden`: of each block's dense MLP; 0 where it is a mixture. Heads widths may differ from width / heads.
    """

    tokens: int
    width: int
    heads: int
    head_width: int
    hidden: tuple[int, ...]
    mixtures: tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class Stage:
    """Cycles to compute and to load its weights; bytes of weights and of features that go over the bus; MACs."""

    name: str
    compute: int
    load: int = 0
    weight_bytes: int = 0
    feature_bytes: int = 0
    macs: int = 0


def program(board: Board, vit: ViT, routing: Routing) -> list[Stage]:
    """All stages of one inference.

    Raises:
        ValueError: as many routings as mixtures are needed, each with the experts of every token.
    """
    mixtures = [mixture for mixture in vit.mixtures if mixture is not None]
    if len(routing) != len(mixtures) or any(len(tokens) != vit.tokens for tokens in routing):
        raise ValueError(f"{len(mixtures)} routings of {vit.tokens} tokens are needed")
    stages, routed = [], iter(routing)
    for number, (hidden, mixture) in enumerate(zip(vit.hidden, vit.mixtures, strict=True)):
        stages += _attention(board, vit, f"block{number}")
        if mixture is None:
            stages.append(linear(board, f"block{number}.fc1", vit.tokens, vit.width, hidden))
            stages.append(linear(board, f"block{number}.fc2", vit.tokens, hidden, vit.width))
        else:
            stages += list(_mixture(board, vit, f"block{number}", mixture, next(routed)))
    return stages


def linear(board: Board, name: str, tokens: int, inputs: int, outputs: int) -> Stage:
    """A linear layer for some tokens: a tile a cycle, unless the bus is slower."""
    ins, outs = _up(inputs, board.linear_in), _up(outputs, board.linear_out)
    words_in, words_out = _up(inputs, board.features_per_word), _up(outputs, board.features_per_word)
    busiest = max(tokens * ins * outs, tokens * words_in, tokens * words_out)
    load = outputs * _up(inputs, board.weights_per_word) + _up(outputs, board.weights_per_word)
    return Stage(
        name, board.initiation * busiest + board.stage_overhead, board.initiation * load,
        (inputs + 1) * outputs * board.weight_bits // 8, tokens * (inputs + outputs) * board.feature_bits // 8,
        tokens * inputs * outputs,
    )  # fmt: skip


def _attention(board: Board, vit: ViT, name: str) -> list[Stage]:
    """Query, key and value; scores; weighted sum; projection. A pass over all keys serves `attention_rows` queries."""
    inner = vit.heads * vit.head_width
    rows, words = _up(vit.tokens + board.attention_rows - 1, board.attention_rows), _up(inner, board.features_per_word)
    product = board.initiation * max(rows * vit.tokens * words, vit.tokens**2) + board.stage_overhead
    moved = (vit.tokens * inner * 2 + vit.tokens**2 * vit.heads) * board.feature_bits // 8
    macs = vit.tokens**2 * inner
    return [
        linear(board, f"{name}.qkv", vit.tokens, vit.width, 3 * inner),
        Stage(f"{name}.scores", product, feature_bytes=moved, macs=macs),
        Stage(f"{name}.sum", product, feature_bytes=moved, macs=macs),
        linear(board, f"{name}.proj", vit.tokens, inner, vit.width),
    ]


def _mixture(
    board: Board, vit: ViT, name: str, mixture: tuple[int, int], chosen: Sequence[Sequence[int]]
) -> Iterator[Stage]:
    """The router, then expert by expert over those that have tokens, or token by token."""
    experts, hidden = mixture
    yield linear(board, f"{name}.router", vit.tokens, vit.width, experts)
    for expert, tokens in queues(board, chosen):
        yield linear(board, f"{name}.expert{expert}.up", tokens, vit.width, hidden)
        yield linear(board, f"{name}.expert{expert}.down", tokens, hidden, vit.width)


def queues(board: Board, chosen: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(expert, tokens) in the order of work. With reordering one entry for each expert that has tokens (the list of
    non-empty queues); without, one for each choice of each token."""
    if not board.reorder:
        return [(expert, 1) for experts in chosen for expert in experts]
    counts: dict[int, int] = {}
    for experts in chosen:
        for expert in experts:
            counts[expert] = counts.get(expert, 0) + 1
    return sorted(counts.items())


def _up(size: int, step: int) -> int:
    return -(-size // step)
