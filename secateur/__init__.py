"""Secateur compresses trained multi-task PyTorch models for a named piece of hardware, and proves the result on it.

    import secateur as sc
    pruned = sc.prune(workload, budget="flops<=40%", drop={"*": "1%"})
    bundle = pruned.save("runs/mine")

Names are loaded when they are first used, so that `import secateur` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Task": "secateur.core.task",
    "Workload": "secateur.core.task",
    "Budget": "secateur.core.budget",
    "Tolerance": "secateur.core.budget",
    "Bundle": "secateur.core.bundle",
    "Costs": "secateur.core.costs",
    "Profile": "secateur.core.costs",
    "SecateurError": "secateur.core.errors",
    "Compressed": "secateur.compress.compressed",
    "prune": "secateur.api",
    "extract": "secateur.api",
    "load": "secateur.api",
    "select": "secateur.api",
    "sweep": "secateur.api",
    "slim": "secateur.api",
    "benchmark": "secateur.api",
    "compress_to_bundle": "secateur.api",
    "inspect": "secateur.api",
    "verify": "secateur.api",
    "report": "secateur.api",
    "workload": "secateur.workloads",
}
__all__ = [
    "Budget",
    "Bundle",
    "Compressed",
    "Costs",
    "Profile",
    "SecateurError",
    "Task",
    "Tolerance",
    "Workload",
    "__version__",
    "benchmark",
    "compress_to_bundle",
    "extract",
    "inspect",
    "load",
    "prune",
    "report",
    "select",
    "slim",
    "sweep",
    "verify",
    "workload",
]

if TYPE_CHECKING:
    from secateur.api import (
        benchmark,
        compress_to_bundle,
        extract,
        inspect,
        load,
        prune,
        report,
        select,
        slim,
        sweep,
        verify,
    )
    from secateur.compress.compressed import Compressed
    from secateur.core.budget import Budget, Tolerance
    from secateur.core.bundle import Bundle
    from secateur.core.costs import Costs, Profile
    from secateur.core.errors import SecateurError
    from secateur.core.task import Task, Workload
    from secateur.workloads import workload


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
