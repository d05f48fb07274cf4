"""Distillation: drawing a student's outputs and features to those of its teacher.

    KD = mean‖s - z‖² / var(z)

Scaled by the teacher's variance, one rule serves logits, depth maps, boxes and feature maps alike. Features are
compared where all tasks still share them: at the last point of each resolution, of which the widest count. Where the
student's features have fewer channels, an adapter (a 1x1 convolution) maps them to the teacher's; it starts as the
least-squares fit, so that from the first step only what the student cannot express is a loss (FitNets, Romero et al.,
ICLR 2015, with a solved start).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.compress.least_squares import least_squares
from secateur.compress.recording import recording
from secateur.core.inputs import call_model, mapped, takes_task
from secateur.core.predict import evaluating, pick_tasks
from secateur.core.task import Task

POINTS = 3
"""Features that are compared at most."""
RIDGE = 1e-4


def distillation(student: Any, teacher: Any) -> Tensor:
    """Mean squared difference of the outputs in units of the teacher's variance; any nesting of tensors."""
    pairs = zip(pytree.tree_leaves(student), pytree.tree_leaves(teacher), strict=True)
    terms = [
        (one - other).square().mean() / other.var(correction=0).clamp_min(1e-6)
        for one, other in pairs
        if isinstance(one, Tensor) and one.is_floating_point()
    ]
    return torch.stack(terms).mean() if terms else torch.zeros(())


class Adapters(nn.Module):
    """A learnt linear map from the student's channels to the teacher's for each feature whose sizes differ."""

    def __init__(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        """`student`, `teacher`: the features of one batch, with which the maps are solved."""
        super().__init__()
        self.dims = [_different(one.shape, other.shape) for one, other in zip(student, teacher, strict=True)]
        self.maps = nn.ParameterList(
            nn.Parameter(_fit(one.movedim(dim, -1).flatten(0, -2), other.movedim(dim, -1).flatten(0, -2)))
            for one, other, dim in zip(student, teacher, self.dims, strict=True)
            if dim is not None
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The mean distillation loss over all features."""
        maps, adapted = iter(self.maps), []
        for feature, dim in zip(student, self.dims, strict=True):
            adapted.append(feature if dim is None else (feature.movedim(dim, -1) @ next(maps)).movedim(-1, dim))
        return torch.stack([distillation(one, other) for one, other in zip(adapted, teacher, strict=True)]).mean()


def _different(one: torch.Size, other: torch.Size) -> int | None:
    """The dimension in which two shapes differ, None for equal ones."""
    found = [dim for dim, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    return found[0] if found else None


def _fit(student: Tensor, teacher: Tensor) -> Tensor:
    """The matrix [student's channels, teacher's] of the least squares from samples [n, channels]."""
    weight, _ = least_squares(student, teacher, student.new_zeros(teacher.shape[1], student.shape[1]), None, RIDGE)
    return weight.T.float()


def shared_points(student: nn.Module, teacher: nn.Module, inputs: Any, tasks: Sequence[Task]) -> tuple[str, ...]:
    """Paths of the modules whose outputs are compared: all tasks depend on them, in both models, which there differ in
    one dimension at most. Of each resolution it is the last module, and of these the widest ones. None where a model
    shares nothing that a module returns."""
    small, large = _shared(student, inputs, tasks), _shared(teacher, inputs, tasks)
    last: dict[tuple[int, ...], str] = {}
    for path, shape in large.items():
        if path in small and sum(a != b for a, b in zip(small[path], shape, strict=True)) <= 1:
            last[_resolution(shape)] = path
    widest = sorted(last.values(), key=lambda path: -_channels(large[path]))[:POINTS]
    return tuple(path for path in large if path in widest)


def _resolution(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[2:]) if len(shape) == 4 else tuple(shape[1:-1])


def _channels(shape: Sequence[int]) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]


def _shared(model: nn.Module, inputs: Any, tasks: Sequence[Task]) -> dict[str, torch.Size]:
    """Module path → shape of its output, for the feature maps and sequences that every task's prediction depends on,
    in the order in which they are computed."""
    paths = [path for path, _ in model.named_modules() if path]
    shapes: dict[str, torch.Size] = {}
    common: set[str] | None = None
    modes = {parameter: parameter.requires_grad for parameter in model.parameters()}
    leaves = mapped(_leaf, inputs)
    try:
        with evaluating(model), torch.enable_grad(), recording(model, paths) as seen:
            model.requires_grad_(False)
            for names, outputs in _calls(model, leaves, tasks):
                features = _features(seen)
                shapes = {path: found.shape for path, found in features.items()}
                for name in names:
                    reached = _ancestors(outputs[name], features)
                    common = reached if common is None else common & reached
    finally:
        for parameter, needed in modes.items():
            parameter.requires_grad_(needed)
    return {path: shape for path, shape in shapes.items() if path in (common or ())}


def _features(seen: Sequence[tuple[str, Any]]) -> dict[str, Tensor]:
    """What modules returned last, where that is a feature map [N, C, H, W] or a sequence [N, L, C] of the input."""
    found: dict[str, Tensor] = {}
    for path, output in seen:
        found.pop(path, None)
        if isinstance(output, Tensor) and output.ndim in (3, 4) and output.requires_grad:
            found[path] = output
    return found


def _calls(model: nn.Module, inputs: Any, tasks: Sequence[Task]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """(tasks, their predictions) of every call that the model needs."""
    if not takes_task(model):
        yield [task.name for task in tasks], pick_tasks(call_model(model, inputs), tasks)
        return
    for task in tasks:
        yield [task.name], {task.name: call_model(model, inputs, task.name)}


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(True) if tensor.is_floating_point() else tensor


def _ancestors(output: Any, features: Mapping[str, Tensor]) -> set[str]:
    """Paths whose tensors an output depends on."""
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not leaves or not features:
        return set()
    total = torch.stack([leaf.float().sum() for leaf in leaves]).sum()
    found = torch.autograd.grad(total, list(features.values()), allow_unused=True, retain_graph=True)
    return {path for path, gradient in zip(features, found, strict=True) if gradient is not None}
