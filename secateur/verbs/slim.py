"""slim: a workload's model made elastic; and the whole way to a bundle with files that switch widths, measured.

Everything unfinished stands in `<output>.state` beside the output, from which a stopped run continues.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.compress import slimmable
from secateur.compress.compressed import Start
from secateur.compress.slimmable import Elastic, Settings, load_elastic
from secateur.compress.slimmable.export import Configurations
from secateur.core import machine
from secateur.core.bundle import Bundle, changed_bundle, check_output
from secateur.core.device import on_device
from secateur.core.elastic import Choice, Table
from secateur.core.elastic.files import TABLE
from secateur.core.errors import DeviceError, ExportError, OutputError, ParityError
from secateur.core.files import canonical_json, clear_errors, writing_folder
from secateur.core.inputs import tensors
from secateur.core.progress import say, track
from secateur.core.scratch import Scratch
from secateur.core.task import Workload
from secateur.export.elastic_graph import ElasticSource
from secateur.export.elastic_layouts import INDEX, check_layout, renew_table, write_elastic
from secateur.export.elastic_session import ElasticSession
from secateur.export.parity import Parity, check_parity
from secateur.profiles.latency.parts import Parts
from secateur.profiles.report import write_report
from secateur.targets.device import Device
from secateur.targets.elastic import measured_latencies
from secateur.targets.elastic_predicted import with_predictions
from secateur.targets.registry import device_status
from secateur.verbs.changes import changed
from secateur.verbs.measure import Place, places
from secateur.verbs.report import FILE, content_of
from secateur.verbs.sources import AnyBundle, AnyStart, AnyWorkload, open_bundle, started_from, workload_of
from secateur.verbs.staging import BUNDLE, dropped_if_hopeless, finish, reserved

FOLDER = "elastic"
"""Where a bundle keeps its elastic files."""


def slim(
    workload: AnyStart,
    widths: Sequence[float] | None = None,
    *,
    epochs: int | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    state: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: str | None = None,
) -> Elastic:
    """Make a model elastic: one set of weights that runs at many widths.

    Args:
        workload: or its reference: a built-in name or `package.module:function`; or what compression made of one, in
            memory or in a bundle: its chosen model is made elastic.
        widths: shares of the channels that stages can run at.
        epochs: of training, which starts from the workload's weights.
        settings: everything else that can be set; what is given by name goes above it.
        state: folder in which finished steps are kept, so that `resume=True` continues a run that was stopped.
        device: that training runs on, `cuda` for example; where the workload's model is by default. The result is on
            the CPU.

    Raises:
        BudgetError, ModelError, DataError, WorkloadError: wrong input, found before any long work.
        DeviceError: there is no such device.
    """
    folder, (found, start) = None if state is None else Path(state), started_from(workload)
    chosen = changed(settings or Settings(), (), widths=None if widths is None else tuple(widths), epochs=epochs)
    result = _trained(found, start, chosen, device, seed=seed, state=folder, resume=resume)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _trained(
    workload: Workload, start: Start | None, settings: Settings | None, device: str | None, **options: Any
) -> Elastic:
    """Made elastic on a device, and brought back to the CPU."""
    there = on_device(workload, device)
    start = start and start.beside(there.model)
    return slimmable.slim(there, settings, start=start, **options).on_cpu(on_device(workload, "cpu"))


def slim_to_bundle(
    workload: AnyStart,
    output: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    targets: str | Iterable[str] = ("cpu",),
    layout: str = "auto",
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    command: str = "",
) -> Bundle:
    """Make a workload's model elastic, into a complete bundle.

    Args:
        output: folder of the bundle; nothing is written there before all is done.
        targets: whose latencies the table is to hold: measured where the files run, else predicted, with energy where
            the target's file tells it.
        layout: of the elastic ONNX files: "if", "files" or "auto".
        device: as for `slim`.

    Raises:
        OutputError: the output holds something else, or the state of a stopped run that is not to be resumed.
        BudgetError, ModelError, DataError, WorkloadError, DeviceError: wrong input, found before any long work.
        WorkerDone: this is not the first of torchrun's processes, and its part is done.
    """
    output, where = Path(output), places(targets)
    check_layout(layout)
    check_output(output, force)
    with reserved(output, resume=resume, force=force) as state:
        found, start = started_from(workload)
        say(f"making {found.name} elastic")
        with dropped_if_hopeless(state):
            result = _trained(found, start, settings, device, seed=seed, state=state / "journal", resume=resume)
        bundle = result.save(state / BUNDLE, force=True, command=command)
        source = _source(result)
        try:
            with Scratch() as temporary:
                made = Path(temporary) / FOLDER
                made.mkdir()
                table = export_and_measure(source, made, where, layout, result.parts)
                bundle = _with_files(bundle, table, made, found)
        except (ExportError, ParityError) as error:
            warnings.warn(f"no elastic files, and nothing is measured: {error.message}", stacklevel=2)
            bundle = _with_files(bundle, predicted_on(result.table, where, result.parts), None, found)
        return finish(bundle, output)


def export_and_measure(source: ElasticSource, folder: Path, where: Sequence[Place], layout: str, parts: Parts) -> Table:
    """Write elastic files, prove every configuration, and measure or predict them; returns the table with latencies."""
    say("exporting all widths")
    write_elastic(source, folder, layout)
    prove(source, folder)
    table = predicted_on(source.table, [place for place in where if not _runs_here(place)], parts)
    for place in filter(_runs_here, where):
        assert isinstance(place, Device)
        say(f"measuring widths on {place.name}")
        inputs = [np.asarray(value) for value in tensors(source.workload.example_input)]
        threads = place.settings.threads or len(machine.cores())
        found = measured_latencies(ElasticSession(folder, threads=threads), inputs, place.name)
        table = replace(table, latency={**table.latency, place.name: found})
    renew_table(folder, table)
    return table


def predicted_on(table: Table, where: Iterable[Place], parts: Parts) -> Table:
    """The table with what models of targets say; a target without one is told and left out."""
    for place in where:
        try:
            if not isinstance(place, Device):
                raise DeviceError(str(place.reason), place.how or "choose another target")
            table = with_predictions(table, parts, place, ("latency",))
        except DeviceError as error:
            warnings.warn(f"no latencies of {place.name}: {error.message}", stacklevel=2)
    return table


def _runs_here(place: Place) -> bool:
    """Whether elastic files can be run on a target: they are ONNX Runtime's, on this machine."""
    return isinstance(place, Device) and place.runtime == "onnxruntime" and device_status(place).status == "measured"


def prove(source: ElasticSource, folder: Path) -> Parity:
    """Run every exported encoder row with every width of the decoders beside torch; the worst of all is returned.

    Raises:
        ParityError: some configuration does not compute the same.
    """
    session, table = ElasticSession(folder), source.table
    depth, found = max(len(rows) for rows in table.decoders.values()), list[Parity]()
    for row, d in track([(row, d) for row in table.exported for d in range(depth)], "proving"):
        chosen = {task: min(d, len(rows) - 1) for task, rows in table.decoders.items()}
        choice = session.controller.choice(row, chosen)
        model, _ = source.at(row, chosen)
        found.append(check_parity(model, partial(_predict, session, choice), source.workload, batches=1))
    return max(found, key=lambda parity: parity.max_abs)


def _predict(session: ElasticSession, choice: Choice, inputs: object) -> dict[str, torch.Tensor]:
    arrays = [value.detach().cpu().numpy() for value in tensors(inputs)]
    return {task: torch.from_numpy(each) for task, each in session.run(*arrays, choice=choice).items()}


def export_elastic(
    bundle: AnyBundle,
    output: str | os.PathLike[str],
    *,
    workload: AnyWorkload | None = None,
    layout: str = "auto",
    force: bool = False,
) -> tuple[Path, Parity]:
    """Write an elastic bundle's files that switch widths into a folder, proven against torch.

    Raises:
        BundleError: the bundle is static.
        OutputError: the folder holds elastic files, and not `force`; or anything else.
        ExportError, ParityError: ONNX cannot express the model.
    """
    opened, output = open_bundle(bundle), Path(output)
    found = workload_of(opened, workload)
    elastic, table, statistics = load_elastic(opened, found)
    with clear_errors(output):
        if output.exists() and any(output.iterdir()):
            if not (output / INDEX).is_file():
                raise OutputError(f"{output} holds other things than elastic files", "choose another folder with -o")
            if not force:
                raise OutputError(f"{output} holds elastic files", "choose another folder, or replace it with --force")
    source = ElasticSource(elastic.model, found, table, Configurations(elastic, table, statistics))
    with writing_folder(output) as folder:
        write_elastic(source, folder, layout)
        parity = prove(source, folder)
    return output, parity


def _source(result: Elastic) -> ElasticSource:
    at = Configurations(result.elastic, result.table, result.statistics)
    return ElasticSource(result.elastic.model, result.workload, result.table, at)


def _with_files(bundle: Bundle, table: Table, files: Path | None, workload: Workload) -> Bundle:
    """The bundle with its table renewed, elastic files and report added."""
    with changed_bundle(bundle) as (folder, done):
        (folder / TABLE).unlink()
        (folder / TABLE).write_text(canonical_json(table.as_json()), encoding="utf-8")
        if files is not None:
            shutil.copytree(files, folder / FOLDER)
        done(bundle.manifest)
    bundle = Bundle.open(bundle.path)
    say("writing the report")
    content = content_of(bundle, bundle.manifest, workload)
    with changed_bundle(bundle) as (folder, done):
        write_report(folder / FILE, content)
        done(bundle.manifest)
    return Bundle.open(bundle.path)
