"""Complete a bundle that holds weights: exported and proven, measured against the original, reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secateur.core.bundle import Bundle, Manifest, changed_bundle
from secateur.core.progress import say
from secateur.core.scratch import Scratch
from secateur.core.task import Workload
from secateur.export.bundles import export_bundle
from secateur.export.formats import Request
from secateur.export.onnx import to_onnx
from secateur.profiles.report import write_report
from secateur.verbs.benchmark import ORIGINAL, Benchmark, compared, converter, costs_of
from secateur.verbs.hardware import judged
from secateur.verbs.measure import Place, Subject, measure_everywhere
from secateur.verbs.report import FILE, content_of
from secateur.verbs.sources import compressed_model


def complete(
    bundle: Bundle,
    workload: Workload,
    *,
    formats: Sequence[str | Request],
    where: Sequence[Place],
    original: Path | None = None,
) -> Bundle:
    """Add to a bundle what its weights cannot say: artefacts, the latency of every point, the report.

    Args:
        formats: to export to; without "onnx" nothing is measured.
        where: targets to measure on.
        original: the original model as an ONNX file, if there is one already.

    Raises:
        ExportError, ParityError: the bundle then stays as it was.
    """
    names = dict.fromkeys(each if isinstance(each, str) else each.format for each in formats)
    if formats:
        say(f"exporting to {', '.join(names)}")
        bundle = export_bundle(bundle, compressed_model(bundle, workload), workload, formats)
    manifest, measured = bundle.manifest, None
    if "onnx" in names:
        say(f"measuring on {', '.join(place.name for place in where)}")
        manifest, measured = _measured(bundle, workload, where, original)
    say("writing the report")
    content = content_of(bundle, manifest, workload, measured)
    with changed_bundle(bundle) as (folder, finish):
        if measured is not None:
            measured.save(folder)
        write_report(folder / FILE, content)
        finish(manifest)
    return Bundle.open(bundle.path)


def _measured(
    bundle: Bundle, workload: Workload, where: Sequence[Place], original: Path | None
) -> tuple[Manifest, Benchmark]:
    """The manifest with every point's latency, and the chosen point's profiles beside the original's."""
    manifest = bundle.manifest
    with Scratch() as temporary:
        subjects = {
            ORIGINAL: Subject(
                original or to_onnx(workload.model, workload, Path(temporary) / "original.onnx"),
                costs_of(manifest.before),
                convert=converter(lambda: workload, Path(temporary) / ORIGINAL),
                workload=lambda: workload,
            ),
            **point_subjects(bundle, workload, range(len(manifest.points)), Path(temporary)),
        }
        found = measure_everywhere(subjects, where, some=False, against=ORIGINAL, layers=True)
    points = [
        point.model_copy(
            update={
                "latency_ms": {
                    place.name: latency.median
                    for place, each in zip(where, found, strict=True)
                    if (latency := each[str(number)].latency)
                }
            }
        )
        for number, point in enumerate(manifest.points)
    ]
    manifest = judged(manifest.model_copy(update={"points": points}), found)
    return manifest, compared(found, str(manifest.chosen), ORIGINAL)


def point_subjects(
    bundle: Bundle, workload: Workload, numbers: Sequence[int], folder: Path, onnx: bool = True
) -> dict[str, Subject]:
    """Points by their number, each as an ONNX file: the artefact of the chosen one, or exported into a folder.

    Args:
        onnx: whether the files are needed; without, they are not written.
    """
    return {str(number): _point_subject(bundle, workload, number, folder, onnx) for number in numbers}


def _point_subject(bundle: Bundle, workload: Workload, number: int, folder: Path, onnx: bool) -> Subject:
    manifest = bundle.manifest
    costs = costs_of(manifest.points[number].costs)

    def point() -> Workload:
        return workload.with_model(compressed_model(bundle, workload, number))

    convert = converter(point, folder / str(number))
    if number == manifest.chosen and (artefact := manifest.plain_artefact("onnx")):
        return Subject(bundle.checked_file(artefact.path), costs, artefact.max_abs, convert, point)
    path = folder / f"{number}.onnx"
    return Subject(to_onnx(point().model, workload, path) if onnx else path, costs, None, convert, point)
