"""Fine-tuning of a compressed model, with the original model as teacher.

    loss = Σ_t w_t·L_t(student) + d·Σ_t w_t·KD_t,     KD_t = mean‖s_t - z_t‖² / mean‖z_t - mean z_t‖²

The distillation term compares raw outputs and is scaled by the teacher's variance, so that one rule serves logits,
depth maps and boxes alike. AdamW, warm-up and cosine decay, gradient clipping, exponential moving average of weights.
Convolutions and matrix products run in bfloat16 where the processor has instructions for it (twice as fast there).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

from secateur.compress.journal import Journal
from secateur.compress.speed import fast_bfloat16, fast_layout, in_layout, lay_out
from secateur.core.errors import ModelError
from secateur.core.predict import predict, task_losses
from secateur.core.progress import bar
from secateur.core.seeds import seed_everything
from secateur.core.task import Batch, Task, Workload


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune. `distillation` is the weight of the teacher's outputs; 0 needs no teacher."""

    epochs: int
    lr: float = 1e-3
    weight_decay: float = 1e-4
    distillation: float = 1.0
    clip: float = 1.0
    ema_decay: float = 0.99
    warmup: float = 0.05


def finetune(
    model: nn.Module, workload: Workload, recipe: Recipe, *, seed: int, label: str, journal: Journal
) -> list[dict[str, Any]]:
    """Fine-tune a model in place against the workload's own model as teacher.

    Every epoch is a checkpoint in the journal under `label`; a resumed run goes on from the last one and ends in the
    same weights.

    Returns:
        one entry per epoch: {"epoch", "loss", "tasks": {task: mean loss}}.

    Raises:
        ModelError: a loss that is not finite; the model is left as after the last finished epoch.
    """
    if recipe.epochs == 0:
        return []
    run = _Run(model, workload, recipe)
    history: list[dict[str, Any]] = []
    saved = journal.load_tensors(f"{label}/checkpoint")
    if saved is not None:
        history = run.restore(saved)
    with bar(label, recipe.epochs * run.batches) as progress:
        progress.advance(len(history) * run.batches)
        for epoch in range(len(history), recipe.epochs):
            seed_everything(seed, epoch)
            history.append(run.epoch(epoch, progress))
            progress.note(f"loss {history[-1]['loss']:.4g}")
            journal.save_tensors(f"{label}/checkpoint", run.checkpoint(history))
    run.finish()
    return history


class _Run:
    def __init__(self, model: nn.Module, workload: Workload, recipe: Recipe) -> None:
        self.model, self.workload, self.recipe = model, workload, recipe
        self.teacher = copy.deepcopy(workload.model).eval().requires_grad_(False)
        self.tasks: tuple[Task, ...] = workload.tasks
        self.batches = batches_of(workload)
        self.device = next(model.parameters()).device.type
        self.bfloat16 = fast_bfloat16(self.device)
        self.layout = fast_layout(model, workload.example_input, self.tasks)
        for network in (self.model, self.teacher):
            lay_out(network, self.layout)
        decay, no_decay = parameter_groups(model)
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": no_decay, "weight_decay": 0.0}],
            lr=recipe.lr,
        )
        steps = recipe.epochs * self.batches
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step / max(steps, 1), recipe.warmup)
        )
        self.ema = AveragedModel(model, avg_fn=moving_average(recipe.ema_decay), use_buffers=True)

    def epoch(self, number: int, progress: Any) -> dict[str, Any]:
        self.model.train()
        sums: dict[str, float] = dict.fromkeys(("loss", *(task.name for task in self.tasks)), 0.0)
        count = 0
        for batch in self.workload.train:
            total, parts = self._step(batch)
            if not math.isfinite(total):
                self._back_to_average()
                raise ModelError(
                    f"the loss became {total} in epoch {number} of fine-tuning",
                    "lower the learning rate; the weights of the last good step were kept",
                )
            sums["loss"] += total
            for name, value in parts.items():
                sums[name] += value
            count += 1
            progress.advance()
        means = {name: value / max(count, 1) for name, value in sums.items()}
        return {"epoch": number, "loss": means.pop("loss"), "tasks": means}

    def _step(self, batch: Batch) -> tuple[float, dict[str, float]]:
        inputs, targets = batch
        student = self._predict(self.model, inputs)
        losses = task_losses(student, targets, self.tasks)
        total: Tensor = sum((task.weight * losses[task.name] for task in self.tasks), torch.zeros(()))
        if self.recipe.distillation:
            with torch.no_grad():
                teacher = self._predict(self.teacher, inputs)
            for task in self.tasks:
                loss = distillation(student[task.name], teacher[task.name])
                total = total + self.recipe.distillation * task.weight * loss
        value = float(total.detach())
        if math.isfinite(value):
            self.optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            self.optimizer.step()
            self.scheduler.step()
            self.ema.update_parameters(self.model)
        return value, {name: float(loss.detach()) for name, loss in losses.items()}

    def _predict(self, model: nn.Module, inputs: Any) -> dict[str, Any]:
        """Predictions in float32, computed in bfloat16 where that is fast."""
        inputs = in_layout(inputs, self.layout)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            found = predict(model, inputs, self.tasks)
        return {name: pytree.tree_map_only(Tensor, float32, value) for name, value in found.items()}

    def checkpoint(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"last_epoch": self.scheduler.last_epoch, "_step_count": self.scheduler._step_count},
            "history": history,
        }

    def restore(self, saved: Mapping[str, Any]) -> list[dict[str, Any]]:
        self.model.load_state_dict(saved["model"])
        self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        vars(self.scheduler).update(saved["scheduler"])  # its own load_state_dict wants the lambdas too
        return list(saved["history"])

    def finish(self) -> None:
        """The moving average is the result."""
        self._back_to_average()
        lay_out(self.model, torch.contiguous_format).eval()

    def _back_to_average(self) -> None:
        self.model.load_state_dict(self.ema.module.state_dict())


def distillation(student: Any, teacher: Any) -> Tensor:
    """Mean squared difference of the outputs in units of the teacher's variance; any nesting of tensors."""
    pairs = zip(pytree.tree_leaves(student), pytree.tree_leaves(teacher), strict=True)
    terms = [
        (one - other).square().mean() / other.var(correction=0).clamp_min(1e-6)
        for one, other in pairs
        if isinstance(one, Tensor) and one.is_floating_point()
    ]
    return torch.stack(terms).mean() if terms else torch.zeros(())


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """An exponential moving average that forgets its start: a decay of at most (1 + n) / (10 + n) after n steps keeps
    short runs from averaging over the damaged weights they began with."""

    def average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not averaged.is_floating_point():
            return current
        count = int(steps)
        return torch.lerp(current, averaged, min(decay, (1 + count) / (10 + count)))

    return average


def float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.bfloat16 else value


def warmup_cosine(progress: float, warmup: float) -> float:
    if progress < warmup:
        return (progress + 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights decay; biases and normalisation parameters do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]


def batches_of(workload: Workload) -> int:
    try:
        return len(workload.train)  # type: ignore[arg-type]
    except TypeError:
        return sum(1 for _ in workload.train)
