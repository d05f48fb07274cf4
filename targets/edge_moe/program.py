"""The program: a model as the stages that the accelerator runs one after another.

A stage computes, and needs weights on the chip before. Cycle counts follow the published kernels: a pipelined loop
takes a tile of `linear_in` x `linear_out` weights, or a word of the AXI bus, in every cycle; reading, computing and
writing overlap within a stage. Here from a transformer's sizes; `graph` makes one from a traced model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
    """Cycles to compute and to load its weights; bytes of weights and of features that go over the bus; MACs.
    `expert`: which one of a mixture it belongs to, if any."""

    name: str
    compute: int
    load: int = 0
    weight_bytes: int = 0
    feature_bytes: int = 0
    macs: int = 0
    expert: int | None = None


@dataclass(frozen=True)
class Program:
    """The stages of one inference, and what the chip must hold for them.

    Attributes:
        tokens, width: of the stream that the mixtures read.
        mixtures: of each mixture, how many experts there are, and bytes of one.
    """

    stages: tuple[Stage, ...]
    tokens: int
    width: int
    mixtures: tuple[tuple[int, int], ...]


def program(board: Board, vit: ViT, routing: Routing) -> Program:
    """The program of a transformer.

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
            experts, hidden = mixture
            stages.append(linear(board, f"block{number}.router", vit.tokens, vit.width, experts))
            stages += routed_stages(board, f"block{number}", vit.width, hidden, next(routed))
    sizes = tuple((experts, expert_bytes(board, vit.width, hidden)) for experts, hidden in mixtures)
    return Program(tuple(stages), vit.tokens, vit.width, sizes)


def linear(board: Board, name: str, tokens: int, inputs: int, outputs: int, read: int | None = None) -> Stage:
    """A linear layer for some tokens: a tile a cycle, unless the bus is slower.

    Args:
        read: features that are read in all, where tokens share some, as the windows of a convolution do.
    """
    ins, outs = _up(inputs, board.linear_in), _up(outputs, board.linear_out)
    words_in = tokens * _up(inputs, board.features_per_word) if read is None else _up(read, board.features_per_word)
    busiest = max(tokens * ins * outs, words_in, tokens * _up(outputs, board.features_per_word))
    read = tokens * inputs if read is None else read
    load = outputs * _up(inputs, board.weights_per_word) + _up(outputs, board.weights_per_word)
    return Stage(
        name, board.initiation * busiest + board.stage_overhead, board.initiation * load,
        (inputs + 1) * outputs * board.weight_bits // 8, (read + tokens * outputs) * board.feature_bits // 8,
        tokens * inputs * outputs,
    )  # fmt: skip


def _attention(board: Board, vit: ViT, name: str) -> list[Stage]:
    inner = vit.heads * vit.head_width
    return [
        linear(board, f"{name}.qkv", vit.tokens, vit.width, 3 * inner),
        *attention(board, name, vit.tokens, vit.tokens, vit.heads, inner),
        linear(board, f"{name}.proj", vit.tokens, inner, vit.width),
    ]


def attention(board: Board, name: str, queries: int, keys: int, heads: int, inner: int) -> list[Stage]:
    """Scores and weighted sum of all heads, `inner` channels together. A pass over all keys serves `attention_rows`
    queries."""
    rows, words = _up(queries + board.attention_rows - 1, board.attention_rows), _up(inner, board.features_per_word)
    cycles = board.initiation * max(rows * keys * words, queries * keys) + board.stage_overhead
    moved = ((queries + keys) * inner + queries * keys * heads) * board.feature_bits // 8
    return [
        Stage(f"{name}.{part}", cycles, feature_bytes=moved, macs=queries * keys * inner) for part in ("scores", "sum")
    ]


def routed_stages(
    board: Board, name: str, width: int, hidden: int, chosen: Sequence[Sequence[int]], gated: bool = False
) -> Iterator[Stage]:
    """Expert by expert over those that have tokens, or token by token. `chosen`: of each token its experts; `gated`:
    experts with a second matrix beside the first, as Mixtral's."""
    for expert, tokens in queues(board, chosen):
        yield replace(linear(board, name, tokens, width, hidden * (2 if gated else 1)), expert=expert)
        yield replace(linear(board, name, tokens, hidden, width), expert=expert)


def expert_bytes(board: Board, width: int, hidden: int, gated: bool = False) -> int:
    """Bytes of one expert's weights."""
    return sum(stage.weight_bytes for stage in routed_stages(board, "", width, hidden, [[0]], gated))


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
