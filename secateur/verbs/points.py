"""The points of a bundle, judged by a budget: what each costs, how fast it is on a target, what its tasks lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from secateur.core import machine
from secateur.core.budget import Budget, figure
from secateur.core.bundle import Bundle, CostsEntry, Manifest
from secateur.core.costs import Costs
from secateur.core.errors import BudgetError, BudgetNotMetError, TargetUnavailableError
from secateur.core.scratch import Scratch
from secateur.core.task import missed_drop, preference, relative_change
from secateur.export.onnx import to_onnx
from secateur.targets.registry import TargetStatus
from secateur.verbs.benchmark import ORIGINAL, Benchmark, converter, costs_of
from secateur.verbs.complete import point_subjects
from secateur.verbs.hardware import figures_of
from secateur.verbs.measure import Place, Subject, is_predicted, measure, needs_onnx
from secateur.verbs.report import history_of
from secateur.verbs.sources import AnyWorkload, workload_of


class Points:
    """The saved points of a run, by number, from large to small.

    Attributes:
        measured: whether latencies were measured for this choice, rather than when the bundle was written.
        predicted: whether they are a model's.
    """

    def __init__(self, bundle: Bundle, place: Place, workload: AnyWorkload | None = None) -> None:
        """`place`: where a latency counts. `workload`: of the bundle, instead of the one that it refers to."""
        self._bundle, self._place, self._workload = bundle, place, workload
        self._numbers = list(range(len(bundle.manifest.points)))
        self._original, self._figures, self.predicted = _recorded(bundle, place)
        self.measured = False

    @property
    def figures(self) -> dict[str, dict[int, float]]:
        """What is known of the points on the target: latency in milliseconds, energy in millijoules."""
        return self._figures

    def delta_mtl(self, number: int, weights: Mapping[str, float]) -> float:
        """Weighted Δ_MTL of a point in percent, positive is better."""
        manifest = self._bundle.manifest
        before, after, total = manifest.metrics_before, manifest.points[number].metrics, 0.0
        for task in manifest.tasks:
            total += weights[task.name] * relative_change(task.better, before[task.name], after[task.name])
        return 100 * total / sum(weights.values())

    def best(self, budget: Budget, weights: Mapping[str, float]) -> int:
        """The point of the best Δ_MTL that meets the budget, of those that lost no more than the run allowed, if there
        are any; of equals, the smaller.

        Latencies and energies that are not known are measured, or predicted, of the points only that meet the other
        limits.

        Raises:
            BudgetNotMetError: no point meets the budget.
        """
        on_target = budget.on_target.limits
        meeting = self._meeting(Budget(tuple(limit for limit in budget.limits if limit not in on_target)))
        if on_target:
            self._measure(meeting, [limit.kind for limit in on_target])
            meeting = self._meeting(budget, meeting)
        tolerated = [number for number in meeting if not self.drops(number)]
        return max(tolerated or meeting, key=lambda number: (self.delta_mtl(number, weights), number))

    def drops(self, number: int) -> tuple[str, ...]:
        """The tasks of a point that lost more than the run allowed, as sentences."""
        manifest, allowed = self._bundle.manifest, self._bundle.manifest.drops
        if allowed is None:
            return ()
        before, after = manifest.metrics_before, manifest.points[number].metrics
        found = (
            missed_drop(name, relative_change(task.better, before[name], after[name]), allowed.of(name))
            for task in manifest.tasks
            if (name := task.name) in after
        )
        return tuple(sentence for sentence in found if sentence)

    def _meeting(self, budget: Budget, among: Sequence[int] | None = None) -> list[int]:
        among = self._numbers if among is None else among
        found = [number for number in among if not self._misses(number, budget)]
        if not found:
            nearest = min(among, key=lambda number: self._excess(number, budget))
            raise BudgetNotMetError(
                f"no saved point meets the budget; nearest is point {nearest}: "
                f"{'; '.join(self._misses(nearest, budget))}",
                "allow more, or compress again to this budget",
            )
        return found

    def _misses(self, number: int, budget: Budget) -> list[str]:
        manifest = self._bundle.manifest
        return budget.misses(_static(manifest.points[number].costs), _static(manifest.before), self._pairs(number))

    def _excess(self, number: int, budget: Budget) -> float:
        """The largest ratio of a figure to its limit."""
        manifest = self._bundle.manifest
        costs, before = _static(manifest.points[number].costs), _static(manifest.before)
        figures = [figure(limit.kind, costs, before, self._pairs(number)) for limit in budget.limits]
        return max(
            reached / limit.absolute(original)
            for limit, (reached, original) in zip(budget.limits, figures, strict=True)
        )

    def _pairs(self, number: int) -> dict[str, tuple[float, float]]:
        """Kind → (a point's, the original's) figure on the target, where it is known."""
        known = ((kind, found[number]) for kind, found in self._figures.items() if number in found)
        return {kind: (value, self._original[kind]) for kind, value in known if kind in self._original}

    def _measure(self, numbers: Sequence[int], kinds: Sequence[str]) -> None:
        """Measure points and the original in turns, unless they are known."""
        if all(kind in self._pairs(number) for kind in kinds for number in numbers):
            return
        if isinstance(self._place, TargetStatus):
            raise TargetUnavailableError(
                f"{self._place.name}: {self._place.reason}", self._place.how or "choose another target"
            )
        found = workload_of(self._bundle, self._workload)
        with Scratch() as temporary:
            folder, onnx = Path(temporary), needs_onnx(self._place)
            path = folder / "original.onnx"
            original = to_onnx(found.model, found, path) if onnx else path
            convert = converter(lambda: found, folder / ORIGINAL)
            subjects = {ORIGINAL: Subject(original, convert=convert, workload=lambda: found)}
            subjects |= point_subjects(self._bundle, found, numbers, folder, onnx)
            profiles = measure(subjects, self._place)
        for number in numbers:
            for kind, (reached, whole) in figures_of(profiles[str(number)], profiles[ORIGINAL]).items():
                self._figures.setdefault(kind, {})[number], self._original[kind] = reached, whole
        self.predicted = any(profile.source == "predicted" for profile in profiles.values())
        self.measured = not self.predicted


def _static(entry: CostsEntry) -> Costs:
    """Costs that hold on every target: what was predicted when the bundle was made may be of another one."""
    return replace(costs_of(entry), predicted_ms=None, predicted_mj=None)


def _recorded(bundle: Bundle, place: Place) -> tuple[dict[str, float], dict[str, dict[int, float]], bool]:
    """({"latency": original's}, {"latency": points'}) medians that were found on this machine when the bundle was
    written, and whether a model gave them."""
    benchmark = Benchmark.of(bundle)
    if benchmark is None or benchmark.machine != machine.describe():
        return {}, {}, is_predicted(place)
    original = [each for each in benchmark.profiles_against if each.target == place.name and each.latency]
    points = {
        number: point.latency_ms[place.name]
        for number, point in enumerate(bundle.manifest.points)
        if place.name in point.latency_ms
    }
    if not original or original[0].latency is None:
        return {}, {}, is_predicted(place)
    return {"latency": original[0].latency.median}, {"latency": points}, original[0].source == "predicted"


def weights_of(manifest: Manifest, prefer: Mapping[str, float]) -> dict[str, float]:
    """Every task's weight in Δ_MTL: 1 unless the user prefers otherwise.

    Raises:
        BudgetError: no such task, or weights that make no mean.
    """
    names = [task.name for task in manifest.tasks]
    for name in prefer:
        if name not in names:
            raise BudgetError(f'no task "{name}" to prefer', f"the tasks are: {', '.join(names)}")
    return preference(prefer, names)


def widths(bundle: Bundle, number: int) -> dict[str, int]:
    """Channels that each prunable group kept at a point, from the run's decisions: point n is the end of round n."""
    history = history_of(bundle)
    kept = {group["name"]: group["channels"] for group in history["groups"] if group["prunable"]}
    kept |= {each["group"]: each["kept"] for each in history["decisions"] if each["round"] <= number}
    return kept
