"""Objective: what one batch of fine-tuning costs, as one module of everything that is learnt.

    loss = weighting(L_1 … L_T) + d·Σ_t w_t·KD_t + f·KD_features

Student, adapters and task weights are its parameters, so that a wrapper for several processes sees them all.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.compress.recording import recording
from secateur.compress.speed import fast_layout, float32, in_layout, lay_out
from secateur.compress.training.distill import Adapters, distillation, shared_points
from secateur.compress.training.recipe import Recipe
from secateur.compress.training.weighting import WEIGHTINGS
from secateur.core.device import moved
from secateur.core.predict import evaluating, predict, task_losses
from secateur.core.task import Batch, Workload


class Objective(nn.Module):
    """`objective(inputs, targets)`: the loss, and each task's own loss [tasks]."""

    def __init__(self, model: nn.Module, workload: Workload, recipe: Recipe, precision: torch.dtype) -> None:
        super().__init__()
        self.model, self._recipe, self._precision = model, recipe, precision
        self._tasks = workload.tasks
        self._device = next(model.parameters()).device
        self._teacher: list[nn.Module] = []  # in a list, so that it is no part of this module
        if recipe.distillation or recipe.feature_distillation:
            self._teacher.append(frozen(workload.model).to(self._device))
        inputs = moved(next(iter(workload.calibration))[0], self._device)
        self._layout = fast_layout(inputs, self._tasks, *self._teacher, trained=model)
        for each in (model, *self._teacher):
            lay_out(each, self._layout)
        self._points: tuple[str, ...] = ()
        self.adapters: Adapters | None = None
        self.weighting = WEIGHTINGS[recipe.weighting](self._tasks).to(self._device)
        if recipe.feature_distillation:
            self._match_features(workload)

    def _match_features(self, workload: Workload) -> None:
        inputs, _ = self.laid_out(next(iter(workload.calibration)))
        self._points = shared_points(self.model, self._teacher[0], inputs, self._tasks)
        if self._points:
            with evaluating(self.model), evaluating(self._teacher[0]):
                (_, small), (_, large) = (self._run(each, inputs) for each in (self.model, self._teacher[0]))
            self.adapters = Adapters(small, large).to(self._device)

    def laid_out(self, batch: Batch) -> Batch:
        """A batch on the model's device, in its layout."""
        inputs, targets = (moved(part, self._device) for part in batch)
        return in_layout(inputs, self._layout), targets

    def forward(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = self.laid_out((inputs, targets))
        student, features = self._run(self.model, inputs)
        losses = torch.stack([*task_losses(student, targets, self._tasks).values()])
        total = self.weighting(losses)
        if self._teacher:
            with torch.no_grad():
                teacher, wanted = self._run(self._teacher[0], inputs)
            if self._recipe.distillation:
                for task in self._tasks:
                    kept = distillation(student[task.name], teacher[task.name])
                    total = total + self._recipe.distillation * task.weight * kept
            if self.adapters is not None:
                total = total + self._recipe.feature_distillation * self.adapters(features, wanted)
        return total, losses.detach()

    def _run(self, model: nn.Module, inputs: Any) -> tuple[dict[str, Any], list[Tensor]]:
        """Predictions and features in float32, computed in what the device is fast at."""
        fast = self._precision != torch.float32
        with recording(model, self._points) as seen, torch.autocast(self._device.type, self._precision, enabled=fast):
            found = predict(model, inputs, self._tasks)
        predictions = {name: pytree.tree_map_only(Tensor, float32, value) for name, value in found.items()}
        features = dict(seen)
        return predictions, [float32(features[path]) for path in self._points]


def frozen(model: nn.Module) -> nn.Module:
    """A copy that is only looked at."""
    return copy.deepcopy(model).eval().requires_grad_(False)
