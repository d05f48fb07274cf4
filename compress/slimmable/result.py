"""Elastic: what slimming returns, and its way into a bundle and back.

elastic.json               the table: stages, widths, costs and metrics of every configuration
operators.json             what a runtime executes in each part, for predictions on other targets
statistics.safetensors     recalibrated statistics of the exported configurations
private.safetensors        private norms, where there are any
points/00                  the full width, as any other compressed model
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
from torch import Tensor, nn

from secateur.compress.channel_map import ChannelMap, tensor_aliases
from secateur.compress.compressed import Compressed, CompressedPoint, channel_map_of, load_model
from secateur.compress.dataflow import trace
from secateur.compress.slimmable.alone import others_out
from secateur.compress.slimmable.costs import Costing, joined, parts_of
from secateur.compress.slimmable.elastic import ElasticModel
from secateur.compress.slimmable.space import Configuration, Space
from secateur.compress.slimmable.tabulate import Judge
from secateur.core.bundle import Bundle
from secateur.core.elastic import Table
from secateur.core.elastic.files import TABLE, read_table
from secateur.core.errors import BundleError
from secateur.core.files import canonical_json
from secateur.core.inputs import batch_size, samples
from secateur.core.predict import evaluate
from secateur.core.task import Workload, delta_mtl
from secateur.profiles.count import count
from secateur.profiles.latency.parts import FILE as PARTS
from secateur.profiles.latency.parts import Parts

STATISTICS, PRIVATE = "statistics.safetensors", "private.safetensors"
Statistics = Mapping[str, Tensor]
"""`row/buffer` of the shared part, `row/task/d/buffer` of a decoder → tensor."""


@dataclass(repr=False)
class Elastic(Compressed):
    """The result of slimming: `.model` is the full width; `.at(configuration)` gives any other.

    Attributes:
        elastic: the model at all widths.
        table: what its configurations cost and yield.
        statistics: of the exported configurations.
    """

    elastic: ElasticModel
    table: Table
    statistics: Statistics

    def on_cpu(self, workload: Workload) -> Self:
        self.elastic.cpu()
        statistics = {name: tensor.cpu() for name, tensor in self.statistics.items()}
        return replace(super().on_cpu(workload), statistics=statistics)

    @cached_property
    def parts(self) -> Parts:
        """The operators of the table's configurations, which other targets are predicted from."""
        space, table = self.elastic.space, self.table
        decoders = {task: rows.tolist() for task, rows in table.decoders.items()}
        return parts_of(space, Costing(space), table.rows.tolist(), decoders)

    def write_more(self, folder: Path) -> None:
        (folder / TABLE).write_text(canonical_json(self.table.as_json()), encoding="utf-8")
        (folder / PARTS).write_text(canonical_json(self.parts.as_json()), encoding="utf-8")
        (folder / STATISTICS).write_bytes(safetensors.torch.save(dict(self.statistics)))
        if self.settings.get("half"):
            trained = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
            for path in folder.glob("points/*/weights.safetensors"):
                path.write_bytes(_halved(path, trained))
        if self.elastic.private:
            state = {name: tensor.contiguous() for name, tensor in self.elastic.private.state_dict().items()}
            (folder / PRIVATE).write_bytes(safetensors.torch.save(state))


def _halved(path: Path, trained: Collection[str]) -> bytes:
    """A file of tensors with those that were trained, and are rounded so, in half precision."""
    with safetensors.safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        metadata = file.metadata()
    small = {n: t.half() if t.is_floating_point() and n in trained else t for n, t in state.items()}
    content: bytes = safetensors.torch.save(small, metadata)
    return content


def traced_inputs(workload: Workload) -> Any:
    """What models are traced with: up to two samples of calibration data."""
    inputs, _ = next(iter(workload.calibration))
    return samples(inputs, min(2, batch_size(inputs)))


def collect_statistics(judge: Judge, table: Table) -> dict[str, Tensor]:
    """Statistics of every exported row with every width of every decoder; each kept once."""
    found: dict[str, Tensor] = {}
    owners = owners_of(judge.space)
    depth = max(len(rows) for rows in table.decoders.values())
    for row in table.exported:
        for d in range(depth):
            chosen = {task: min(d, len(rows) - 1) for task, rows in table.decoders.items()}
            at = joined(
                judge.space, table.rows[row].tolist(), {t: table.decoders[t][i].tolist() for t, i in chosen.items()}
            )
            for name, tensor in judge.statistics(at).items():
                found[_key(row, owners.get(name), chosen, name)] = tensor.contiguous()
    return found


def statistics_at(
    statistics: Statistics, space: Space, row: int, chosen: Mapping[str, int]
) -> dict[str, Tensor] | None:
    """The kept statistics of one configuration, or None if some are not kept."""
    owners, found = owners_of(space), {}
    names = {key.rsplit("/", 1)[-1] for key in statistics}
    for name in names:
        key = _key(row, owners.get(name), chosen, name)
        if key not in statistics:
            return None
        found[name] = statistics[key]
    return found


def _key(row: int, task: str | None, chosen: Mapping[str, int], name: str) -> str:
    return f"{row}/{name}" if task is None else f"{row}/{task}/{chosen.get(task, 0)}/{name}"


def owners_of(space: Space) -> dict[str, str]:
    """Buffer → the one task that needs it; what several need is left out. A buffer that the evaluation graph does not
    read itself (the number of batches) belongs where its layer's other tensors do."""
    aliases, single = tensor_aliases(space.groups.model), {}
    by_module: dict[str, set[str]] = {}
    for name, tasks in space.needed.items():
        for alias in aliases.get(name, [name]):
            by_module.setdefault(alias.rpartition(".")[0], set()).update(tasks)
    for name, _ in space.groups.model.named_buffers():
        owners = by_module.get(name.rpartition(".")[0], set())
        if len(owners) == 1 and len(space.tasks) > 1:
            single[name] = next(iter(owners))
    return single


def load_elastic(bundle: Bundle, workload: Workload) -> tuple[ElasticModel, Table, dict[str, Tensor]]:
    """An elastic model from its bundle: (model, table, kept statistics).

    Raises:
        BundleError: not elastic, damaged, or of another model.
    """
    table = read_table(bundle)
    model = load_model(bundle, workload.factory or (lambda: workload.model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said when the bundle was made
        groups = trace(model, traced_inputs(workload), table.tasks)
    for stage in table.stages:
        for name, counts in stage.channels.items():
            if name not in groups or groups[name].channels != counts[-1] or not groups[name].prunable:
                raise BundleError(f'the model has no channel group "{name}" of {counts[-1]}', "load its own workload")
    private = PRIVATE in bundle.manifest.files
    space = Space(groups, table.tasks, table.stages)
    elastic = ElasticModel(model, space, private=private, base=channel_map_of(bundle))
    if private:
        elastic.private.load_state_dict(dict(_tensors(bundle, PRIVATE)))
    return elastic, table, dict(_tensors(bundle, STATISTICS))


def _tensors(bundle: Bundle, name: str) -> Iterator[tuple[str, Tensor]]:
    path = bundle.checked_file(name)
    try:
        yield from safetensors.torch.load_file(path).items()
    except safetensors.SafetensorError as error:
        raise BundleError(f"{path} is damaged: {error}", "copy the bundle again") from error


def static_model(
    elastic: ElasticModel, at: Configuration, statistics: Statistics, workload: Workload
) -> tuple[nn.Module, ChannelMap]:
    """One configuration as a static model of the user's class, and how it is cut from the user's model. Modules that
    only other tasks than the workload's need are taken out."""
    model, channels = elastic.static(at, statistics), elastic.base.then(elastic.space.channel_map(at))
    if set(workload.task_names) == set(elastic.space.tasks):
        return model, channels
    out = others_out(model, elastic.space, traced_inputs(workload), workload.tasks)
    out.apply(model)
    return model, channels.then(out)


def judged_point(
    model: nn.Module, channels: ChannelMap, workload: Workload, before: Mapping[str, float]
) -> CompressedPoint:
    """A static model as a point, evaluated for real on the test split."""
    metrics = evaluate(model, workload.test, workload.tasks, "confirming")
    costs = count(model, workload.example_input, workload.task_names).costs
    return CompressedPoint(model, channels, costs, metrics, delta_mtl(workload.tasks, before, metrics))
