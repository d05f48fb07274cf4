"""Training an elastic model: every step teaches the largest, the smallest and some random configurations at once.

    L_largest = Σ_t w_t·(L_t + o·KD_t(original))        L_c = Σ_t w_t·r_t·(L_t + a·KD_t(largest)) + b·D(features)

KD is the distance to a teacher's outputs: the original model teaches the largest configuration, and that the others
(in-place distillation, Yu and Huang, 2019). D is the distance to its encoder's features (`features`). r is a random
preference over tasks with mean 1; the decoders of a random configuration are drawn so that a preferred task never gets
the smaller width. The tasks' own losses stay in for every configuration. Gradients are clipped for each configuration
by itself, add up, and make one step: those of the smaller ones are many times as large, and would draw the weights away
from what the largest one had learnt. A moving average of the weights is the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.compress import ranks
from secateur.compress.journal import Journal
from secateur.compress.recording import recording
from secateur.compress.slimmable.elastic import ElasticModel, Subnet
from secateur.compress.slimmable.features import Feature, distance
from secateur.compress.slimmable.settings import Settings
from secateur.compress.slimmable.space import Configuration, Space
from secateur.compress.speed import fast_bfloat16, fast_layout, float32, in_layout, lay_out, trains_in
from secateur.compress.training.distill import distillation
from secateur.compress.training.objective import frozen
from secateur.compress.training.steps import Descent, Windows
from secateur.core.errors import ModelError
from secateur.core.predict import predict, task_losses
from secateur.core.progress import bar
from secateur.core.seeds import seed_everything
from secateur.core.task import Batch, Workload

LABEL = "elastic"


def train(
    elastic: ElasticModel,
    workload: Workload,
    settings: Settings,
    *,
    features: Sequence[Feature] = (),
    seed: int,
    journal: Journal,
) -> list[dict[str, Any]]:
    """Train an elastic model in place.

    Every epoch is a checkpoint in the journal; a resumed run goes on from the last one and ends in the same weights.
    Under torchrun the batches of a pass are shared among the processes, and the first one keeps the journal.

    Returns:
        one entry per epoch: {"epoch", "loss", "tasks": {task: mean loss of the largest}, "smallest": the same of the
        smallest, "gradients": {"largest", "smallest", "random": mean norm}}.

    Raises:
        ModelError: a loss that is not finite; the model is left as after the last good step.
        DataError: fewer batches than a step takes.
    """
    if settings.epochs == 0:
        return []
    with ranks.joined():
        run = _Run(elastic, workload, settings, features)
        history: list[dict[str, Any]] = []
        saved = journal.load_tensors(f"{LABEL}/checkpoint")
        if saved is not None:
            history = run.restore(saved)
        with bar("training", settings.epochs * run.steps) as progress:
            progress.advance(len(history) * run.steps)
            for epoch in range(len(history), settings.epochs):
                seed_everything(seed, epoch)
                history.append(run.epoch(epoch, np.random.default_rng([seed, epoch]), progress))
                progress.note(f"loss {history[-1]['loss']:.4g}")
                journal.save_tensors(f"{LABEL}/checkpoint", run.checkpoint(history))
        run.finish()
    return history


class _Run:
    def __init__(
        self, elastic: ElasticModel, workload: Workload, settings: Settings, features: Sequence[Feature]
    ) -> None:
        self.elastic, self.workload, self.settings = elastic, workload, settings
        self.space, self.tasks = elastic.space, workload.tasks
        self.features = tuple(features) if settings.feature_distillation else ()
        self.device = next(elastic.parameters()).device.type
        inputs, _ = next(iter(workload.calibration))
        self.bfloat16 = fast_bfloat16(self.device) and trains_in(torch.bfloat16, elastic.model, inputs, self.tasks)
        self.original = frozen(workload.model) if settings.original_distillation else None
        teachers = () if self.original is None else (self.original,)
        self.layout = fast_layout(inputs, self.tasks, *teachers, trained=elastic.model)
        for each in (elastic.model, *teachers):
            lay_out(each, self.layout)
        self.weights = nn.ModuleDict({"model": elastic.model, "private": elastic.private})
        self.parameters = [p for p in self.weights.parameters() if p.requires_grad]
        self.sums: list[Tensor | None] = []
        self.windows = Windows(workload, settings.accumulate)
        self.steps = self.windows.steps
        self.descent = Descent(
            self.weights, self.weights, lr=settings.lr, weight_decay=settings.weight_decay, warmup=settings.warmup,
            ema_decay=settings.ema_decay, steps=settings.epochs * self.steps,
        )  # fmt: skip

    def epoch(self, number: int, draw: np.random.Generator, progress: Any) -> dict[str, Any]:
        sums: dict[str, dict[str, float]] = {}
        for batches in self.windows.epoch(number):
            found = self.step(batches, draw)
            self._refuse_infinite("loss", found["losses"]["loss"], number)
            self._refuse_infinite("gradient", sum(found["gradients"].values()), number)
            self.descent.step()
            for kind, values in found.items():
                for name, value in values.items():
                    sums.setdefault(kind, {}).setdefault(name, 0.0)
                    sums[kind][name] += value / self.steps
            progress.advance()
        losses = sums.pop("losses", {"loss": math.nan})
        return {"epoch": number, "loss": losses["loss"], **sums}

    def _refuse_infinite(self, what: str, value: float, number: int) -> None:
        """Stop before a step that would spoil weights and average, where it is so in any process."""
        if not math.isfinite(float(ranks.mean(torch.tensor(value)))):
            self._back_to_average()
            raise ModelError(
                f"the {what} became {value} in epoch {number} of training",
                "lower the learning rate; the weights of the last good step were kept",
            )

    def step(self, batches: list[Batch], draw: np.random.Generator) -> dict[str, dict[str, float]]:
        """Gradients of one step, clipped for each configuration, summed over them, averaged over batches and
        processes."""
        configurations = [self.space.smallest]
        preferences = [np.ones(len(self.tasks))]
        for _ in range(self.settings.random):
            preference = _preference(draw, len(self.tasks), self.settings.concentration)
            preferences.append(preference)
            configurations.append(_drawn(self.space, draw, preference))
        found: dict[str, dict[str, float]] = {"losses": {"loss": 0.0}, "tasks": {}, "smallest": {}, "gradients": {}}
        share = 1 / len(batches)
        self.descent.optimizer.zero_grad()
        self.sums = [None] * len(self.parameters)
        for inputs, targets in batches:
            inputs = in_layout(inputs, self.layout)
            teacher, full = self._teach(inputs, targets, share, found)
            self._take("largest", share, found)
            for number, (configuration, preference) in enumerate(zip(configurations, preferences, strict=True)):
                role = "smallest" if number == 0 else "random"
                self._learn(configuration, preference, (inputs, targets), teacher, full, share, found, role)
                self._take(role, share, found)
        for parameter, gradient in zip(self.parameters, self.sums, strict=True):
            parameter.grad = gradient
        ranks.average_gradients(self.parameters)
        return found

    def _teach(
        self, inputs: Any, targets: Mapping[str, Any], share: float, found: dict[str, dict[str, float]]
    ) -> tuple[dict[str, Any], list[Tensor]]:
        """The largest configuration's own losses; its outputs and features for the others."""
        outputs, features = self._run(self.elastic.at(self.space.largest, training=True), inputs)
        losses = task_losses(outputs, targets, self.tasks)
        total = torch.stack([task.weight * losses[task.name] for task in self.tasks]).sum()
        if self.original is not None:
            total = total + self.settings.original_distillation * self._from_original(inputs, targets, outputs, losses)
        _backward(total, share, found["losses"])
        for name, loss in losses.items():
            found["tasks"][name] = found["tasks"].get(name, 0.0) + share * float(loss.detach())
        return pytree.tree_map_only(Tensor, Tensor.detach, outputs), [each.detach() for each in features]

    def _from_original(
        self, inputs: Any, targets: Mapping[str, Any], outputs: Mapping[str, Any], losses: Mapping[str, Tensor]
    ) -> Tensor:
        """Distance of the largest configuration's outputs to the original model's, for the tasks in which that is the
        better one on this batch: a model that was not trained has nothing to teach."""
        assert self.original is not None
        with torch.no_grad():
            wanted = self._predict(self.original, inputs)
            its_losses = task_losses(wanted, targets, self.tasks)
        taught = [task for task in self.tasks if its_losses[task.name] < losses[task.name]]
        apart = [task.weight * distillation(outputs[task.name], wanted[task.name]) for task in taught]
        return sum(apart, torch.zeros_like(losses[self.tasks[0].name]))

    def _learn(
        self,
        configuration: Configuration,
        preference: np.ndarray[Any, Any],
        batch: tuple[Any, Mapping[str, Any]],
        teacher: Mapping[str, Any],
        full: list[Tensor],
        share: float,
        found: dict[str, dict[str, float]],
        role: str,
    ) -> None:
        """One smaller configuration's losses: the tasks', the distance to the teacher, and that of its features."""
        settings = self.settings
        outputs, features = self._run(self.elastic.at(configuration, training=True), batch[0])
        losses = task_losses(outputs, batch[1], self.tasks)
        terms = []
        for task, weight in zip(self.tasks, preference, strict=True):
            loss = losses[task.name]
            if settings.output_distillation:
                loss = loss + settings.output_distillation * distillation(outputs[task.name], teacher[task.name])
            terms.append(float(weight) * task.weight * loss)
        total = torch.stack(terms).sum()
        if self.features:
            apart = distance(features, full, self.features, self.space, configuration)
            total = total + settings.feature_distillation * apart
        _backward(total, share, found["losses"])
        if role == "smallest":
            for name, loss in losses.items():
                found[role][name] = found[role].get(name, 0.0) + share * float(loss.detach())

    def _run(self, subnet: Subnet, inputs: Any) -> tuple[dict[str, Any], list[Tensor]]:
        """Predictions, and the encoder's features."""
        paths = list(dict.fromkeys(feature.path for feature in self.features))
        with recording(subnet.skeleton, paths) as seen:
            outputs = self._predict(subnet, inputs)
        calls: dict[str, list[Tensor]] = {path: [output for where, output in seen if where == path] for path in paths}
        return outputs, [calls[feature.path][feature.call] for feature in self.features]

    def _predict(self, model: nn.Module | Subnet, inputs: Any) -> dict[str, Any]:
        """Predictions in float32, computed in bfloat16 where that is fast."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            found = predict(model, inputs, self.tasks)  # type: ignore[arg-type]
        return {name: pytree.tree_map_only(Tensor, float32, value) for name, value in found.items()}

    def _take(self, role: str, share: float, found: dict[str, dict[str, float]]) -> None:
        """Clip one configuration's gradient, note its norm, and add it to the step's."""
        norm = nn.utils.clip_grad_norm_(self.parameters, share * self.settings.clip)
        found["gradients"][role] = found["gradients"].get(role, 0.0) + float(norm)
        for number, parameter in enumerate(self.parameters):
            total, own = self.sums[number], parameter.grad
            if own is not None:
                self.sums[number] = own if total is None else total.add_(own)
        self.descent.optimizer.zero_grad()

    def checkpoint(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        return {"weights": self.weights.state_dict(), "history": history, **self.descent.checkpoint()}

    def restore(self, saved: Mapping[str, Any]) -> list[dict[str, Any]]:
        self.weights.load_state_dict(saved["weights"])
        self.descent.restore(saved)
        return list(saved["history"])

    def finish(self) -> None:
        """The moving average is the result."""
        self._back_to_average()
        lay_out(self.elastic.model, torch.contiguous_format).eval()

    def _back_to_average(self) -> None:
        self.weights.load_state_dict(self.descent.averaged())


def _backward(total: Tensor, share: float, sums: dict[str, float]) -> None:
    value = float(total.detach())
    sums["loss"] += share * value
    if math.isfinite(value):
        torch.autograd.backward(share * total)


def _preference(draw: np.random.Generator, tasks: int, concentration: float) -> np.ndarray[Any, Any]:
    """Weights of tasks with mean 1."""
    return tasks * draw.dirichlet(np.full(tasks, concentration))


def _drawn(space: Space, draw: np.random.Generator, preference: np.ndarray[Any, Any]) -> Configuration:
    """A random configuration; among decoders of one stage each, the larger widths go to the preferred tasks."""
    found = list(space.random(draw))
    single = {task: space.decoder(task)[0] for task in space.tasks if len(space.decoder(task)) == 1}
    ranked = sorted(single, key=lambda task: preference[space.tasks.index(task)])
    shares = sorted(found[place] / (len(space.stages[place].widths) - 1) for place in single.values())
    for task, share in zip(ranked, shares, strict=True):
        place = single[task]
        found[place] = round(share * (len(space.stages[place].widths) - 1))
    return tuple(found)
