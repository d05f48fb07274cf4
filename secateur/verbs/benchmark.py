"""benchmark: a bundle against its original, any ONNX file, or a workload's model, measured on targets."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from secateur.core import machine as this_machine
from secateur.core.bundle import Bundle, CostsEntry
from secateur.core.costs import Costs, Profile
from secateur.core.errors import BundleError, WorkloadError
from secateur.core.scratch import Scratch
from secateur.core.task import Workload
from secateur.export import formats
from secateur.export.formats import Options
from secateur.export.load import load_formats
from secateur.export.onnx import to_onnx
from secateur.export.source import Source
from secateur.profiles.count import count
from secateur.verbs.measure import Subject, measure_everywhere, needs_onnx, places
from secateur.verbs.sources import (
    AnyWorkload,
    compressed_model,
    find_workload,
    looks_like_bundle,
    open_bundle,
    workload_of,
)

load_formats()
FILE = "benchmark.json"
"""Where a bundle keeps the measurements that were made when it was written."""
ORIGINAL = "original"
"""What a bundle's original is called beside it."""
Thing = Workload | Bundle | str | os.PathLike[str]


@dataclass(frozen=True)
class Benchmark:
    """Profiles of one model, one for each target, and of what it was compared with on the same targets."""

    name: str
    profiles: tuple[Profile, ...]
    against: str | None = None
    profiles_against: tuple[Profile, ...] = ()
    machine: dict[str, str | int] = field(default_factory=this_machine.describe)
    versions: dict[str, str] = field(default_factory=this_machine.versions)

    @property
    def measured(self) -> bool:
        """Whether any target gave a figure."""
        return any(profile.source != "unavailable" for profile in self.profiles)

    def as_json(self) -> dict[str, Any]:
        """The document of `benchmark --json`."""
        return {
            "machine": {**self.machine, "versions": self.versions},
            "name": self.name,
            "results": [profile.as_json() for profile in self.profiles],
            "against": self.against
            and {"name": self.against, "results": [profile.as_json() for profile in self.profiles_against]},
        }

    def save(self, folder: Path) -> None:
        """Write FILE into a bundle that is being written, beside which another one may stand."""
        (folder / FILE).unlink(missing_ok=True)
        (folder / FILE).write_bytes(_FORM.dump_json(self, indent=1))

    @classmethod
    def of(cls, bundle: Bundle) -> Benchmark | None:
        """The measurements that a bundle keeps, or None."""
        if FILE not in bundle.manifest.files:
            return None
        try:
            return _FORM.validate_json(bundle.checked_file(FILE).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]["msg"]
            raise BundleError(f"{bundle.file(FILE)} is damaged: {first}", "benchmark and report again") from error


_FORM = TypeAdapter(Benchmark)


def benchmark(
    thing: Thing,
    targets: str | Iterable[str] = ("cpu",),
    against: Thing | None = None,
    *,
    workload: AnyWorkload | None = None,
    per_layer: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    predict: bool = False,
) -> Benchmark:
    """Measure a model on targets.

    Args:
        thing: a bundle (measured against its original), an ONNX file, or a workload (its model as it is).
        targets: names, or the path of a device's YAML file; `"all"` is every target. Those that cannot be had here
            come back as entries that say why and how to get them.
        against: another thing to measure in turns with this one, instead of a bundle's original.
        workload: of a bundle, instead of the one that it refers to.
        per_layer: also measure layer by layer.
        shapes: input name → shape, for ONNX files that leave more than the batch open.
        predict: also where it could be measured, by what `calibrate` learned of this machine.

    Raises:
        DeviceError, BundleError, ExportError, WorkloadError: what is named does not exist or cannot be measured.
    """
    where = places(targets)
    with Scratch() as temporary:
        exports = Exports(Path(temporary), any(map(needs_onnx, where)), shapes=shapes)
        subjects = dict([exports.subject(thing, "compressed", workload)])
        (name,) = subjects
        subjects |= exports.other(thing, name, against, workload)
        other = next((key for key in subjects if key != name), None)
        found = measure_everywhere(subjects, where, against=other, layers=per_layer, shapes=shapes, predict=predict)
    return compared(found, name, other)


def compared(found: Sequence[Mapping[str, Profile]], name: str, other: str | None) -> Benchmark:
    """One subject's profiles on several targets beside another's."""
    return Benchmark(
        name, tuple(each[name] for each in found), other, tuple(each[other] for each in found) if other else ()
    )


class Exports:
    """Makes ONNX files of what has none, in a temporary folder; nothing is exported where nothing can be measured.

    `options` are of what is exported to other formats, `shapes` of what ONNX files leave open.
    """

    def __init__(
        self,
        folder: Path,
        needed: bool,
        options: Options = Options(),  # noqa: B008 - frozen
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._folder, self._needed, self._options, self._shapes = folder, needed, options, shapes

    def subject(self, thing: Thing, prefix: str, workload: AnyWorkload | None = None) -> tuple[str, Subject]:
        """(name, subject) of what a user gave; `prefix` keeps the exported files of two things apart."""
        if looks_like_bundle(thing):
            bundle = open_bundle(thing)  # type: ignore[arg-type]
            name = bundle.path.resolve().name
            return name if name != ORIGINAL else f"{name} (bundle)", self.bundle(bundle, prefix, workload)
        if isinstance(thing, os.PathLike) or (isinstance(thing, str) and thing.endswith(".onnx")):
            return os.fspath(thing), Subject.of_file(Path(thing), self._shapes)
        found = find_workload(thing)  # type: ignore[arg-type]
        return found.name, self.workload(found, prefix)

    def other(self, thing: Thing, name: str, against: Thing | None, workload: AnyWorkload | None) -> dict[str, Subject]:
        """What to compare with: what the user names, else a bundle's original where it can be found."""
        if against is not None:
            key, subject = self.subject(against, "other")
            return {key if key != name else f"{key} (other)": subject}
        if not looks_like_bundle(thing):
            return {}
        bundle = open_bundle(thing)  # type: ignore[arg-type]
        try:
            original = workload_of(bundle, workload)
        except WorkloadError as error:
            if workload is not None:
                raise
            warnings.warn(f"the original is not measured: {error.message}", stacklevel=2)
            return {}
        costs = costs_of(bundle.manifest.before)
        return {
            ORIGINAL: Subject(
                self._export(original, ORIGINAL),
                costs,
                None,
                self._converter(lambda: original, ORIGINAL),
                lambda: original,
            )
        }

    def bundle(self, bundle: Bundle, prefix: str, workload: AnyWorkload | None) -> Subject:
        """The chosen point: its artefact, or exported now."""
        costs = costs_of(bundle.manifest.point.costs)
        if artefact := bundle.manifest.plain_artefact("onnx"):
            path = bundle.checked_file(artefact.path)
            point = cache(lambda: _chosen(bundle, workload))
            return Subject(path, costs, artefact.max_abs, self._converter(point, prefix), point)
        chosen = _chosen(bundle, workload)
        convert = self._converter(lambda: chosen, prefix)
        return Subject(self._export(chosen, prefix), costs, None, convert, lambda: chosen)

    def workload(self, workload: Workload, prefix: str) -> Subject:
        costs = count(workload.model, workload.example_input, workload.task_names).costs
        convert = self._converter(lambda: workload, prefix)
        return Subject(self._export(workload, prefix), costs, None, convert, lambda: workload)

    def _converter(self, chosen: Callable[[], Workload], prefix: str) -> Callable[[str], Path]:
        return converter(chosen, self._folder / prefix, self._options)

    def _export(self, workload: Workload, prefix: str) -> Path:
        path = self._folder / f"{prefix}.onnx"
        return to_onnx(workload.model, workload, path) if self._needed else path


def converter(chosen: Callable[[], Workload], folder: Path, options: Options = Options()) -> Callable[[str], Path]:  # noqa: B008 - frozen
    """Makes a model in formats of `export/` by their names, each once, in a folder of its own below this one."""

    @cache
    def convert(name: str) -> Path:
        exporter, place = formats.get(name), folder / name
        exporter.require()
        place.mkdir(parents=True, exist_ok=True)
        workload = chosen()
        with Source(workload.model, workload) as source:
            return exporter.write(source, place, options)[0].path

    return convert


def _chosen(bundle: Bundle, given: AnyWorkload | None) -> Workload:
    """A bundle's workload around its chosen point."""
    original = workload_of(bundle, given)
    return original.with_model(compressed_model(bundle, original))


def costs_of(entry: CostsEntry) -> Costs:
    """A manifest's costs as a value to compute with."""
    return Costs(
        entry.flops, entry.params, entry.peak_memory_bytes, entry.size_bytes, entry.predicted_ms, entry.predicted_mj
    )
