"""Recurrent layers: a hidden unit is one row of every gate, and one column of the weights that read it."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from secateur.compress.dataflow.rules.contraction import refuse
from secateur.compress.dataflow.rules.registry import Labels, Op, rule
from secateur.compress.dataflow.space import Channels
from secateur.profiles.macs import RECURRENT, RECURRENT_CELLS

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*RECURRENT)
def recurrent(op: Op) -> list[Labels]:
    """Input [*, I] with weights [gates·H, I] and [gates·H, H] per layer and direction → [*, directions·H], states."""
    directions, biases = 1 + bool(op["bidirectional"]), bool(op["has_biases"])
    per_cell, returns = 2 + 2 * biases, op.returns
    parameters = op["params"]
    if len(parameters) != per_cell * directions * int(op["num_layers"]):  # projections
        refuse(op)
        return [{}] * returns
    labels, last = op.labels("self"), len(op.shape_of("self")) - 1
    for dim in set(labels) - {last}:
        op.fix(labels[dim], "batch or steps of a recurrent layer")
    reads, unit = labels.get(last), _units(op, parameters[0])
    for layer in range(0, len(parameters), per_cell * directions):
        cells = [parameters[at : at + per_cell] for at in range(layer, layer + per_cell * directions, per_cell)]
        reads = np.concatenate([_cell(op, reads, cell, unit) for cell in cells])
    _tie_states(op, unit)
    states = [{len(state.shape) - 1: unit} for state in op.node.meta["val"][1:]]
    return [{last: reads} if reads is not None else {}, *states]


@rule(*RECURRENT_CELLS)
def cell(op: Op) -> Labels | list[Labels]:
    """Input [N, I], states [N, H], weights [gates·H, I] and [gates·H, H] → the next state [N, H]; an LSTM has two."""
    labels, last = op.labels("self"), len(op.shape_of("self")) - 1
    for dim in set(labels) - {last}:
        op.fix(labels[dim], "batch of a recurrent cell")
    weights = [op[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    unit = _units(op, weights[0])
    _cell(op, labels.get(last), weights, unit)
    _tie_states(op, unit)
    return [{last: unit}] * 2 if op.name == "lstm_cell" else {last: unit}


def _gates(op: Op) -> int:
    return _GATES[op.name.removesuffix("_cell")]


def _units(op: Op, weight: Node) -> Channels:
    """The hidden units, as many in every layer and direction."""
    unit = op.space.fresh(op.shape_of(weight)[0] // _gates(op))
    if len(unit) == 1:
        op.fix(unit, "a single hidden unit")
    return unit


def _cell(op: Op, reads: Channels | None, weights: list[Node], unit: Channels) -> Channels:
    gates, size = _gates(op), len(unit)
    op.tie(reads, op.labels(weights[0]).get(1), "read by a recurrent layer")
    op.tie(op.labels(weights[1]).get(1), unit)
    for weight in weights[:2]:
        op.weight(weight, makes=[0], reads=[1])
    for weight in weights:
        rows = op.labels(weight).get(0)  # a bias may be absent
        if rows is not None:
            op.space.tie(rows.reshape(gates, size), unit[None])
    return unit


def _tie_states(op: Op, unit: Channels) -> None:
    """States [layers, N, H], or [N, H] of a cell, that are given: of the hidden units."""
    given = op.args.get("hx")
    for node in given if isinstance(given, (list, tuple)) else [given]:
        if not isinstance(node, Node):
            continue
        for dim, channels in op.labels(node).items():
            if dim == len(op.shape_of(node)) - 1 and len(channels) == len(unit):
                op.space.tie(channels, unit)
            else:
                op.fix(channels, "state of a recurrent layer")
