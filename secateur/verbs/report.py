"""report: a bundle's page, from what the bundle holds and what its workload can still show."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.core.bundle import Bundle, Manifest, changed_bundle
from secateur.core.elastic.files import is_elastic, read_table
from secateur.core.errors import BundleError, WorkloadError
from secateur.core.inputs import batch_size, mapped
from secateur.core.predict import evaluating, predict
from secateur.core.task import Workload
from secateur.profiles.count import count
from secateur.profiles.report import Report, Sample, write_report
from secateur.profiles.report.pictures import check_pictures
from secateur.verbs.benchmark import Benchmark
from secateur.verbs.sources import AnyBundle, AnyWorkload, compressed_model, open_bundle, workload_of

FILE = "report.html"
SAMPLES = 4


def report(bundle: AnyBundle, *, workload: AnyWorkload | None = None) -> Path:
    """Write a bundle's report again; returns its path.

    Where the workload cannot be found, layers and sample pictures are left out, with a warning.

    Raises:
        BundleError: changed or truncated files.
    """
    opened = open_bundle(bundle)
    try:
        found = workload_of(opened, workload)
    except WorkloadError as error:
        if workload is not None:
            raise
        warnings.warn(f"no layers and pictures in the report: {error.message}", stacklevel=2)
        found = None
    content = content_of(opened, opened.manifest, found, Benchmark.of(opened))
    with changed_bundle(opened) as (folder, finish):
        write_report(folder / FILE, content)
        finish(opened.manifest)
    return opened.path / FILE


def content_of(
    bundle: Bundle, manifest: Manifest, workload: Workload | None, measured: Benchmark | None = None
) -> Report:
    """Everything the page shows. `manifest` may be newer than the bundle on disk."""
    model = compressed_model(bundle, workload, manifest.chosen) if workload else None
    return Report(
        title=f"{manifest.workload}, compressed",
        manifest=manifest,
        history=history_of(bundle),
        layers_before=_layers(workload.model, workload) if workload else (),
        layers_after=_layers(model, workload) if workload and model else (),
        profiles=measured.profiles if measured else (),
        profiles_before=measured.profiles_against if measured else (),
        samples=_samples(workload, model) if workload and model else (),
        elastic=read_table(bundle) if is_elastic(bundle) else None,
    )


def history_of(bundle: Bundle) -> dict[str, Any]:
    """The decisions of a run.

    Raises:
        BundleError: changed or truncated.
    """
    path = bundle.checked_file("history.json")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}", "compress again") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path} is damaged: it is no JSON object", "compress again")
    return document


def _layers(model: nn.Module, workload: Workload) -> Sequence[Any]:
    return count(model, workload.example_input, workload.task_names).layers


def _samples(workload: Workload, model: nn.Module) -> Sequence[Sample]:
    """The first test samples, drawn by the workload; none if it does not draw, or fails to."""
    if workload.render is None:
        return ()
    inputs, targets = next(iter(workload.test))
    with evaluating(workload.model), evaluating(model):
        before = predict(workload.model, inputs, workload.tasks)
        after = predict(model, inputs, workload.tasks)
    try:
        found = [
            _sample(workload, index, inputs, {"label": targets, "before": before, "after": after})
            for index in range(min(SAMPLES, batch_size(inputs)))
        ]
        for sample in found:
            check_pictures(sample)
        return found
    except Exception as error:  # the user's own function
        warnings.warn(f"no pictures in the report: render failed: {type(error).__name__}: {error}", stacklevel=2)
        return ()


def _sample(workload: Workload, index: int, inputs: Any, values: Mapping[str, Mapping[str, Any]]) -> Sample:
    draw = workload.render
    assert draw is not None
    one = mapped(lambda value: _at(value, index), inputs)
    return Sample(
        draw("input", one[0] if isinstance(one, (tuple, list)) and len(one) == 1 else one),
        {
            task: {role: draw(task, _at(found[task], index)) for role, found in values.items()}
            for task in workload.task_names
        },
    )


def _at(value: Any, index: int) -> Any:
    """One sample of a batched tensor."""
    return value[index].detach().cpu() if isinstance(value, Tensor) and value.ndim else value
