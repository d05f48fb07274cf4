"""A latency model learned from operators that were measured on a device: one learner for each kind of kernel.

    model = KernelModel.fit(rows)              # what was measured, see Measured
    model.predict(read_onnx("model.onnx")).ms
    model.steps(operator, axis="out")          # channel counts at which the time jumps

A learner is a physical estimate (a non-negative combination of work, traffic and dispatch, which extrapolates) times
a correction by random trees (which know where channels fill a vector). Operators are measured with their weights in the
caches, and after these were filled with something else: the difference tells how long a kernel's weights take to come
from memory, in whatever form the runtime keeps them (Winograd's are seven times as large). A model whose weights
outgrow the caches pays for a part of that; how much, whole models tell. Nothing of it is stored: the measurements are,
and learning from them takes a second, so no pickle is ever loaded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secateur.core.errors import DeviceError
from secateur.profiles.latency.estimate import Estimate
from secateur.profiles.latency.operators import CONVOLUTIONS, Operator
from secateur.profiles.latency.whole import UNCHECKED, Spread, fit, memory_share

Array = NDArray[np.float64]
FEW = 12
"""Rows below which a kernel has the physical estimate alone."""
EACH_MS, START_MS = 1e-3, 1e-2
"""Units of what a model adds for each operator and for a call."""
TREES = 100
FALLBACK = {
    "stem": "conv", "grouped": "conv", "deconv": "conv", "matmul": "linear", "slice": "concat", "shuffle": "concat",
    "resize": "concat",
    "reduce": "pool", "norm": "elementwise", "lrn": "activation", "softmax": "activation", "layernorm": "activation",
}  # fmt: skip
"""Kernel that stands in for one that was not measured."""


_FUNCTIONS = ("relu", "sigmoid", "hswish", "gelu", "tanh", "swish")
_FILLS = ((False, False), (False, True), (True, False), (True, True))


class Measured(NamedTuple):
    """An operator and its milliseconds: called again and again, and after its weights were pushed out of the caches."""

    operator: Operator
    ms: float
    cold_ms: float


def kernel(operator: Operator) -> str:
    """The kind of kernel that runs an operator."""
    if operator.depthwise:
        return "depthwise"
    if operator.kind in CONVOLUTIONS and operator.groups > 1:
        return "grouped"
    return "stem" if operator.kind == "conv" and operator.channels[0] <= 4 else operator.kind


def _part(operator: Operator) -> str:
    """What shares a scale in whole models: kernels, those of one pixel apart from wider ones."""
    name = kernel(operator)
    return "pointwise" if name == "conv" and operator.taps == 1 else name


def lanes(count: int) -> int:
    """Channels that fit a vector exactly, up to 16: runtimes pack that many, and one by one what fits none."""
    return min(count & -count, 16)


def physics(operator: Operator) -> Array:
    """What time is made of, in millions: 1 (dispatch); arithmetic of 3x3 kernels, of 1x1 and of other ones,
    each on input and output channels that fill vectors or do not; elements by the function that is applied to them;
    separate channels that fill none; traffic in and out; weights of 3x3 kernels and of others."""
    ins, outs = operator.channels
    winograd = _winograd(operator)
    kinds = (winograd, operator.taps == 1, not winograd and operator.taps > 1)
    loose = (lanes(ins) < 4 and kernel(operator) != "stem", lanes(outs) < 4)
    macs = operator.pixels * operator.taps * _full(ins) * _full(outs) if kernel(operator) == "conv" else operator.macs
    work = [
        (macs if loose == (False, False) else operator.macs) * (kind and loose == fill)
        for kind in kinds for fill in _FILLS
    ]  # fmt: skip
    applied = [operator.elements_in * (operator.function == name) for name in _FUNCTIONS]
    moved = [
        operator.elements_in,
        operator.elements_out,
        winograd * operator.weights,
        (not winograd) * operator.weights,
    ]
    separate = operator.groups * (operator.groups > 1 and loose[1])
    return np.array([1e6, *work, *applied, separate, *moved]) / 1e6


def _winograd(operator: Operator) -> bool:
    return operator.taps == 9 and operator.stride == 1


def _full(count: int) -> int:
    return -(-count // 16) * 16


def shape_features(operator: Operator) -> list[float]:
    """What trees look at: sizes on a logarithmic scale, and how channels fall on vectors."""
    ins, outs = operator.channels
    work = [operator.macs, operator.elements_in, operator.elements_out, operator.weights, operator.pixels, ins, outs]
    filled = [count / (-(-count // width) * width) for count in (ins, outs) for width in (4, 8, 16, 32)]
    function = _FUNCTIONS.index(operator.function) if operator.function in _FUNCTIONS else -1
    return [
        *np.log1p(work).tolist(), *filled, lanes(ins), lanes(outs), operator.taps, operator.stride, operator.dilation,
        np.log(operator.groups), function, operator.output[-1] % 8, len(operator.inputs),
    ]  # fmt: skip


@dataclass(frozen=True)
class _Learner:
    """One kernel: coefficients of `physics`, trees on the logarithm of the ratio, the spread of what is left, and the
    milliseconds in which a million weights, of 3x3 kernels and of others, come from memory."""

    coefficients: Array
    trees: Any
    spread: float
    fetching: Array

    def ms(self, operators: Sequence[Operator]) -> Array:
        base = np.stack([physics(each) for each in operators]) @ self.coefficients
        base = np.maximum(base, 1e-5)
        if self.trees is None:
            return np.asarray(base)
        return np.asarray(base * np.exp(self.trees.predict([shape_features(each) for each in operators])))

    def fetch_ms(self, operators: Sequence[Operator]) -> Array:
        return np.asarray(np.stack([physics(each)[-2:] for each in operators]) @ self.fetching)


@dataclass(frozen=True)
class KernelModel:
    """Learners by kernel, and how whole models relate to their operators.

    ms = sum of scales[kernel] x operator + paid(sum of what fetching weights takes) + each_ms x operators + start_ms;
    the latter two may be negative, since a profiler adds to what it times. `memory` holds (knot, slope) of `paid`, a
    convex function: what fits into the caches costs nothing.
    """

    learners: Mapping[str, _Learner]
    scales: Mapping[str, float] = field(default_factory=dict)
    memory: tuple[tuple[float, float], ...] = ()
    each_ms: float = 0.0
    start_ms: float = 0.0
    spread: Spread = UNCHECKED

    @classmethod
    def fit(cls, rows: Sequence[Measured], seed: int = 0) -> KernelModel:
        """Learn from measured operators.

        Raises:
            DeviceError: there are none.
        """
        if not rows:
            raise DeviceError("no operator was measured", "run secateur calibrate first")
        groups: dict[str, list[Measured]] = defaultdict(list)
        for row in rows:
            groups[kernel(row.operator)].append(row)
        return cls({name: _learn(group, seed) for name, group in groups.items()})

    def with_models(self, measured: Sequence[tuple[Sequence[Operator], Sequence[float]]]) -> KernelModel:
        """Also learn from whole models, each measured once or several times, what operators alone do not tell: layout
        changes, fusion, caches, the call; and how far predictions of other models may be off."""
        names = sorted({_part(each) for operators, _ in measured for each in operators})
        warm, fetch = self._alone([each for operators, _ in measured for each in operators])
        ends = np.cumsum([len(operators) for operators, _ in measured])[:-1]
        sums, rows = [], [index for index, (_, times) in enumerate(measured) for _ in times]
        for (operators, _), ms in zip(measured, np.split(warm, ends), strict=True):
            sums.append(self._sums(operators, ms, names))
        fetched = np.array([float(each.sum()) for each in np.split(fetch, ends)])
        ms = np.array([each for _, times in measured for each in times])
        found = fit(np.stack(sums)[rows], fetched[rows], ms, rows)
        *scales, each, start = found.scales.tolist()
        return replace(
            self, scales=dict(zip(names, scales, strict=True)), memory=found.memory,
            each_ms=each * EACH_MS, start_ms=start * START_MS, spread=found.spread,
        )  # fmt: skip

    @staticmethod
    def _sums(operators: Sequence[Operator], warm: Array, names: Sequence[str]) -> Array:
        """Milliseconds of each part of a model, then its operators and its start in units of EACH_MS and START_MS."""
        sums = dict.fromkeys(names, 0.0)
        for operator, ms in zip(operators, warm, strict=True):
            sums[_part(operator)] += ms
        return np.array([*sums.values(), EACH_MS * len(operators), START_MS])

    def layers(self, operators: Sequence[Operator]) -> list[float]:
        """Milliseconds of each operator in this model, whose weights share the caches."""
        return self._shared(self.parts(operators)).tolist()  # type: ignore[no-any-return]

    def _shared(self, parts: Array) -> Array:
        total = float(parts[:, 1].sum())
        return np.maximum(parts @ [1.0, self._paid(total) / max(total, 1e-9)], 0.0)

    def parts(self, operators: Sequence[Operator]) -> Array:
        """Of each operator, in whatever model it stands: milliseconds with its weights in the caches, and of fetching
        these from memory. Sums of them are what `whole` takes. Shape (operators, 2)."""
        warm, fetch = self._alone(operators)
        scale = np.array([self.scales.get(_part(each), 1.0) for each in operators])
        return np.stack([scale * warm + self.each_ms, fetch], axis=1)

    def whole(self, sums: Array) -> float:
        """Milliseconds of a model from the sums of its operators' parts, shape (2,)."""
        ms = float(sums[0]) + self._paid(float(sums[1]))
        return max(ms + self.start_ms, 0.3 * ms, 1e-4)

    def _paid(self, fetch_ms: float) -> float:
        return sum(slope * max(fetch_ms - knot, 0.0) for knot, slope in self.memory)

    def _alone(self, operators: Sequence[Operator]) -> tuple[Array, Array]:
        """Milliseconds of each operator with its weights in the caches, and of fetching these from memory."""
        warm, fetch = np.zeros(len(operators)), np.zeros(len(operators))
        groups: dict[str, list[int]] = defaultdict(list)
        for index, operator in enumerate(operators):
            groups[self._stand_in(kernel(operator))].append(index)
        for name, indices in groups.items():
            if name:
                learner, chosen = self.learners[name], [operators[index] for index in indices]
                warm[indices], fetch[indices] = learner.ms(chosen), learner.fetch_ms(chosen)
        return warm, fetch

    def predict(self, operators: Sequence[Operator]) -> Estimate:
        """Latency of a model for one sample."""
        table, kinds = self.parts(operators), [kernel(each) for each in operators]
        ms, parts = self.whole(table.sum(0)), self._shared(table).tolist()
        strange = sum(part for part, kind in zip(parts, kinds, strict=True) if kind not in self.learners)
        unsure = 0.7 * strange / max(sum(parts), 1e-9)
        share = memory_share(*table.sum(0).tolist())
        shares: dict[str, float] = defaultdict(float)
        for part, kind in zip(parts, kinds, strict=True):
            shares[kind] += part / max(sum(parts), ms)
        half = float(np.hypot(self.spread.half(share), 1.645 * unsure))
        error = float(np.hypot(self.spread.median(share), 0.6745 * unsure))
        return Estimate(ms, ms * float(np.exp(-half)), ms * float(np.exp(half)), 100 * error, dict(shares))

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


def _learn(rows: Sequence[Measured], seed: int) -> _Learner:
    from scipy.optimize import nnls
    from sklearn.ensemble import ExtraTreesRegressor

    ms, cold = (np.maximum(times, 1e-5) for times in np.array([(row.ms, row.cold_ms) for row in rows]).T)
    parts = np.stack([physics(row.operator) for row in rows])
    coefficients, _ = nnls(parts / ms[:, None], np.ones(len(ms)))
    moved = np.hstack([parts[:, :1], parts[:, -4:]])
    fetching, _ = nnls(moved / cold[:, None], (cold - ms) / cold)
    ratio = -np.log(np.maximum(parts @ coefficients / ms, 1e-3))
    if len(rows) < FEW:
        return _Learner(coefficients, None, float(np.std(ratio)), fetching[-2:])
    features = [shape_features(row.operator) for row in rows]
    trees = ExtraTreesRegressor(n_estimators=TREES, random_state=seed).fit(features, ratio)
    return _Learner(coefficients, trees, float(np.std(ratio)), fetching[-2:])


def cross_errors(rows: Sequence[Measured], folds: int = 4, seed: int = 0) -> Array:
    """Log error of each row with warm caches, predicted by learners that never saw it; 0 where a kernel has too few."""
    errors = np.zeros(len(rows))
    fold = np.random.default_rng(seed).integers(0, folds, len(rows))
    for turn in range(folds):
        inside, outside = [*np.flatnonzero(fold != turn)], [*np.flatnonzero(fold == turn)]
        if not inside or not outside:
            continue
        fitted = KernelModel.fit([rows[index] for index in inside], seed)
        predicted, _ = fitted._alone([rows[index].operator for index in outside])
        for index, ms in zip(outside, predicted.tolist(), strict=True):
            errors[index] = np.log(max(ms, 1e-5) / max(rows[index].ms, 1e-5)) if ms > 0 else 0.0
    return errors
