"""The whole way: prune, save, export with proof, measure, report; one bundle that appears at its path when it is whole.

Everything unfinished stands in `<output>.state` beside the output, from which a stopped run continues.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from secateur.compress import pagcp, ranks
from secateur.compress.compressed import Compressed
from secateur.compress.pagcp.front import with_front
from secateur.compress.pagcp.settings import Settings
from secateur.core.budget import Budget, Tolerance
from secateur.core.bundle import Bundle, check_output
from secateur.core.device import on_device
from secateur.core.errors import ExportError, ParityError
from secateur.core.progress import say
from secateur.core.task import Workload
from secateur.export.onnx import to_onnx
from secateur.verbs.complete import complete
from secateur.verbs.hardware import hardware_for, loop_for
from secateur.verbs.measure import places
from secateur.verbs.prune import AnyBudget, AnyDrop
from secateur.verbs.sources import AnyStart, AnyWorkload, find_workload, started_from
from secateur.verbs.staging import BUNDLE, dropped_if_hopeless, finish, reserved


def compress_to_bundle(
    workload: AnyStart,
    output: str | os.PathLike[str],
    budget: AnyBudget = None,
    drop: AnyDrop = None,
    *,
    settings: Settings | None = None,
    targets: str | Iterable[str] = ("cpu",),
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    command: str = "",
) -> Bundle:
    """Compress a workload with PAGCP into a complete bundle.

    Args:
        workload: or its reference; or what compression made of one, in memory or in a bundle, to be pruned further.
        output: folder of the bundle; nothing is written there before all is done.
        settings: of the pruning; see `secateur.compress.pagcp.Settings`.
        targets: on which original and compressed model are measured; limits on latency and energy refer to the first.
        device: that decisions and training run on, `cuda` for example; where the workload's model is by default.
        resume: continue the run that was stopped here, with the same result.
        force: replace the bundle at `output`, and drop the state of a stopped run.
        command: kept in the bundle, to make it again.

    Raises:
        OutputError: the output holds something else, or the state of a stopped run that is not to be resumed.
        BudgetError, ModelError, DataError, WorkloadError, DeviceError: wrong input, found before any long work.
        ExportError, ParityError: the artefact does not compute the same; the bundle is kept without it.
        WorkerDone: this is not the first of torchrun's processes, and its part is done.
    """
    limits, tolerance = Budget.parse(budget), Tolerance.parse(drop)
    hardware = hardware_for(limits, targets)
    goal = with_front(limits, settings or pagcp.Settings())[0] or "the published schedule"
    what = f"compressing to {goal}, {tolerance} of each metric may be lost"
    found, start = started_from(workload)

    def compress(there: Workload, state: Path) -> Compressed:
        return pagcp.prune(
            there, limits, tolerance, settings, seed=seed, state=state, resume=resume,
            loop=loop_for(hardware, there), start=start and start.beside(there.model),
        )  # fmt: skip

    return staged(
        found, output, what, compress,
        targets=targets, device=device, resume=resume, force=force, command=command,
    )  # fmt: skip


def staged(
    workload: AnyWorkload,
    output: str | os.PathLike[str],
    what: str,
    compress: Callable[[Workload, Path], Compressed],
    *,
    targets: str | Iterable[str],
    device: str | None,
    resume: bool,
    force: bool,
    command: str,
) -> Bundle:
    """Compress with any method, `compress(workload, folder for its state)`, and complete the bundle; see above."""
    if not ranks.leads():
        compress(on_device(find_workload(workload), device), Path(output))
        raise ranks.WorkerDone
    output, where = Path(output), places(targets)
    check_output(output, force)
    with reserved(output, resume=resume, force=force) as state:
        workload = find_workload(workload)
        say(f"{workload.name}: {what}")
        with dropped_if_hopeless(state):
            there = on_device(workload, device)
            compressed = compress(there, state / "journal").on_cpu(on_device(workload, "cpu"))
        kept = compressed.workload
        original = _original(kept, state / "original.onnx")
        bundle = compressed.save(state / BUNDLE, force=True, command=command)
        try:
            complete(bundle, kept, formats=("onnx",) if original else (), where=where, original=original)
        except (ExportError, ParityError) as error:
            finish(bundle, output)
            error.hint = f"the compressed model was kept in {output}, without this artefact; {error.hint}"
            raise
        return finish(Bundle.open(bundle.path), output)


def _original(workload: Workload, path: Path) -> Path | None:
    """The original as ONNX; a model that ONNX cannot express is compressed all the same."""
    try:
        return to_onnx(workload.model, workload, path)
    except ExportError as error:
        warnings.warn(f"no ONNX file and no latency: {error.message}", stacklevel=2)
        return None
