"""farm: many models measured on many devices, each against its original in turns, resumable.

farm(["runs/a", "runs/b"], "devices.yaml", "farm.json")
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from secateur.core.costs import Profile
from secateur.core.errors import DeviceError, ExportError, OutputError, TargetUnavailableError, WorkloadError
from secateur.core.files import write_json
from secateur.core.progress import bar
from secateur.core.scratch import Scratch
from secateur.export import formats
from secateur.export.formats import Options
from secateur.export.ncnn_format import Ncnn
from secateur.targets.farm.file import Farm, read_farm
from secateur.targets.farm.journal import Journal
from secateur.targets.farm.lease import Leases
from secateur.targets.farm.network import Network, job_of, measure, profile
from secateur.targets.farm.schedule import Outcome, run_all
from secateur.targets.runtimes import RUNTIMES
from secateur.verbs.benchmark import ORIGINAL, Benchmark, Exports, Thing
from secateur.verbs.measure import Subject, filled
from secateur.verbs.sources import AnyWorkload


@dataclass(frozen=True)
class FarmReport:
    """What every device said of every model: a benchmark for each model, with one profile for each key."""

    benchmarks: tuple[Benchmark, ...]
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # of each job: latency, device, clocks, temperature

    @property
    def measured(self) -> bool:
        """Whether any device gave a figure."""
        return any(each.measured for each in self.benchmarks)

    def as_json(self) -> dict[str, Any]:
        """The document of `farm --json`, and of the file that it writes."""
        return {"benchmarks": [each.as_json() for each in self.benchmarks], "runs": self.outcomes}


@dataclass(frozen=True)
class _Model:
    """A model, with its original first where there is one: what is known of both, and their networks."""

    name: str
    subjects: Mapping[str, Subject]
    networks: Mapping[str, Network]

    def benchmark(self, outcomes: Mapping[str, Outcome]) -> Benchmark:
        """Its profiles on devices of every key."""
        against = ORIGINAL if ORIGINAL in self.networks else None
        profiles = {label: self._profiles(label, outcomes) for label in self.networks}
        return Benchmark(self.name, profiles[self.name], against, profiles[against] if against else ())

    def _profiles(self, label: str, outcomes: Mapping[str, Outcome]) -> tuple[Profile, ...]:
        found = (profile(key, outcome, label) for key, outcome in outcomes.items())
        return tuple(_advised(filled(each, self.subjects[label])) for each in found)


def farm(
    things: Iterable[Thing],
    devices: str | os.PathLike[str],
    output: str | os.PathLike[str] = "farm.json",
    *,
    workload: AnyWorkload | None = None,
    half: bool = False,
    priority: int = 0,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
) -> FarmReport:
    """Measure models on every kind of device of a farm; a bundle is measured in turns with its original.

    Args:
        things: bundles or workloads.
        devices: the farm's YAML file, see docs/farm.md.
        output: a JSON file for the report. Beside it stands a journal until everything was measured.
        half: models stored in 16 bits.
        priority: among all who use these devices from this machine; higher goes first.
        seed: of the order of models and devices, and of the turns.
        resume: go on with what a stopped run left in the journal.
        force: replace the output, and forget such a journal.

    Raises:
        DeviceError: a mistake in the farm file.
        ExportError, MissingExtraError: no model can be made into a network of ncnn; some that cannot are in the report.
        OutputError: the output exists, or a stopped run's journal does.
    """
    where, place = _of_ncnn(read_farm(devices), devices), Path(output)
    journal_path = _journal_path(place, resume, force)
    formats.get(Ncnn.name).require()
    with Scratch() as temporary:
        models, refused = _exported(list(things), Path(temporary), workload, half)
        jobs = {model.name: {key: job_of(key, model.name, model.networks) for key in where.keys} for model in models}
        every = {job.name: job for of_model in jobs.values() for job in of_model.values()}
        with bar("measuring", len(every)) as progress:
            outcomes = run_all(
                list(every.values()),
                where.devices,
                partial(measure, against=ORIGINAL, seed=seed),
                Journal(journal_path),
                Leases(where.leases_path),
                priority=priority,
                seed=seed,
                told=lambda job, outcome: progress.advance(),
            )
    found = [model.benchmark({key: outcomes[job.name] for key, job in jobs[model.name].items()}) for model in models]
    found += [_unavailable(name, where.keys, error) for name, error in refused.items()]
    report = FarmReport(tuple(found), outcomes)
    write_json(place, report.as_json())
    if not any("unavailable" in outcome for outcome in outcomes.values()):
        journal_path.unlink(missing_ok=True)
    return report


def nothing(report: FarmReport) -> TargetUnavailableError | None:
    """The error of a farm in which no device gave a figure."""
    if report.measured:
        return None
    first = report.benchmarks[0].profiles[0]
    return TargetUnavailableError(f"{first.target}: {first.reason}", first.how or "")


def _of_ncnn(farm: Farm, path: str | os.PathLike[str]) -> Farm:
    for device in farm.devices:
        if device.runtime != "ncnn":
            raise DeviceError(
                f"{os.fspath(path)}: {device.name} runs {device.runtime}, and this measures with ncnn",
                f"leave it out, and measure on it with: secateur benchmark BUNDLE --target farm:{device.key}",
            )
    return farm


def _journal_path(output: Path, resume: bool, force: bool) -> Path:
    if not output.name or output.is_dir():
        raise OutputError(f"{output} is a folder", "name the file to write with -o")
    path = output.with_name(f"{output.name}.journal")
    if path.exists() and force:
        path.unlink()
    if path.exists() and not resume:
        raise OutputError(
            f"{path} holds a run that was stopped", "continue it with --resume, or start again with --force"
        )
    if output.exists() and not (force or resume):
        raise OutputError(f"{output} exists", "choose another output with -o, or replace it with --force")
    return path


def _exported(
    things: list[Thing], folder: Path, workload: AnyWorkload | None, half: bool
) -> tuple[list[_Model], dict[str, ExportError]]:
    """The models as networks, and those that cannot be, each with the reason."""
    if not things:
        raise ExportError("no model was named", "name bundles or workloads")
    models: dict[str, _Model] = {}
    refused: dict[str, ExportError] = {}
    for number, thing in enumerate(things):
        place = folder / str(number)
        place.mkdir()
        exports = Exports(place, False, Options(precision="fp16" if half else "fp32"))
        name, chosen = exports.subject(thing, "chosen", workload)
        if name in models or name in refused:
            raise WorkloadError(f"two models are called {name}", "give the bundles different names")
        subjects = {**exports.other(thing, name, None, workload), name: chosen}
        try:
            models[name] = _Model(name, subjects, _networks(subjects))
        except ExportError as error:
            refused[name] = error
    if not models:
        raise next(iter(refused.values()))
    for name, why in refused.items():
        warnings.warn(f"{name} is not measured: {why.message}", stacklevel=3)
    return list(models.values()), refused


def _unavailable(name: str, keys: Iterable[str], error: ExportError) -> Benchmark:
    return Benchmark(
        name, tuple(Profile(key, "", "unavailable", reason=error.message, how=error.hint or None) for key in keys)
    )


def _networks(subjects: Mapping[str, Subject]) -> dict[str, Network]:
    """Exported now; an original that cannot be is left out."""
    found = {}
    for label, subject in subjects.items():
        try:
            found[label] = Network.read(subject.form(RUNTIMES["ncnn"]))
        except ExportError as error:
            if label != ORIGINAL:
                raise
            warnings.warn(f"the original is not measured: {error.message}", stacklevel=3)
    return found


def _advised(profile: Profile) -> Profile:
    """With what to do where nothing was measured."""
    if profile.source == "measured" or profile.how:
        return profile
    return replace(profile, how="connect a device of this key, and run again with --resume")
