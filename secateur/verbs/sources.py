"""What a verb is given, made into what it works on: a workload by name, a bundle by path, a bundle's own workload."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from secateur.compress.compressed import Compressed, Start, channel_map_of, load_model
from secateur.compress.experts import twin as _stand_ins  # noqa: F401 - mixtures of experts can be traced from here on
from secateur.core.bundle import Bundle, is_bundle
from secateur.core.errors import WorkloadError
from secateur.core.shipped import bundle_of, shipped
from secateur.core.task import Workload
from secateur.workloads import BUILT_IN
from secateur.workloads import workload as workload_by_name

AnyBundle = Bundle | str | os.PathLike[str]
AnyWorkload = Workload | str
AnyStart = AnyWorkload | AnyBundle | Compressed


def find_workload(given: AnyWorkload) -> Workload:
    """A workload itself, or by its reference: a built-in name or `package.module:function`.

    Raises:
        WorkloadError: there is none of this name; a bundle's path is told to be one.
    """
    if isinstance(given, Workload):
        return given
    if given not in BUILT_IN and is_bundle(Path(given)):
        known = Bundle.open(given).manifest.reference
        hint = f"name the one that it was made from: {known}" if known else "name the one that it was made from"
        raise WorkloadError(f"{given} is a bundle, and this takes a workload", hint)
    return workload_by_name(given)


def open_bundle(given: AnyBundle) -> Bundle:
    """A bundle itself, by its folder, or by the name of one that ships."""
    return given if isinstance(given, Bundle) else bundle_of(given)


def looks_like_bundle(given: object) -> bool:
    """Whether a bundle is meant: one that is open, a folder that holds one, or text that can only be a path."""
    if isinstance(given, Bundle):
        return True
    if not isinstance(given, (str, os.PathLike)):
        return False
    path = Path(given)
    if shipped(os.fspath(given)) is not None:
        return True
    typed = ":" not in str(given) and os.sep in str(given) and path.suffix != ".onnx"
    return is_bundle(path) or typed or (path.is_dir() and str(given) not in BUILT_IN)


def workload_of(bundle: Bundle, workload: AnyWorkload | None = None) -> Workload:
    """The workload that a bundle was made from, judged on the bundle's tasks.

    Args:
        workload: instead of the one that the manifest refers to.

    Raises:
        WorkloadError: the bundle does not say where its workload is, or it cannot be loaded.
    """
    found = workload or bundle.manifest.reference
    if found is None:
        raise WorkloadError(
            f"{bundle.path} does not say where its workload is", "name it with --workload package.module:function"
        )
    return find_workload(found).select_tasks(task.name for task in bundle.manifest.tasks)


def compressed_model(bundle: Bundle, workload: Workload, point: int | None = None) -> nn.Module:
    """A point of a bundle, the chosen one by default, rebuilt from the workload's own class."""
    return load_model(bundle, workload.factory or (lambda: workload.model), point)


def started_from(given: AnyStart) -> tuple[Workload, Start | None]:
    """A workload, and the compressed model of it that is to be compressed further, where one was given.

    Raises:
        BundleError, WorkloadError: there is no such bundle or workload.
    """
    if isinstance(given, Compressed):
        return given.workload, Start(given.model, given.point.channel_map)
    if isinstance(given, Workload) or not looks_like_bundle(given):
        return find_workload(given), None  # type: ignore[arg-type]
    bundle = open_bundle(given)
    workload = workload_of(bundle)
    return workload, Start(compressed_model(bundle, workload), channel_map_of(bundle))


def named(given: str) -> tuple[AnyWorkload, str]:
    """A bundle's path as it is, or the workload of this name; and what to call results after."""
    if looks_like_bundle(given):
        return given, Path(given).name
    found = find_workload(given)
    return found, found.name
