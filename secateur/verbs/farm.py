"""farm: many models measured on many devices, each against its original in turns, resumable.

farm(["runs/a", "runs/b"], "devices.yaml", "farm.json")
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from secateur.core.costs import Costs, Latency, Profile
from secateur.core.errors import ExportError, OutputError, TargetUnavailableError, WorkloadError
from secateur.core.files import write_json
from secateur.core.progress import bar
from secateur.core.task import Workload
from secateur.export import formats
from secateur.export.ncnn_format import Ncnn
from secateur.export.ncnn_session import NcnnModel, Signature, signature_of, weights_of
from secateur.export.parity import TOLERANCES
from secateur.export.runtime import Array
from secateur.profiles.count import count
from secateur.profiles.timing import speedup, summarise
from secateur.targets.farm.device_run import DeviceRun, Inputs, digest, run_on
from secateur.targets.farm.file import Farm, FarmDevice, read_farm
from secateur.targets.farm.journal import Journal
from secateur.targets.farm.lease import Leases
from secateur.targets.farm.schedule import Job, Outcome, run_all
from secateur.verbs.benchmark import Benchmark, costs_of
from secateur.verbs.sources import (
    AnyWorkload,
    compressed_model,
    find_workload,
    looks_like_bundle,
    open_bundle,
    workload_of,
)

ORIGINAL = "original"
Thing = Any
"""A bundle or a workload, as `benchmark` takes them."""


@dataclass(frozen=True)
class Network:
    """A network of ncnn, what it costs, the noise that it is run on, and what it must give for that."""

    path: Path
    costs: Costs
    inputs: Inputs
    expected: Mapping[str, Array]

    @classmethod
    def of(cls, workload: Workload, path: Path, half: bool) -> Network:
        """Exported now."""
        from secateur.export.ncnn import to_ncnn

        to_ncnn(workload.model, workload, path, half=half)
        inputs = Inputs.noise(Signature.read(path))
        costs = count(workload.model, workload.example_input, workload.task_names).costs
        return cls(path, costs, inputs, NcnnModel(path).run(inputs.values))


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
        ExportError, MissingExtraError: a model that cannot be made into a network of ncnn.
        OutputError: the output exists, or a stopped run's journal does.
    """
    where, place = read_farm(devices), Path(output)
    journal_path = _journal_path(place, resume, force)
    formats.get(Ncnn.name).require()
    with tempfile.TemporaryDirectory(prefix="secateur-") as temporary:
        models = _exported(list(things), Path(temporary), workload, half)
        jobs = {(name, key): _job(key, name, networks) for name, networks in models.items() for key in where.keys}
        journal, leases = Journal(journal_path), Leases(_leases_path(where))
        with bar("measuring", len(jobs)) as progress:
            outcomes = run_all(
                list({job.name: job for job in jobs.values()}.values()),
                where.devices,
                _measure(seed),
                journal,
                leases,
                priority=priority,
                seed=seed,
                told=lambda job, outcome: progress.advance(),
            )
    report = FarmReport(
        tuple(_benchmark(name, networks, where, jobs, outcomes) for name, networks in models.items()), outcomes
    )
    write_json(place, report.as_json())
    if not any("unavailable" in outcome for outcome in outcomes.values()):
        journal_path.unlink(missing_ok=True)
    return report


def _journal_path(output: Path, resume: bool, force: bool) -> Path:
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


def _leases_path(farm: Farm) -> Path:
    return Path(farm.leases) if farm.leases else platformdirs.user_cache_path("secateur") / "farm.leases"


def _exported(
    things: list[Thing], folder: Path, workload: AnyWorkload | None, half: bool
) -> dict[str, dict[str, Network]]:
    """For each model by name: its networks, the original's first where there is one."""
    if not things:
        raise ExportError("no model was named", "name bundles or workloads")
    models: dict[str, dict[str, Network]] = {}
    for number, thing in enumerate(things):
        place = folder / str(number)
        if looks_like_bundle(thing):
            bundle = open_bundle(thing)
            name = bundle.path.name
            original = workload_of(bundle, workload)
            chosen = Network.of(original.with_model(compressed_model(bundle, original)), place / "chosen.param", half)
            networks = {**_original(original, place / "original.param", half), name: chosen}
            networks = {key: _counted(each, bundle.manifest, key) for key, each in networks.items()}
        else:
            found = find_workload(thing)
            name, networks = found.name, {found.name: Network.of(found, place / "model.param", half)}
        if name in models:
            raise WorkloadError(f"two models are called {name}", "give the bundles different names")
        models[name] = networks
    return models


def _original(workload: Workload, path: Path, half: bool) -> dict[str, Network]:
    try:
        return {ORIGINAL: Network.of(workload, path, half)}
    except ExportError as error:
        warnings.warn(f"the original is not measured: {error.message}", stacklevel=3)
        return {}


def _counted(network: Network, manifest: Any, name: str) -> Network:
    """With the costs that the bundle notes."""
    entry = manifest.before if name == ORIGINAL else manifest.point.costs
    return Network(network.path, costs_of(entry), network.inputs, network.expected)


def _job(key: str, name: str, networks: Mapping[str, Network]) -> Job:
    """The same networks on the same kind of device are the same job, in a later run too."""
    files = [file for each in networks.values() for file in (each.path, weights_of(each.path), signature_of(each.path))]
    return Job(f"{name}@{key}#{digest(*files)[:16]}", key, networks)


def _measure(seed: int) -> Callable[[FarmDevice, Job], Outcome]:
    def measure(device: FarmDevice, job: Job) -> Outcome:
        networks: Mapping[str, Network] = job.work
        run = run_on(
            device,
            device.reach.open(),
            {name: each.path for name, each in networks.items()},
            {name: each.inputs for name, each in networks.items()},
            seed=seed,
        )
        return _outcome(device, run, networks)

    return measure


def _outcome(device: FarmDevice, run: DeviceRun, networks: Mapping[str, Network]) -> Outcome:
    latency = {name: summarise(times) for name, times in run.samples.items()}
    parity = {name: _agreement(device, name, run.outputs[name], each) for name, each in networks.items()}
    faster = (
        {name: speedup(run.samples[ORIGINAL], times).median for name, times in run.samples.items() if name != ORIGINAL}
        if ORIGINAL in run.samples
        else {}
    )
    return {
        "latency_ms": {name: {**each.as_json(), "repeats": each.repeats} for name, each in latency.items()},
        "speedup": faster,
        "parity": parity,
        "ncnn": run.said.version,
        "threads": run.said.threads,
        "clock_khz": run.said.clock_khz,
        "temperature_c": run.said.temperature_c,
    }


def _agreement(device: FarmDevice, name: str, outputs: Mapping[str, Array], network: Network) -> float:
    """The largest difference from what this machine computes.

    Raises:
        ExportError: beyond tolerance.
    """
    tolerance = TOLERANCES[Signature.read(network.path).storage]
    worst = 0.0
    for task, wanted in network.expected.items():
        off = float(np.abs(outputs[task] - wanted).max(initial=0.0))
        allowed = tolerance.atol + tolerance.rtol * float(np.abs(wanted).max(initial=0.0))
        if not off <= allowed:
            raise ExportError(
                f'{device.name} computes something else: task "{task}" of {name} differs by {off:.3g}, '
                f"{allowed:.3g} is allowed",
                "build its runner again, from the same ncnn as the Python package",
            )
        worst = max(worst, off)
    return worst


def _benchmark(
    name: str,
    networks: Mapping[str, Network],
    farm: Farm,
    jobs: Mapping[tuple[str, str], Job],
    outcomes: Mapping[str, Outcome],
) -> Benchmark:
    against = ORIGINAL if ORIGINAL in networks else None
    profiles = {
        label: tuple(_profile(key, label, networks[label], outcomes[jobs[name, key].name]) for key in farm.keys)
        for label in networks
    }
    return Benchmark(name, profiles[name], against, profiles[against] if against else ())


def _profile(key: str, label: str, network: Network, outcome: Outcome) -> Profile:
    costs = network.costs
    if "latency_ms" not in outcome:
        reason = outcome.get("unavailable") or outcome.get("failed") or "no figure"
        how = outcome.get("hint") or "connect a device of this key, and run again with --resume"
        return Profile(key, "ncnn", "unavailable", reason=reason, how=how, flops=costs.flops, params=costs.params)
    return Profile(
        key,
        f"ncnn {outcome['ncnn']} on {outcome['device']}, threads {outcome['threads']}, batch 1",
        "measured",
        Latency(**outcome["latency_ms"][label]),
        flops=costs.flops,
        params=costs.params,
        peak_memory_bytes=costs.peak_memory_bytes,
        parity_max_abs=outcome["parity"][label],
        speedup_against=outcome["speedup"].get(label),
    )


def nothing(report: FarmReport) -> TargetUnavailableError | None:
    """The error of a farm in which no device gave a figure."""
    if report.measured:
        return None
    first = report.benchmarks[0].profiles[0]
    return TargetUnavailableError(f"{first.target}: {first.reason}", first.how or "")
