"""`python on_pretend.py LIBRARY WHAT`: one job on the device of pretend.cpp, which shares no tensor with the CPU.

In a process of its own, since a device that is registered stays.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from secateur.core.task import Metric

sys.path[:0] = [str(Path(__file__).parents[1] / each) for each in ("", "compress", "compress/experts")]
DEVICE = "pretend"
JOBS: dict[str, Callable[[], None]] = {}


def register(library: str) -> None:
    """Make the device known to torch, with what torch asks of a device's module."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend(DEVICE)
    module = types.ModuleType(DEVICE)
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "set_device": None, "_is_in_bad_fork": False,
        "manual_seed": None, "manual_seed_all": None, "get_amp_supported_dtype": [torch.bfloat16],
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer: answer)
    torch._register_device_module(DEVICE, module)
    torch.utils.generate_methods_for_privateuse1_backend()


def job(function: Callable[[], None]) -> Callable[[], None]:
    JOBS[function.__name__] = function
    return function


def kinds(model: nn.Module) -> set[str]:
    """Where a model's parameters and buffers lie."""
    return {tensor.device.type for tensor in model.state_dict().values()}


@job
def the_device_is_strict() -> None:
    """What the other jobs prove hangs on this: two devices do not meet, whatever the operation."""
    here, there = torch.arange(4.0), torch.arange(4.0, device=DEVICE)
    mixed = [
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: there.index_select(0, torch.tensor([1])),
        lambda: torch.isin(there, here),
        lambda: nn.Conv2d(3, 2, 1).to(DEVICE)(torch.zeros(1, 3, 2, 2)),
    ]
    for number, each in enumerate(mixed):
        try:
            each()
        except RuntimeError:
            continue
        raise AssertionError(number)
    assert there[torch.tensor([1, 2])].tolist() == [1, 2]  # indices may lie elsewhere, as on a GPU


class AtHome:
    """A metric whose state is on the CPU, as that of most: what it is given must be there too."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        assert {prediction.device.type, target.device.type} == {"cpu"}
        self.metric.update(prediction, target)

    def compute(self) -> float:
        return float(self.metric.compute())


@job
def prune() -> None:
    """Every criterion, compensation, and fine-tuning with all that it has; the user's model stays where it is."""
    import tiny

    import secateur as sc

    workload = tiny.workload(tiny.Squares())
    workload = replace(workload, tasks=tuple(replace(task, metric=AtHome(task.metric)) for task in workload.tasks))
    for saliency in ("l1", "taylor", "fisher", "bn", "reconstruction", "random"):
        settings = replace(
            tiny.FAST, rounds=1, epochs=1, saliency=saliency, compensate=saliency == "reconstruction", patience=1,
            feature_distillation=0.5, weighting="uncertainty",
        )  # fmt: skip
        result = sc.prune(workload, "flops<=60%", "90%", settings=settings, device=DEVICE)
        assert result.budget_met, saliency
        assert kinds(result.model) == {"cpu"}
        assert result.workload.model is workload.model
    there = sc.prune(tiny.workload(tiny.Squares().to(DEVICE)), "flops<=60%", "90%", settings=settings)
    assert (kinds(there.model), kinds(there.workload.model)) == ({"cpu"}, {"cpu"})


@job
def slim() -> None:
    """Every kind of norm and order, and the way into a bundle; also of a model that was pruned before."""
    import tiny
    from elastic_tiny import FAST

    import secateur as sc
    from secateur.api import slim_to_bundle

    workload = tiny.workload(tiny.Squares())
    for given in ({}, {"private_norms": True}, {"order": "taylor"}):
        result = sc.slim(workload, settings=replace(FAST, epochs=1, **given), device=DEVICE)
        assert kinds(result.model) | kinds(result.elastic) == {"cpu"}
    small = sc.prune(workload, "flops<=70%", "90%", settings=replace(tiny.FAST, rounds=1, epochs=0))
    assert kinds(sc.slim(small, settings=replace(FAST, epochs=1), device=DEVICE).model) == {"cpu"}
    assert slim_to_bundle(workload, "slim", settings=replace(FAST, epochs=1), device=DEVICE).verify() == []


@job
def extract() -> None:
    """Mixtures in layers of their own and in lists, experts removed and channels pruned."""
    import moe_models
    import test_foreign_layouts as foreign

    import secateur as sc
    from secateur.compress.experts import Settings

    settings = Settings(epochs=1, rounds=1, calibration_samples=12)
    lists = foreign.workload(foreign.language(foreign.ListMoE))
    for workload, task, prune in (
        (moe_models.workload(), "depth", False), (moe_models.workload(), "depth", True), (lists, "repeat", False)
    ):  # fmt: skip
        result = sc.extract(workload, [task], "params<=75%", "99%", settings=settings, prune=prune, device=DEVICE)
        assert not any("params" in miss for miss in result.misses), result.misses
        assert kinds(result.model) == {"cpu"}


@job
def bundle() -> None:
    import tiny

    from secateur.api import compress_to_bundle

    workload, settings = tiny.workload(tiny.Squares()), replace(tiny.FAST, rounds=1, epochs=1)
    for target, budget in (("cpu", "flops<=60%"), ("fpga:zcu102", "latency<=95%")):
        made = compress_to_bundle(
            workload, target.replace(":", "-"), budget, "90%", settings=settings, targets=target, device=DEVICE
        )
        assert made.verify() == []


if __name__ == "__main__":
    torch.set_num_threads(1)
    register(sys.argv[1])
    JOBS[sys.argv[2]]()
