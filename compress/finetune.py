"""Fine-tuning of a compressed model, with the original model as teacher.

AdamW, warm-up and cosine decay, gradient clipping, exponential moving average of weights; what is minimised is said in
`training/objective.py`. Under torchrun the batches are shared among the processes (plain DDP, wrapped anew for every
call, as the model was cut since the last one). Convolutions and matrix products run in reduced precision where the
device is faster with it and the model can be trained in it.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from secateur.compress import ranks
from secateur.compress.journal import Journal
from secateur.compress.speed import fast_precision, lay_out
from secateur.compress.training.objective import Objective
from secateur.compress.training.recipe import Recipe
from secateur.compress.training.steps import Descent, Windows
from secateur.core.device import moved
from secateur.core.errors import ModelError
from secateur.core.predict import evaluating, losses
from secateur.core.progress import bar
from secateur.core.seeds import seed_everything
from secateur.core.task import Batch, Workload

__all__ = ["Recipe", "finetune"]


def finetune(
    model: nn.Module, workload: Workload, recipe: Recipe, *, seed: int, label: str, journal: Journal
) -> list[dict[str, Any]]:
    """Fine-tune a model in place against the workload's own model as teacher.

    Every epoch is a checkpoint in the journal under `label`; a resumed run goes on from the last one and ends in the
    same weights. Under torchrun all processes call this together, and end with the same model.

    Returns:
        one entry per epoch: {"epoch", "loss", "tasks": {task: mean loss}}, with "weights": {task: factor} where they
        are not fixed, and "calibration": mean loss on the calibration data where that can stop the run.

    Raises:
        ModelError: a loss or a gradient that is not finite; the model is left as after the last good step.
        DataError: fewer batches than processes.
    """
    if recipe.epochs == 0:
        return []
    with ranks.joined():
        run = _Run(model, workload, recipe)
        history: list[dict[str, Any]] = []
        saved = journal.load_tensors(f"{label}/checkpoint")
        if saved is not None:
            history = run.restore(saved)
        with bar("fine-tuning", recipe.epochs * run.windows.batches) as progress:
            progress.advance(len(history) * run.windows.batches)
            while len(history) < recipe.epochs and not run.stale(history):
                seed_everything(seed, len(history))
                history.append(run.epoch(history, progress))
                progress.note(f"loss {history[-1]['loss']:.4g}")
                journal.save_tensors(f"{label}/checkpoint", run.checkpoint(history))
        run.finish()
    return history


class _Run:
    def __init__(self, model: nn.Module, workload: Workload, recipe: Recipe) -> None:
        self.model, self.workload, self.recipe = model, workload, recipe
        self.windows = Windows(workload, recipe.accumulate)
        precision = self._fast_precision() if recipe.precision == "auto" else getattr(torch, recipe.precision)
        self.objective = Objective(model, workload, recipe, precision)
        self.step = _over_ranks(self.objective)
        self.descent = Descent(
            self.objective, model, lr=recipe.lr, weight_decay=recipe.weight_decay, warmup=recipe.warmup,
            ema_decay=recipe.ema_decay, steps=recipe.epochs * self.windows.steps, half=precision == torch.float16,
        )  # fmt: skip
        self.best: dict[str, Tensor] | None = None

    def _fast_precision(self) -> torch.dtype:
        inputs, _ = next(iter(self.workload.calibration))
        return fast_precision(self.model, moved(inputs, next(self.model.parameters()).device), self.workload.tasks)

    def epoch(self, history: Sequence[Mapping[str, Any]], progress: Any) -> dict[str, Any]:
        number, weighting, names = len(history), self.objective.weighting, self.workload.task_names
        weighting.start_epoch(history)
        self.objective.train()
        sums = torch.zeros(1 + len(names), dtype=torch.float64)
        for window in self.windows.epoch(number):
            sums += self._window(window, number)
            progress.advance(len(window))
        loss, *means = (sums / self.windows.batches).tolist()
        entry: dict[str, Any] = {"epoch": number, "loss": loss, "tasks": dict(zip(names, means, strict=True))}
        if self.recipe.weighting != "fixed":
            entry["weights"] = dict(zip(names, weighting.weights().tolist(), strict=True))
        if self.recipe.patience:
            entry["calibration"] = self._calibration_loss()
            self._refuse_infinite(entry["calibration"], "loss on the calibration data", number)
            if entry["calibration"] <= min((each["calibration"] for each in history), default=math.inf):
                self.best = copy.deepcopy(self.descent.averaged())
        return entry

    def _window(self, window: Sequence[Batch], number: int) -> Tensor:
        """One step on some batches. Returns the sums of loss and task losses, each a mean over all processes."""
        sums = torch.zeros(1 + len(self.workload.tasks), dtype=torch.float64)
        self.descent.optimizer.zero_grad()
        for position, (inputs, targets) in enumerate(window):
            with self._unsynchronised(position + 1 < len(window)):
                total, parts = self.step(inputs, targets)
                found = ranks.mean(torch.stack([total.detach(), *parts]).double().cpu())
                self._refuse_infinite(float(found[0]), "loss", number)
                self.descent.scaler.scale(total / len(window)).backward()
            sums += found
        self.descent.scaler.unscale_(self.descent.optimizer)
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.recipe.clip)
        if not self.descent.scaler.is_enabled():  # which looks for itself, and leaves such a step out
            self._refuse_infinite(float(norm), "gradient", number)
        self.descent.step()
        return sums

    def _unsynchronised(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients stay in this process until the last batch of a step."""
        if wanted and isinstance(self.step, DistributedDataParallel):
            return self.step.no_sync()
        return contextlib.nullcontext()

    def _refuse_infinite(self, value: float, what: str, number: int) -> None:
        if not math.isfinite(value):
            self.finish()
            raise ModelError(
                f"the {what} became {value} in epoch {number} of fine-tuning",
                "lower the learning rate; the weights of the last good step were kept",
            )

    def _calibration_loss(self) -> float:
        """The weighted loss of the averaged weights on the calibration data."""
        total, count = 0.0, 0
        if ranks.leads():
            with evaluating(self.descent.ema.module) as model:
                for batch in self.workload.calibration:
                    found = losses(model, self.objective.laid_out(batch), self.workload.tasks)
                    total += sum(task.weight * float(found[task.name]) for task in self.workload.tasks)
                    count += 1
        return float(ranks.from_leader(total / max(count, 1)))

    def stale(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the calibration loss has not fallen for as many epochs as the recipe waits."""
        if not self.recipe.patience or not history:
            return False
        values = [entry["calibration"] for entry in history]
        last_best = max(number for number, value in enumerate(values) if value == min(values))
        return len(values) - 1 - last_best >= self.recipe.patience

    def checkpoint(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        state = {"objective": self.objective.state_dict(), "best": self.best, "history": history}
        return {**state, **self.descent.checkpoint()}

    def restore(self, saved: Mapping[str, Any]) -> list[dict[str, Any]]:
        self.objective.load_state_dict(saved["objective"])
        self.best = saved["best"]
        self.descent.restore(saved)
        return list(saved["history"])

    def finish(self) -> None:
        """The moving average is the result: of the best epoch where that was looked for, else of the last step."""
        self.model.load_state_dict(self.best or self.descent.averaged())
        ranks.state_from_leader(self.model)
        lay_out(self.model, torch.contiguous_format).eval()


def _over_ranks(objective: Objective) -> nn.Module:
    """The objective, with gradients averaged over all processes where there are several. A branch that some batch
    does not use is no mistake."""
    if not ranks.connected():
        return objective
    return DistributedDataParallel(_Shared(objective), find_unused_parameters=True)


class _Shared(nn.Module):
    """An objective beside a parameter that nothing uses: DDP, told to look for such ones, warns of each run in which it
    finds none, and which runs those are cannot be known before."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.unused = nn.Parameter(torch.zeros((), device=next(objective.parameters()).device))

    def forward(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        total, parts = self.objective(inputs, targets)
        return total, parts
