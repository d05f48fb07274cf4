"""Parts: the operators of an elastic model's parts, so that any target prices every configuration without torch.

    parts.figures(model.parts(parts.operators), model.whole).of(row, {"depth": 2})

Few operators are distinct: each layer depends on a few widths only. A part is a list of their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.core.elastic import Figures
from secateur.core.errors import BundleError
from secateur.profiles.latency.operators import Operator

if TYPE_CHECKING:
    from secateur.core.bundle import Bundle

FILE = "operators.json"
"""Where a bundle keeps them."""
Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Parts:
    """What a runtime executes for one sample in each part of a table's configurations.

    Attributes:
        operators: the distinct ones, without names.
        shared: numbers of the operators that several tasks need, for every row [K].
        decoders: task → numbers of its own operators, for every row and width [K][D_t].
    """

    operators: tuple[Operator, ...]
    shared: tuple[Numbers, ...]
    decoders: Mapping[str, tuple[tuple[Numbers, ...], ...]]

    def figures(self, each: Iterable[Any], whole: Callable[[Any], float] = float) -> Figures:
        """A figure of every part: of the shared one by itself, and what each decoder adds to it.

        Args:
            each: of every operator, a number or an array of what adds up.
            whole: from a sum of these to the figure.
        """
        prices = np.array(list(each), dtype=float)
        sums = [prices[list(numbers)].sum(0) for numbers in self.shared]
        alone = np.array([whole(each) for each in sums])
        added = {
            task: np.array(
                [
                    [whole(sums[k] + prices[list(numbers)].sum(0)) - alone[k] for numbers in row]
                    for k, row in enumerate(rows)
                ]
            )
            for task, rows in self.decoders.items()
        }
        return Figures(alone, added)

    def of(self, row: int, decoders: Mapping[str, int]) -> list[Operator]:
        """The operators of one configuration."""
        numbers = [*self.shared[row], *(n for task, d in decoders.items() for n in self.decoders[task][row][d])]
        return [self.operators[number] for number in numbers]

    def as_json(self) -> dict[str, Any]:
        return {
            "operators": [_listed(operator) for operator in self.operators],
            "shared": [list(numbers) for numbers in self.shared],
            "decoders": {task: [[list(n) for n in row] for row in rows] for task, rows in self.decoders.items()},
        }

    @classmethod
    def from_json(cls, document: Any) -> Parts:
        """Read parts back.

        Raises:
            BundleError: damaged.
        """
        try:
            found = cls(
                tuple(_operator(each) for each in document["operators"]),
                tuple(_numbers(each) for each in document["shared"]),
                {
                    str(task): tuple(tuple(_numbers(each) for each in row) for row in rows)
                    for task, rows in document["decoders"].items()
                },
            )
            used = {n for part in (found.shared, *(row for d in found.decoders.values() for row in d)) for n in part}
            if any(not 0 <= number < len(found.operators) for numbers in used for number in numbers):
                raise ValueError("the number of an operator is out of range")
            return found
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise BundleError(f"the operators of the bundle are damaged: {error!r}", "copy the bundle again") from error


def read_parts(bundle: Bundle) -> Parts:
    """The parts of an elastic bundle.

    Raises:
        BundleError: it holds none, or damaged ones.
    """
    if FILE not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.path} does not hold its operators, so that other targets cannot be predicted", "compress it again"
        )
    path = bundle.checked_file(FILE)
    try:
        return Parts.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}", "copy the bundle again") from error


def _listed(operator: Operator) -> list[Any]:
    """An operator as a list, without its name: there are hundreds."""
    return [
        operator.kind, [list(shape) for shape in operator.inputs], list(operator.output), list(operator.kernel),
        operator.stride, operator.dilation, operator.groups, operator.weights, operator.function,
    ]  # fmt: skip


def _operator(given: Any) -> Operator:
    kind, inputs, output, kernel, stride, dilation, groups, weights, function = given
    high, wide = _numbers(kernel)
    return Operator(
        str(kind), tuple(_numbers(shape) for shape in inputs), _numbers(output), (high, wide), int(stride),
        int(dilation), int(groups), int(weights), str(function),
    )  # fmt: skip


def _numbers(given: Any) -> Numbers:
    return tuple(int(each) for each in given)
