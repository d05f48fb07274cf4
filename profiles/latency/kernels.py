"""A latency model learned from operators that were measured on a device: one learner for each kind of kernel.

    model = KernelModel.fit(rows)              # (operator, milliseconds)
    model.predict(read_onnx("model.onnx")).ms
    model.steps(operator, axis="out")          # channel counts at which the time jumps

A learner is a physical estimate (a non-negative combination of work, traffic and dispatch, which extrapolates) times
a correction by boosted trees (which know where channels fill a vector). Nothing of it is stored: the measurements are,
and learning from them takes a second, so no pickle is ever loaded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from secateur.core.errors import DeviceError
from secateur.profiles.latency.estimate import Estimate
from secateur.profiles.latency.operators import CONVOLUTIONS, Operator

Array = NDArray[np.float64]
FEW = 12
"""Rows below which a kernel has the physical estimate alone."""
EACH_MS, START_MS, SHRINK = 1e-3, 1e-2, 0.3
"""Units of what a model adds for each operator and for a call, and how strongly scales are held to 1."""
FALLBACK = {
    "grouped": "conv", "deconv": "conv", "matmul": "linear", "slice": "concat", "shuffle": "concat", "resize": "concat",
    "reduce": "pool", "norm": "elementwise", "lrn": "activation", "softmax": "activation", "layernorm": "activation",
}  # fmt: skip
"""Kernel that stands in for one that was not measured."""


def kernel(operator: Operator) -> str:
    """The kind of kernel that runs an operator."""
    if operator.depthwise:
        return "depthwise"
    if operator.kind in CONVOLUTIONS and operator.groups > 1:
        return "grouped"
    return operator.kind


def _part(operator: Operator) -> str:
    """What shares a scale in whole models: kernels, those of one pixel apart from wider ones."""
    name = kernel(operator)
    return "pointwise" if name == "conv" and operator.taps == 1 else name


def physics(operator: Operator) -> Array:
    """[dispatch, arithmetic on full vectors of 16, traffic in, traffic out, weights], in millions."""
    ins, outs = operator.channels
    padded = operator.macs
    if operator.kind == "conv" and operator.groups == 1 and ins > 4:
        padded = operator.pixels * operator.taps * (-(-ins // 16) * 16) * (-(-outs // 16) * 16)
    return np.array(
        [1.0, padded / 1e6, operator.elements_in / 1e6, operator.elements_out / 1e6, operator.weights / 1e6]
    )


def shape_features(operator: Operator) -> list[float]:
    """What trees look at: sizes on a logarithmic scale, and how channels fall on vectors."""
    ins, outs = operator.channels
    work = [operator.macs, operator.elements_in, operator.elements_out, operator.weights, operator.pixels, ins, outs]
    filled = [count / (-(-count // lanes) * lanes) for count in (ins, outs) for lanes in (4, 8, 16, 32)]
    functions = ("", "relu", "sigmoid", "hswish", "gelu", "tanh", "swish")
    function = functions.index(operator.function) if operator.function in functions else -1
    return [
        *np.log1p(work).tolist(), *filled, operator.taps, operator.stride, operator.dilation, np.log(operator.groups),
        function, operator.output[-1] % 8, len(operator.inputs),
    ]  # fmt: skip


@dataclass(frozen=True)
class _Learner:
    """One kernel: coefficients of `physics`, trees on the logarithm of the ratio, and the spread of what is left."""

    coefficients: Array
    trees: Any
    spread: float

    def ms(self, operators: Sequence[Operator]) -> Array:
        base = np.stack([physics(each) for each in operators]) @ self.coefficients
        base = np.maximum(base, 1e-5)
        if self.trees is None:
            return np.asarray(base)
        return np.asarray(base * np.exp(self.trees.predict([shape_features(each) for each in operators])))


@dataclass(frozen=True)
class KernelModel:
    """Learners by kernel, and how whole models relate to their operators.

    ms = sum of scales[kernel] x operator + each_ms x operators + start_ms; the latter two may be negative, since a
    profiler adds to what it times.
    """

    learners: Mapping[str, _Learner]
    scales: Mapping[str, float] = field(default_factory=dict)
    each_ms: float = 0.0
    start_ms: float = 0.0
    model_spread: float = 0.08

    @classmethod
    def fit(cls, rows: Sequence[tuple[Operator, float]], seed: int = 0) -> KernelModel:
        """Learn from measured operators.

        Raises:
            DeviceError: there are none.
        """
        if not rows:
            raise DeviceError("no operator was measured", "run secateur calibrate first")
        groups: dict[str, list[tuple[Operator, float]]] = defaultdict(list)
        for operator, ms in rows:
            groups[kernel(operator)].append((operator, ms))
        return cls({name: _learn(group, seed) for name, group in groups.items()})

    def with_models(self, measured: Sequence[tuple[Sequence[Operator], float]]) -> KernelModel:
        """Also learn from whole models what operators alone do not tell: layout changes, fusion, the call itself."""
        from scipy.optimize import lsq_linear

        names = sorted({_part(each) for operators, _ in measured for each in operators})
        ms = np.array([each for _, each in measured])
        design = np.stack([self._sums(operators, names) for operators, _ in measured]) / ms[:, None]
        size = np.sqrt((design**2).mean(0)) * np.array([1.0] * len(names) + [0.1, 0.1])
        expected = np.array([1.0] * len(names) + [0.0, 0.0])
        low = np.array([0.0] * len(names) + [-2 * EACH_MS, -2 * START_MS]) / [*[1.0] * len(names), EACH_MS, START_MS]
        tie = SHRINK * np.sqrt(len(ms)) * np.diag(np.maximum(size, 1e-9))
        weight, found, rest = np.ones(len(ms)), expected, np.zeros(len(ms))
        for _ in range(6):  # robust: Cauchy weights on relative errors
            rows, wanted = np.vstack([design * weight[:, None], tie]), np.concatenate([weight, tie @ expected])
            found = lsq_linear(rows, wanted, bounds=(low, np.full(len(low), 3.0))).x
            rest = design @ found - 1
            scale = max(1.48 * float(np.median(np.abs(rest))), 0.01)
            weight = 1 / np.sqrt(1 + (rest / (2 * scale)) ** 2)
        spread = float(np.quantile(np.abs(rest), 0.9)) / 1.645
        scales = dict(zip(names, found[:-2].tolist(), strict=True))
        each, start = float(found[-2]) * EACH_MS, float(found[-1]) * START_MS
        return replace(self, scales=scales, each_ms=each, start_ms=start, model_spread=max(spread, 0.02))

    def _sums(self, operators: Sequence[Operator], names: Sequence[str]) -> Array:
        """Milliseconds of each part of a model, then its operators and its start in units of EACH_MS and START_MS."""
        sums = dict.fromkeys(names, 0.0)
        for operator, ms in zip(operators, self._alone(operators), strict=True):
            sums[_part(operator)] += ms
        return np.array([*sums.values(), EACH_MS * len(operators), START_MS])

    def layers(self, operators: Sequence[Operator]) -> list[float]:
        """Milliseconds of each operator in a model."""
        return [
            max(self.scales.get(_part(operator), 1.0) * ms + self.each_ms, 0.0)
            for operator, ms in zip(operators, self._alone(operators), strict=True)
        ]

    def whole(self, parts_ms: float) -> float:
        """Milliseconds of a model whose layers take so many together."""
        return max(parts_ms + self.start_ms, 0.3 * parts_ms, 1e-4)

    def _alone(self, operators: Sequence[Operator]) -> list[float]:
        found = np.zeros(len(operators))
        groups: dict[str, list[int]] = defaultdict(list)
        for index, operator in enumerate(operators):
            groups[self._stand_in(kernel(operator))].append(index)
        for name, indices in groups.items():
            if name:
                found[indices] = self.learners[name].ms([operators[index] for index in indices])
        return found.tolist()

    def predict(self, operators: Sequence[Operator]) -> Estimate:
        """Latency of a model for one sample."""
        parts, kinds = self.layers(operators), [kernel(each) for each in operators]
        ms = self.whole(sum(parts))
        strange = sum(part for part, kind in zip(parts, kinds, strict=True) if kind not in self.learners)
        spread = float(np.hypot(self.model_spread, 0.7 * strange / max(sum(parts), 1e-9)))
        shares: dict[str, float] = defaultdict(float)
        for part, kind in zip(parts, kinds, strict=True):
            shares[kind] += part / max(sum(parts), ms)
        half = 1.645 * spread
        return Estimate(ms, ms * float(np.exp(-half)), ms * float(np.exp(half)), 67.45 * spread, dict(shares))

    def steps(self, operator: Operator, axis: Literal["in", "out"] = "out", least: float = 0.08) -> list[int]:
        """Channel counts that are cheap: the last before a jump of the time by `least`, as a share.

        A pruning method that stops at one of these gets the time it paid for with channels. Ascending; the last is
        the operator's own.
        """
        own = operator.channels[0 if axis == "in" else 1]
        counts = list(range(1, own + 1))
        ms = np.minimum.accumulate(self.layers([with_channels(operator, axis, count) for count in counts])[::-1])[::-1]
        found = [count for count in counts[:-1] if ms[count] > (1 + least) * ms[count - 1]]
        return [*found, own]

    def _stand_in(self, name: str) -> str:
        while name and name not in self.learners:
            name = FALLBACK.get(name, "")
        return name


def with_channels(operator: Operator, axis: Literal["in", "out"], count: int) -> Operator:
    """The operator with another number of input or output channels; of a depthwise convolution, of both."""
    ins, outs = operator.channels
    if operator.depthwise:
        shape = (count, *operator.output[1:])
        inputs = tuple((count, *each[1:]) for each in operator.inputs)
        return replace(operator, inputs=inputs, output=shape, groups=count, weights=count * operator.taps)
    if axis == "out":
        return replace(operator, output=(count, *operator.output[1:]), weights=operator.weights * count // outs)
    inputs = tuple((count, *each[1:]) for each in operator.inputs)
    return replace(operator, inputs=inputs, weights=operator.weights * count // ins)


def _learn(rows: Sequence[tuple[Operator, float]], seed: int) -> _Learner:
    from scipy.optimize import nnls
    from sklearn.ensemble import ExtraTreesRegressor, GradientBoostingRegressor, VotingRegressor

    ms = np.array([max(each, 1e-5) for _, each in rows])
    design = np.stack([physics(operator) for operator, _ in rows]) / ms[:, None]
    coefficients, _ = nnls(design, np.ones(len(ms)))
    ratio = -np.log(np.maximum(design @ coefficients, 1e-3))
    if len(rows) < FEW:
        return _Learner(coefficients, None, float(np.std(ratio)))
    features = [shape_features(operator) for operator, _ in rows]
    trees = VotingRegressor(
        [
            ("boosted", GradientBoostingRegressor(
                loss="huber", n_estimators=150, learning_rate=0.1, max_depth=5, subsample=0.7, min_samples_leaf=2,
                random_state=seed,
            )),
            ("extra", ExtraTreesRegressor(n_estimators=60, min_samples_leaf=1, random_state=seed)),
        ]
    )  # fmt: skip
    trees.fit(features, ratio)
    return _Learner(coefficients, trees, float(np.std(ratio - trees.predict(features))))


def cross_errors(rows: Sequence[tuple[Operator, float]], folds: int = 4, seed: int = 0) -> Array:
    """Log error of each row, predicted by learners that never saw it; 0 where a kernel has too few rows."""
    errors = np.zeros(len(rows))
    fold = np.random.default_rng(seed).integers(0, folds, len(rows))
    for turn in range(folds):
        inside, outside = [*np.flatnonzero(fold != turn)], [*np.flatnonzero(fold == turn)]
        if not inside or not outside:
            continue
        predicted = KernelModel.fit([rows[index] for index in inside], seed).layers([rows[i][0] for i in outside])
        for index, ms in zip(outside, predicted, strict=True):
            errors[index] = np.log(max(ms, 1e-5) / max(rows[index][1], 1e-5)) if ms > 0 else 0.0
    return errors
