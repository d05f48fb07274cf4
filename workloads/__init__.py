"""Workloads: models, data sets and metrics to compress, built in or the user's own `package.module:function`."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.core.errors import SecateurError, WorkloadError, described

if TYPE_CHECKING:
    from secateur.core.task import Workload

BUILT_IN = {
    "scenes": "secateur.workloads.scenes",
    "digits": "secateur.workloads.digits",
    "multifashion": "secateur.workloads.multifashion",
    "scenes-detect": "secateur.workloads.scenes_detect",
    "scenes-vit": "secateur.workloads.scenes_vit",
    "nyudv2": "secateur.workloads.nyudv2",
    "pascal_context": "secateur.workloads.pascal_context",
    "cifar100_mtl": "secateur.workloads.cifar100_mtl",
    "detection": "secateur.workloads.coco",
    "scenes-moe": "secateur.workloads.scenes_moe",
    "multifashion-moe": "secateur.workloads.multifashion_moe",
}


def names() -> list[str]:
    """Names of the built-in workloads."""
    return list(BUILT_IN)


def built_in(name: str) -> Any:
    """The module of a built-in workload."""
    return importlib.import_module(BUILT_IN[name])


def workload(reference: str) -> Workload:
    """The workload of that name, or what the function at `package.module:function` returns.

    The current folder is importable, as with ASGI servers.

    Raises:
        WorkloadError: nothing of that name, or a function that fails or returns something else.
    """
    if reference in BUILT_IN:
        return _call(built_in(reference).workload, reference)
    if ":" not in reference:
        raise WorkloadError(f'no workload "{reference}"', _suggestion(reference))
    module, _, attribute = reference.partition(":")
    return _call(_attribute(_module(module, reference), attribute, reference), reference)


def _suggestion(reference: str) -> str:
    near = difflib.get_close_matches(reference.lower(), BUILT_IN, n=1)
    question = f'did you mean "{near[0]}"? ' if near else ""
    return f"{question}built in: {', '.join(BUILT_IN)}; or name your own as package.module:function"


def _module(name: str, reference: str) -> Any:
    if not all(part.isidentifier() for part in name.split(".")):
        raise WorkloadError(f'"{reference}" does not name a module', "write package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise WorkloadError(
                f'no module "{error.name}"', f"call from the folder that holds it; here is {here}"
            ) from error
        raise _failure(f'importing "{name}"', error) from error
    except Exception as error:
        raise _failure(f'importing "{name}"', error) from error


def _attribute(module: Any, path: str, reference: str) -> Any:
    value = module
    for part in path.split("."):
        if not hasattr(value, part):
            known = [name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")]
            near = difflib.get_close_matches(path, known, n=1)
            hint = f'did you mean "{near[0]}"?' if near else "write package.module:function"
            raise WorkloadError(f'"{module.__name__}" has no "{path}"', hint)
        value = getattr(value, part)
    if not callable(value):
        raise WorkloadError(
            f'"{reference}" is no function but {_described(value)}',
            "name a function without arguments that returns a secateur.Workload",
        )
    return value


def _call(function: Any, reference: str) -> Workload:
    from secateur.core.task import Workload

    try:
        made = _undisturbed(function)
    except SecateurError:
        raise
    except Exception as error:
        raise _failure(f'calling "{reference}"', error) from error
    for name in ("stdout", "stderr"):
        if getattr(getattr(sys, name), "closed", False):
            raise WorkloadError(f'"{reference}" closed sys.{name}', "leave it open")
    if not isinstance(made, Workload):
        raise WorkloadError(f'"{reference}" returned {_described(made)}', "it must return a secateur.Workload")
    return made if made.reference else replace(made, reference=reference)


def _undisturbed(function: Any) -> Any:
    """What a function returns; the working folder and torch's gradient mode, which it may have changed, are as before:
    outputs are relative to where the command was typed, and what is compressed is trained."""
    import torch

    here, gradients = Path.cwd(), torch.is_grad_enabled()
    try:
        return function()
    finally:
        torch.set_grad_enabled(gradients)
        if Path.cwd() != here:
            os.chdir(here)


def _failure(doing: str, error: Exception) -> WorkloadError:
    return WorkloadError(f"{doing} failed: {described(error)}", "--debug shows the traceback")


def _described(value: Any) -> str:
    return "nothing (None)" if value is None else f"a value of type {type(value).__name__}"
