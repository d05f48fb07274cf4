"""Measuring models on targets: interleaved where they are compared, with the reason where a target cannot be had.

measure({"original": Subject(a), "compressed": Subject(b)}, place("cpu"), against="original")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur.core.costs import Costs, Profile, with_ratios
from secateur.core.errors import (
    DeviceError,
    ExportError,
    MissingExtraError,
    ParityError,
    SecateurError,
    TargetUnavailableError,
)
from secateur.core.task import Workload
from secateur.profiles.latency.read import onnx_costs
from secateur.targets.compiled import measure_compiled
from secateur.targets.cpu import inputs_of, measure_onnx
from secateur.targets.device import Device, RoutedLatency, StreamedLatency
from secateur.targets.farm.target import FarmTarget, is_farm
from secateur.targets.here import measure_here
from secateur.targets.predict import calibration_of, predict_onnx
from secateur.targets.registry import TargetStatus, device_status, find, stand_in, status
from secateur.targets.runtimes import RUNTIMES, LocalRuntime
from secateur.verbs.routed import measure_routed
from secateur.verbs.streamed import measure_streamed

Place = Device | TargetStatus
"""A device that can be measured from here or predicted, or why neither is possible."""


@dataclass(frozen=True)
class Subject:
    """A model to measure: its ONNX file, and what is known of it besides."""

    onnx: Path
    costs: Costs | None = None
    parity_max_abs: float | None = None
    convert: Callable[[str], Path] | None = None
    """Makes the model in another format of `export/`, where there is more than the ONNX file."""
    workload: Callable[[], Workload] | None = None
    """The model as torch has it, with its data, where there is more than the ONNX file."""

    @classmethod
    def of_file(cls, onnx: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Subject:
        """An ONNX file that anybody made, with the costs that can be read from it."""
        try:
            return cls(onnx, onnx_costs(onnx, shapes))
        except ExportError:  # what a target makes of the file is that target's to say
            return cls(onnx)

    def has(self, runtime: LocalRuntime) -> bool:
        """Whether there is a form of the model that a runtime executes."""
        return runtime.reads_onnx or self.convert is not None

    def form(self, runtime: LocalRuntime) -> Path:
        """The model in a form that a runtime executes.

        Raises:
            ExportError: there is none, or the model cannot be expressed in it.
        """
        if runtime.reads_onnx:
            return self.onnx
        if self.convert is None:
            raise ExportError(
                f"{self.onnx} is ONNX, and {runtime.format} files are made from the model",
                "name a bundle or a workload; or have it predicted: run secateur calibrate mobile once",
            )
        return self.convert(runtime.format)


def places(names: str | Iterable[str]) -> list[Place]:
    """Targets by name; `"all"` is every one, text may name several between commas.

    Raises:
        DeviceError: no such target.
    """
    texts = [names] if isinstance(names, str) else list(names)
    wanted = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    known = {each.name: each for each in status()}
    if "all" in wanted:
        wanted = list(known)
    if not wanted:
        raise DeviceError("no target was named", f"the targets are: {', '.join(known)}")
    return [_place(name, known) for name in dict.fromkeys(wanted)]


def _place(name: str, known: Mapping[str, TargetStatus]) -> Place:
    listed = None if is_farm(name) else known.get(name)
    if listed is not None and listed.status == "unavailable":
        return listed
    device = find(name)
    found = device_status(device)
    return found if found.status == "unavailable" else device


def is_predicted(place: Place) -> bool:
    """Whether figures of a target come from a model of it."""
    return isinstance(place, Device) and device_status(place).status == "predicted"


def needs_onnx(place: Place) -> bool:
    """Whether a target's figures come from a model's ONNX file."""
    return isinstance(place, Device) and not isinstance(place.latency, (RoutedLatency, StreamedLatency))


def measure_everywhere(
    subjects: Mapping[str, Subject], where: Sequence[Place], *, some: bool = True, **how: Any
) -> list[dict[str, Profile]]:
    """Each subject's profile on each target, see `measure`; what fails on one target leaves the others their figures.

    Args:
        some: one target must give figures.

    Raises:
        SecateurError: the first mistake, when it was made on every target that could be had, and `some` are wanted.
    """
    found: list[dict[str, Profile]] = []
    mistakes: list[SecateurError] = []
    for place in where:
        try:
            found.append(measure(subjects, place, **how))
        except (ExportError, ParityError, DeviceError, TargetUnavailableError, MissingExtraError) as error:
            mistakes.append(error)
            found.append(
                measure(subjects, TargetStatus(place.name, place.kind, "unavailable", error.message, error.hint))
            )
    if some and mistakes and len(mistakes) == sum(isinstance(place, Device) for place in where):
        raise mistakes[0]
    return found


def measure(
    subjects: Mapping[str, Subject],
    place: Place,
    *,
    against: str | None = None,
    layers: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    predict: bool = False,
) -> dict[str, Profile]:
    """Each subject's profile on one target, measured in turns. Subjects that cannot be expressed there, as a mixture
    of experts whose tokens are routed, are left out with the reason while others can.

    Args:
        against: name of the subject that `speedup_against` of the others refers to.
        layers: also measure layer by layer.
        shapes: input name → shape, for ONNX files that leave more than the batch open.
        predict: also where it could be measured.

    Raises:
        ExportError: none can, but for the one that is compared with.
    """
    try:
        return _measured(subjects, place, against, layers, shapes, predict)
    except ExportError as error:
        lost = _lost(subjects, place, against, error)
        rest = {name: subject for name, subject in subjects.items() if name not in lost}
        if not lost or lost.keys() == {against} == subjects.keys():
            raise
        if not rest.keys() - {against}:
            raise [*lost.values()][-1] from error
        found = _measured(rest, place, against if against in rest else None, layers, shapes, predict)
        for name, why in lost.items():
            missing = TargetStatus(place.name, place.kind, "unavailable", why.message, why.hint)
            found |= measure({name: subjects[name]}, missing)
        return found


def _lost(
    subjects: Mapping[str, Subject], place: Place, against: str | None, error: ExportError
) -> dict[str, ExportError]:
    """The subjects that cannot be expressed on a target, and why; only of some runtimes is it known beforehand."""
    runtime = RUNTIMES.get(place.runtime) if isinstance(place, Device) else None
    if runtime is None or runtime.reads_onnx:
        return {name: error for name in subjects if name == against}
    lost = {}
    for name, subject in subjects.items():
        try:
            subject.form(runtime)
        except ExportError as why:
            lost[name] = why
    return lost


def _measured(subjects: Mapping[str, Subject], *how: Any) -> dict[str, Profile]:
    return {name: filled(profile, subjects[name]) for name, profile in _profiles(subjects, *how).items()}


def _profiles(
    subjects: Mapping[str, Subject],
    place: Place,
    against: str | None,
    layers: bool,
    shapes: Mapping[str, Sequence[int]] | None,
    predict: bool,
) -> dict[str, Profile]:
    if isinstance(place, TargetStatus):
        missing = Profile(place.name, "", "unavailable", reason=place.reason, how=place.how)
        return dict.fromkeys(subjects, missing)
    if isinstance(place.latency, RoutedLatency):
        return measure_routed(subjects, place, against, layers)
    if isinstance(place.latency, StreamedLatency):
        return measure_streamed(subjects, place, against)
    if isinstance(place, FarmTarget) and not predict:
        return _on_farm(subjects, place, against, layers, shapes)
    if predict or is_predicted(place) or _only_predictable(subjects, place):
        return _predicted(subjects, place, against, layers, shapes)
    if place.kind == "gpu":
        return _on_gpu(subjects, place, against, layers, shapes)
    if place.runtime in RUNTIMES:
        if (place.settings.batch or 1) != 1:
            raise DeviceError(f"{place.name}: {place.runtime} runs one sample at a time here", "leave out batch")
        runtime = RUNTIMES[place.runtime]
        files = {name: subject.form(runtime) for name, subject in subjects.items()}
        inputs = {name: inputs_of(subject.onnx, shapes or {}) for name, subject in subjects.items()}
        return measure_here(place, files, inputs, against=against)
    files = {name: subject.onnx for name, subject in subjects.items()}
    how: dict[str, Any] = {
        "threads": place.settings.threads,
        "batch": place.settings.batch,
        "shapes": shapes,
        "against": against,
        "target": place.name,
    }
    if place.runtime == "onnxruntime":
        return measure_onnx(files, layers=layers, **how)
    return measure_compiled(files, place.runtime, **how)


def _only_predictable(subjects: Mapping[str, Subject], device: Device) -> bool:
    """Whether a runtime of this machine takes none of these files, but is known from its calibration."""
    runtime = RUNTIMES.get(device.runtime)
    taken = runtime is None or all(subject.has(runtime) for subject in subjects.values())
    return not taken and calibration_of(device) is not None


def _on_farm(
    subjects: Mapping[str, Subject],
    target: FarmTarget,
    against: str | None,
    layers: bool,
    shapes: Mapping[str, Sequence[int]] | None,
) -> dict[str, Profile]:
    """Each subject's profile on a device of the farm; predicted, with the reason, where none can be reached."""
    from secateur.targets.farm.measure import measure_on_farm

    runtime = RUNTIMES.get(target.runtime)
    try:
        files = {name: each.form(runtime) if runtime else each.onnx for name, each in subjects.items()}
        return measure_on_farm(target, files, shapes=shapes, against=against)
    except (TargetUnavailableError, MissingExtraError, ExportError) as error:
        formless = runtime is not None and not all(subject.has(runtime) for subject in subjects.values())
        if target.latency is None or (isinstance(error, ExportError) and not formless):
            raise
        return _predicted_instead(error, subjects, target, against, layers, shapes)


def _on_gpu(
    subjects: Mapping[str, Subject],
    device: Device,
    against: str | None,
    layers: bool,
    shapes: Mapping[str, Sequence[int]] | None,
) -> dict[str, Profile]:
    """Each subject's profile on the GPU of this machine; predicted, with the reason, where no runtime of it serves."""
    from secateur.targets.gpu import Network, measure_gpu

    networks = {name: Network(subject.onnx, subject.workload) for name, subject in subjects.items()}
    try:
        return measure_gpu(networks, batch=device.settings.batch, shapes=shapes, against=against, target=device.name)
    except TargetUnavailableError as error:
        return _predicted_instead(error, subjects, device, against, layers, shapes)


def _predicted_instead(
    error: SecateurError, subjects: Mapping[str, Subject], device: Device, *how: Any
) -> dict[str, Profile]:
    """Predictions that say why nothing was measured."""
    why = "; ".join(filter(None, (stand_in(device), f"not measured: {error.message}")))
    return {
        name: replace(profile, reason=why, how=error.hint)
        for name, profile in _predicted(subjects, device, *how).items()
    }


def _predicted(
    subjects: Mapping[str, Subject],
    device: Device,
    against: str | None,
    layers: bool,
    shapes: Mapping[str, Sequence[int]] | None,
) -> dict[str, Profile]:
    """Each subject's predicted profile; the ratio of two predictions is their speed-up."""
    profiles = {
        name: predict_onnx(device, subject.onnx, shapes=shapes, layers=layers) for name, subject in subjects.items()
    }
    found = with_ratios(profiles, against)
    return {name: replace(profile, reason=stand_in(device)) for name, profile in found.items()}


def filled(profile: Profile, subject: Subject) -> Profile:
    """With what was counted; a file's own count of weights stands where nothing else is known."""
    if profile.parity_max_abs is None:
        profile = replace(profile, parity_max_abs=subject.parity_max_abs)
    costs = subject.costs
    if costs is None:
        return profile
    return replace(profile, flops=costs.flops, params=costs.params, peak_memory_bytes=costs.peak_memory_bytes)
