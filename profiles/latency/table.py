"""A table of operators' times, so that a latency model can be asked for thousands of models that differ in few layers.

table = LatencyTable(model)
table.ms(operators)         # as model.predict(operators).ms; what was met before is looked up
table.learn([a, b, c])      # ask the model for all their operators at once
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from secateur.profiles.latency.estimate import Estimate
from secateur.profiles.latency.operators import Operator


class LatencyModel(Protocol):
    """What predicts a latency, whatever is behind it: predict(x).ms is whole(sum(parts(x)))."""

    def predict(self, operators: Sequence[Operator]) -> Estimate: ...

    def layers(self, operators: Sequence[Operator]) -> list[float]: ...

    def parts(self, operators: Sequence[Operator]) -> Iterable[Any]:
        """Of each operator, whatever model it stands in: milliseconds, or an array of what adds up."""
        ...

    def whole(self, sums: Any) -> float: ...


@dataclass
class LatencyTable:
    """A latency model that remembers what it was asked."""

    model: LatencyModel
    known: dict[Operator, Any] = field(default_factory=dict)

    def ms(self, operators: Sequence[Operator]) -> float:
        """Milliseconds of a model for one sample."""
        nameless = [replace(each, name="") if each.name else each for each in operators]
        self.learn([nameless])
        return self.model.whole(sum(self.known[each] for each in nameless))

    def learn(self, models: Iterable[Sequence[Operator]]) -> None:
        """Ask for the operators, without names, of several models at once, which costs little more than for one."""
        missing = list(dict.fromkeys(each for one in models for each in one if each not in self.known))
        if missing:
            self.known.update(zip(missing, self.model.parts(missing), strict=True))
