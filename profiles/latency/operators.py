"""Operator: one step that a runtime executes, described by its shapes alone.

The same description comes from an ONNX file (`read`) and from the tables of published networks (`tables`), so that a
model fitted on the one predicts the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]

CONVOLUTIONS = ("conv", "deconv")
FAMILIAR = frozenset(
    ("conv", "deconv", "linear", "pool", "lrn", "norm", "activation", "elementwise", "concat", "slice", "shuffle",
     "reshape", "reduce", "resize", "softmax", "detect")
)  # fmt: skip
"""Kinds that occur in the published networks; time spent in others is a guess, and makes a prediction less certain."""


@dataclass(frozen=True)
class Operator:
    """One operator for one sample.

    Attributes:
        kind: what it does, see FAMILIAR; `matmul` is a product of two activations.
        inputs: shapes of its activations without the batch: (channels, height, width), or fewer dimensions.
        output: shape of its (first) result.
        kernel, stride, dilation, groups: of a convolution or pooling window; of a 3-D one, the first two sizes of the
            kernel are multiplied.
        weights: number of weights, biases left out.
        function: of an activation, also when fused: `relu`, `swish`, ...
        name: of the layer in the user's model, where known.
        multiplications: of a product for which the shapes above do not tell them.
    """

    kind: str
    inputs: tuple[Shape, ...]
    output: Shape
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    weights: int = 0
    function: str = ""
    name: str = ""
    multiplications: int = 0

    @property
    def elements_in(self) -> int:
        return sum(prod(shape) for shape in self.inputs)

    @property
    def elements_out(self) -> int:
        return prod(self.output)

    @property
    def pixels(self) -> int:
        """Positions of the output, for which a convolution computes all its channels."""
        return prod(self.output[1:]) if self.output else 1

    @property
    def channels(self) -> tuple[int, int]:
        """(input, output) channels."""
        return (self.inputs[0][0] if self.inputs and self.inputs[0] else 1), (self.output[0] if self.output else 1)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def depthwise(self) -> bool:
        return self.kind in CONVOLUTIONS and self.groups > 1 and self.channels == (self.groups, self.groups)

    @property
    def macs(self) -> int:
        """Multiplications of a convolution, linear layer or matrix product; 0 for others."""
        if self.multiplications:
            return self.multiplications
        if self.kind == "linear":
            return self.weights * max(1, self.elements_out // max(self.output[-1], 1))
        if self.kind == "matmul":
            return self.elements_out * self.inputs[0][-1]
        if self.kind not in CONVOLUTIONS:
            return 0
        ins, outs = self.channels
        pixels = prod(self.inputs[0][1:]) if self.kind == "deconv" else self.pixels
        return pixels * outs * ins // self.groups * self.taps

    @property
    def elements_moved(self) -> int:
        """Weights and activations that are read and written, each once; a reshape moves nothing."""
        return 0 if self.kind == "reshape" else self.weights + self.elements_in + self.elements_out


def total_macs(operators: Sequence[Operator]) -> int:
    return sum(operator.macs for operator in operators)
