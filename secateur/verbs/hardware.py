"""The target that a budget's limits on latency and energy refer to: what predicts them, what checks them while pruning,
and what judges them in the end."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import nn

from secateur.compress.pagcp.hardware import Checked, Loop
from secateur.core.budget import Budget, Pairs
from secateur.core.bundle import Manifest, OnTarget
from secateur.core.costs import Profile
from secateur.core.device import on_device
from secateur.core.errors import BudgetError, ExportError, TargetUnavailableError
from secateur.core.progress import say
from secateur.core.scratch import Scratch
from secateur.core.task import Workload
from secateur.targets.device import Device
from secateur.targets.hardware import Hardware, hardware_of
from secateur.verbs.benchmark import ORIGINAL, Exports, costs_of
from secateur.verbs.measure import Place, measure, places

MODEL = "model"


def hardware_for(budget: Budget, targets: str | Iterable[str]) -> Hardware | None:
    """What predicts a budget's limits on latency and energy: of the first target; None where there are none.

    Raises:
        BudgetError: all targets are named, which is none in particular.
        DeviceError, TargetUnavailableError: the target is unknown, or nothing predicts it.
    """
    kinds = [limit.kind for limit in budget.on_target.limits]
    if not kinds:
        return None
    names = [targets] if isinstance(targets, str) else list(targets)
    if any(each.strip() == "all" for name in names for each in name.split(",")):
        raise BudgetError(f"{budget.on_target} needs one target, not all", "name it first, for example: --target cpu")
    place = places(names)[0]
    if not isinstance(place, Device):
        raise TargetUnavailableError(f"{place.name}: {place.reason}", place.how or "choose another target")
    return hardware_of(place, kinds)


def loop_for(hardware: Hardware | None, workload: Workload) -> Loop | None:
    """The target in the loop of pruning a workload: predicted at every step, checked after the last."""
    return None if hardware is None else Loop(hardware, Checker(workload, hardware.device))


class Checker:
    """Exports compressed models and says what they take on a place, in turns with the original."""

    def __init__(self, workload: Workload, place: Place) -> None:
        self._workload, self._place = workload, place

    def __call__(self, model: nn.Module) -> Checked | None:
        say(f"checking on {self._place.name}")
        workload, model = on_device(self._workload, "cpu"), copy.deepcopy(model).cpu()
        with Scratch() as temporary:
            exports = Exports(Path(temporary), True)
            try:
                subjects = {
                    ORIGINAL: exports.workload(workload, ORIGINAL),
                    MODEL: exports.workload(workload.with_model(model), MODEL),
                }
                found = measure(subjects, self._place)
            except ExportError as error:
                warnings.warn(f"judged by prediction alone: {error.message}", stacklevel=2)
                return None
        source = found[MODEL].source
        if source not in ("measured", "predicted"):
            warnings.warn(f"judged by prediction alone: {found[MODEL].reason}", stacklevel=2)
            return None
        return Checked(figures_of(found[MODEL], found[ORIGINAL]), source)


def figures_of(model: Profile, original: Profile) -> Pairs:
    """Kind → (model's, original's) figure, of those that a target gives."""
    found = {}
    if model.latency is not None and original.latency is not None:
        found["latency"] = (model.latency.median, original.latency.median)
    if model.energy_mj is not None and original.energy_mj is not None:
        found["energy"] = (model.energy_mj, original.energy_mj)
    return found


def judged(manifest: Manifest, found: Sequence[Mapping[str, Profile]]) -> Manifest:
    """The manifest with its limits on latency and energy judged by the profiles of original and chosen point."""
    entry = manifest.on_target
    profiles = next((each for each in found if entry and each[ORIGINAL].target == entry.target), None)
    if entry is None or profiles is None:
        return manifest
    chosen = profiles[str(manifest.chosen)]
    figures = figures_of(chosen, profiles[ORIGINAL])
    if not figures or chosen.source not in ("measured", "predicted"):
        return manifest
    limits = Budget.parse(manifest.budget).on_target
    late = limits.misses(costs_of(manifest.point.costs), costs_of(manifest.before), figures)
    others = [miss for miss in manifest.misses if not miss.startswith(tuple(f"{limit}:" for limit in limits.limits))]
    misses = [*others, *(f"{miss}, {chosen.source} on {entry.target}" for miss in late)]
    judge = OnTarget(
        target=entry.target, basis=entry.basis, figures=dict(figures), source=chosen.source,
        corrections=entry.corrections,
    )  # fmt: skip
    return manifest.model_copy(update={"misses": misses, "budget_met": not misses, "on_target": judge})
