"""Budgets and tolerances, parsed from what a person would type.

Budget.parse(["flops<=40%", "params<=2M"])        limits; all must hold
Tolerance.parse(["1%", "depth=3%"])               allowed relative drop of each task's metric
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from secateur.core.costs import Costs
from secateur.core.errors import BudgetError

Kind = Literal["flops", "params", "latency", "memory", "size", "energy"]
KINDS: tuple[str, ...] = get_args(Kind)
ON_TARGET = ("latency", "energy")
"""Kinds that are figures of a target."""
Pairs = Mapping[str, tuple[float, float]]
"""Kind → (compressed, original) on a target, in base units."""

_COUNT = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}
_UNITS: dict[str, dict[str, float]] = {  # scale to the base unit of each kind
    "flops": _COUNT,
    "params": _COUNT,
    "latency": {"US": 1e-3, "MS": 1.0, "S": 1e3},  # base: milliseconds
    "memory": _BYTES,
    "size": _BYTES,
    "energy": {"UJ": 1e-3, "MJ": 1.0, "J": 1e3},  # base: millijoules
}
_EXAMPLES = {
    "flops": "80M",
    "params": "2M",
    "latency": "8ms",
    "memory": "4MiB",
    "size": "1MiB",
    "energy": "3mJ",
}
_ALIASES = {"mac": "flops", "macs": "flops", "flop": "flops", "param": "params", "parameters": "params"}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_LIMIT = re.compile(rf"^\s*([A-Za-z_]+)\s*(<=|<|=|:)\s*({_NUMBER})\s*(%|[A-Za-z]*)\s*$")
_DROP = re.compile(rf"^\s*(?:(?P<task>[^=<>]*[^=<>\s])\s*(?:<=|=)\s*)?(?P<number>{_NUMBER})\s*(?P<unit>%?)\s*$")


@dataclass(frozen=True)
class Limit:
    """One limit, such as `flops<=40%`: `value` is a fraction of the original when `relative`, else in the base
    unit of its kind (count, milliseconds, bytes, millijoules)."""

    kind: str
    value: float
    relative: bool
    text: str

    def __str__(self) -> str:
        return self.text

    def absolute(self, original: float) -> float:
        """The limit in base units, given the original model's figure of the same kind."""
        return self.value * original if self.relative else self.value


@dataclass(frozen=True)
class Budget:
    """Limits that must all hold. Kinds: flops, params, latency, memory (peak activations + weights), size, energy."""

    limits: tuple[Limit, ...] = ()

    @classmethod
    def parse(cls, text: str | Iterable[str] | Budget | None) -> Budget:
        """Parse `"flops<=40%"` or several of them.

        Raises:
            BudgetError: with the text found and an example of what is meant.
        """
        if isinstance(text, Budget):
            return text
        limits = tuple(_parse_limit(item) for item in _items(text, "budget", '"flops<=40%"'))
        kinds = [limit.kind for limit in limits]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise BudgetError(f"two budgets for {kind}", "give each kind of budget once")
        return cls(limits)

    def __str__(self) -> str:
        return ", ".join(map(str, self.limits)) or "none"

    def __bool__(self) -> bool:
        return bool(self.limits)

    def of(self, kind: str) -> Limit | None:
        return next((limit for limit in self.limits if limit.kind == kind), None)

    @property
    def on_target(self) -> Budget:
        """The limits on figures of a target."""
        return Budget(tuple(limit for limit in self.limits if limit.kind in ON_TARGET))

    def misses(self, costs: Costs, original: Costs, on_target: Pairs | None = None) -> list[str]:
        """What does not hold, as sentences; empty when the budget is met.

        Args:
            costs: of the compressed model; `original`: of the model before.
            on_target: figures that are known of a target, which go above those that `costs` predict.
        """
        misses = []
        for limit in self.limits:
            reached, before = figure(limit.kind, costs, original, on_target)
            allowed = limit.absolute(before)
            if reached > allowed * (1 + 1e-9):
                misses.append(f"{limit.text}: reached {describe(limit, reached, before)}")
        return misses


def figure(kind: str, costs: Costs, original: Costs, on_target: Pairs | None = None) -> tuple[float, float]:
    """(compressed, original) figure of one kind of budget, in its base unit."""
    if kind == "flops":
        return costs.flops, original.flops
    if kind == "params":
        return costs.params, original.params
    if kind == "memory":
        return costs.peak_memory_bytes, original.peak_memory_bytes
    if kind == "size":
        return costs.size_bytes, original.size_bytes
    if on_target and kind in on_target:
        return on_target[kind]
    name = "predicted_ms" if kind == "latency" else "predicted_mj"
    found, before = getattr(costs, name), getattr(original, name)
    if found is not None and before is not None:
        return found, before
    example = "mobile:raspberry-pi-5" if kind == "energy" else "cpu"
    raise BudgetError(f"a budget on {kind} needs a target that gives it", f"name one, for example: --target {example}")


def describe(limit: Limit, reached: float, original: float) -> str:
    """A figure in the words of its limit: `43.1%`, or `2.31M`."""
    if limit.relative:
        return f"{100 * reached / original:.1f}%"
    units = {"latency": "ms", "energy": "mJ", "memory": "KiB", "size": "KiB"}
    scale = 1024.0 if limit.kind in ("memory", "size") else 1.0
    if limit.kind in ("flops", "params"):
        return human_count(reached)
    return f"{reached / scale:.3g} {units[limit.kind]}"


def human_count(value: float) -> str:
    """1234567 → `1.23M`."""
    for suffix, scale in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f}{suffix}"
    return f"{value:.0f}"


def _items(text: object, what: str, example: str) -> list[str]:
    """The single budgets or drops in a text, or in several."""
    if text is None:
        return []
    parts = list(text) if isinstance(text, Iterable) and not isinstance(text, str) else [text]
    items: list[str] = []
    for part in parts:
        if not isinstance(part, str):
            raise BudgetError(f"a {what} is text, not {part!r}", f"for example: {example}")
        items += [item for item in part.split(",") if item.strip()]
    return items


def _parse_limit(text: str) -> Limit:
    match = _LIMIT.match(text)
    if match is None:
        raise BudgetError(
            f'cannot read the budget "{text.strip()}"',
            'write kind, <=, number and unit, for example: "flops<=40%", "params<=2M", "latency<=8ms"',
        )
    name, _, number, unit = match.groups()
    kind = _ALIASES.get(name.lower(), name.lower())
    if kind == "drop":
        raise BudgetError(
            f'"{text.strip()}" is a tolerance, not a budget', "give it as the drop, for example: --drop 1%"
        )
    if kind not in KINDS:
        raise BudgetError(f'unknown kind of budget "{name}"', f"budgets limit one of: {', '.join(KINDS)}")
    if name.lower() in ("mac", "macs") and unit != "%":
        number = f"{2 * float(number):.12g}"
    value = float(number)
    if not math.isfinite(value):
        raise BudgetError(f'the budget "{text.strip()}" limits nothing', "give a smaller number")
    if value <= 0:
        raise BudgetError(f'the budget "{text.strip()}" leaves nothing', "give a number above zero")
    if unit == "%":
        if value > 100:
            raise BudgetError(f'the budget "{text.strip()}" is above the original', "give at most 100%")
        return Limit(kind, value / 100, True, f"{kind}<={number}%")
    if unit == "":
        raise BudgetError(
            f'the budget "{text.strip()}" has no unit',
            f'did you mean "{kind}<={number}%" (of the original), or a figure with a unit such as '
            f'"{kind}<={_EXAMPLES[kind]}"?',
        )
    scale = _UNITS[kind].get(unit.upper())
    if scale is None:
        raise BudgetError(
            f'"{unit}" is no unit of {kind}',
            f'for example: "{kind}<={_EXAMPLES[kind]}", or "%" of the original',
        )
    return Limit(kind, value * scale, False, f"{kind}<={number}{unit}")


@dataclass(frozen=True)
class Tolerance:
    """Allowed relative drop of each task's metric, as fractions: 0.01 is 1 %. `default` holds for the tasks that
    are not named."""

    default: float = 0.01
    tasks: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(
        cls, text: str | Iterable[str] | Mapping[str, str] | Tolerance | None, default: float = 0.01
    ) -> Tolerance:
        """Parse `"1%"`, `["1%", "depth=3%"]` or `{"*": "1%", "depth": "3%"}`.

        Args:
            default: what holds where the text says it of named tasks only.

        Raises:
            BudgetError: with the text found and an example of what is meant.
        """
        if isinstance(text, Tolerance):
            return text
        if isinstance(text, Mapping):
            text = [value if task == "*" else f"{task}={value}" for task, value in text.items()]
        tasks = dict[str, float]()
        for part in _items(text, "drop", '"1%", or "depth=3%" for one task'):
            task, drop = _parse_drop(part)
            if task is None:
                default = drop
            else:
                tasks[task] = drop
        return cls(default, tuple(tasks.items()))

    def of(self, task: str) -> float:
        return dict(self.tasks).get(task, self.default)

    def check(self, known: Iterable[str]) -> None:
        """Raise BudgetError when a named task does not exist."""
        names = list(known)
        for task, _ in self.tasks:
            if task not in names:
                raise BudgetError(f'no task "{task}" for the drop', f"the tasks are: {', '.join(names)}")

    def __str__(self) -> str:
        named = [f"{task}={100 * drop:g}%" for task, drop in self.tasks]
        return ", ".join([f"{100 * self.default:g}%", *named])


def _parse_drop(text: str) -> tuple[str | None, float]:
    match = _DROP.match(re.sub(r"^\s*drop\s*(?:\.\s*([^=<>]*[^=<>\s])\s*)?(<=|=)", _plain_drop, text))
    if match is None:
        raise BudgetError(f'cannot read the drop "{text.strip()}"', 'for example: "1%", or "depth=3%" for one task')
    if not match["unit"]:
        raise BudgetError(f'the drop "{text.strip()}" has no unit', f'did you mean "{match["number"]}%"?')
    if float(match["number"]) >= 100:
        raise BudgetError(f'the drop "{text.strip()}" allows losing everything', "give a percentage below 100%")
    return match["task"], float(match["number"]) / 100


def _plain_drop(match: re.Match[str]) -> str:
    """`drop<=` → ``, `drop.depth<=` → `depth=`: the long spelling says the same."""
    return f"{match[1]}=" if match[1] else ""
