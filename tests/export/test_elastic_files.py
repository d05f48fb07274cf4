"""Elastic ONNX files: every width is the torch model's, switching needs no loading, tampering is seen at load."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elastic_case import combinations
from torch import Tensor, nn

from secateur.compress.dataflow import trace
from secateur.compress.journal import Journal
from secateur.compress.slimmable.elastic import ElasticModel
from secateur.compress.slimmable.export import Configurations
from secateur.compress.slimmable.result import collect_statistics
from secateur.compress.slimmable.settings import Settings
from secateur.compress.slimmable.space import Space
from secateur.compress.slimmable.tabulate import Judge, tabulate
from secateur.core.errors import BundleError, ExportError
from secateur.core.inputs import takes_task
from secateur.core.task import Task, Workload
from secateur.export import elastic_session
from secateur.export.elastic_graph import ElasticSource
from secateur.export.elastic_layouts import write_elastic
from secateur.export.runtime import ElasticSession
from secateur.targets.elastic import measured_latencies

BATCH = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Dense(nn.Module):
    """Skips, a concatenation, two dense heads; nothing in it depends on a width as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv2d(20, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 1))
        self.edges = nn.Sequential(nn.Conv2d(20, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        coarse = nn.functional.interpolate(self.deep(fine), scale_factor=2.0)
        features = torch.cat([coarse, fine], 1)
        return {"depth": self.depth(features), "edges": self.edges(features)}


class Flat(Dense):
    """A head that flattens, so that the graph holds a width as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Sequential(nn.Conv2d(20, 6, 3, padding=1), nn.Flatten(), nn.Linear(6 * 64, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        coarse = nn.functional.interpolate(self.deep(fine), scale_factor=2.0)
        features = torch.cat([coarse, fine], 1)
        return {"kind": self.kind(features), "depth": self.depth(features)}


class Guided(Dense):
    """One task's prediction is an input of the other's head, so that the shared part makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.depth[0] = nn.Conv2d(22, 8, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        features = torch.cat([nn.functional.interpolate(self.deep(fine), scale_factor=2.0), fine], 1)
        edges = self.edges(features)
        return {"edges": edges, "depth": self.depth(torch.cat([features, edges], 1))}


class ByTask(Dense):
    """Called one task at a time: no part of its graph is shared."""

    def forward(self, x: Tensor, task: str) -> Tensor:  # type: ignore[override]
        return super().forward(x)[task]


class Single(Dense):
    """One task: all of it is shared."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"depth": super().forward(x)["depth"]}


class Named(Dense):
    """Tasks whose names mean something elsewhere."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = super().forward(x)
        return {"shared": found["depth"], "left/right": found["edges"]}


class Error:
    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.value = float((prediction - target).abs().mean())

    def compute(self) -> float:
        return self.value


def outputs_of(model: nn.Module, tasks: tuple[str, ...]) -> dict[str, Tensor]:
    with torch.no_grad():
        if takes_task(model):
            return {task: model(BATCH, task) for task in tasks}
        return model(BATCH)


def made(model: nn.Module, tasks: tuple[str, ...]) -> ElasticSource:
    """An untrained elastic model with random statistics."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
    model.eval()
    outputs = outputs_of(model, tasks)
    batch = [(BATCH, {task: torch.zeros_like(outputs[task]) for task in tasks})]
    listed = tuple(Task(task, nn.functional.l1_loss, Error(), "lower") for task in tasks)
    workload = Workload("dense", model, BATCH[:1], listed, batch, batch, batch)
    settings = Settings(widths=(0.5,), round_to=2, epochs=0, exported=2, recalibration_batches=1)
    space = Space.of(trace(model, BATCH[:2], tasks), tasks, settings.rule)
    elastic = ElasticModel(model, space)
    judge = Judge(elastic, workload, settings, 0, Journal(None, {}, resume=False))
    table = tabulate(judge, settings, 0)
    return ElasticSource(model, workload, table, Configurations(elastic, table, collect_statistics(judge, table)))


@pytest.fixture(scope="module")
def dense() -> ElasticSource:
    return made(Dense(), ("depth", "edges"))


@pytest.fixture(scope="module", params=["if", "files"])
def session(request: pytest.FixtureRequest, dense: ElasticSource, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    write_elastic(dense, folder, request.param)
    return ElasticSession(folder)


def expected(source: ElasticSource, row: int, chosen: Mapping[str, int]) -> dict[str, np.ndarray]:
    found = outputs_of(source.at(row, chosen)[0], source.table.tasks)
    return {task: value.numpy() for task, value in found.items()}


def assert_equal(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    for task, value in found.items():
        np.testing.assert_allclose(value, wanted[task], rtol=1e-4, atol=1e-5)


def test_every_exported_configuration_is_torchs(dense: ElasticSource, session: ElasticSession) -> None:
    seen = []
    for row, chosen in combinations(dense.table):
        if row in dense.table.exported:
            found = session.run(BATCH.numpy(), choice=session.controller.choice(row, chosen))
            wanted = expected(dense, row, chosen)
            assert set(found) == {"depth", "edges"}
            assert_equal(found, wanted)
            seen.append(found["depth"])
    assert len(seen) == 2 * 4
    assert not np.allclose(seen[0], seen[-1], atol=1e-3)  # widths do differ


def test_a_single_sample_and_a_subset_of_tasks(dense: ElasticSource, session: ElasticSession) -> None:
    row = dense.table.exported[-1]
    found = session.run(BATCH[:1].numpy(), choice=session.controller.choice(row, {"edges": 1}))
    assert set(found) == {"edges"}
    np.testing.assert_allclose(found["edges"], expected(dense, row, {"depth": 0, "edges": 1})["edges"][:1], atol=1e-5)


def test_the_controllers_choice_is_what_runs(dense: ElasticSource, session: ElasticSession) -> None:
    smallest = session.controller.pick(budget_flops=1)
    assert not smallest.met
    session.use(smallest)
    assert_equal(session.run(BATCH.numpy()), expected(dense, smallest.row, smallest.decoders))
    best = session.controller.pick(prefer={"depth": 3})
    session.use(best)
    assert_equal(session.run(BATCH.numpy()), expected(dense, best.row, best.decoders))


def test_threads_that_switch_do_not_disturb_each_other(dense: ElasticSource, session: ElasticSession) -> None:
    choices = [session.controller.choice(row, {"depth": d, "edges": d}) for row in dense.table.exported for d in (0, 1)]
    wanted = [expected(dense, choice.row, choice.decoders)["depth"] for choice in choices]
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(20):
            at = (number + turn) % len(choices)
            session.use(choices[at])
            found = session.run(BATCH.numpy(), choice=choices[at])["depth"]
            if not np.allclose(found, wanted[at], atol=1e-4):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_weights_are_stored_once(dense: ElasticSource, session: ElasticSession) -> None:
    weights = sum(value.numel() * 4 for name, value in dense.full.state_dict().items() if "running" not in name)
    size = sum(path.stat().st_size for path in session.folder.iterdir() if path.suffix in (".bin", ".onnx"))
    copies = 2 * 2 * 2 * weights  # one for each configuration
    assert size < copies
    if (session.folder / "weights.bin").exists():
        assert (session.folder / "weights.bin").stat().st_size < 1.5 * weights + 64 * 30


@pytest.mark.parametrize("layout", ["if", "files"])
@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        (Guided, ("edges", "depth")),
        (ByTask, ("depth", "edges")),
        (Single, ("depth",)),
        (Named, ("shared", "left/right")),
    ],
)
def test_parts_of_other_shapes(model: type[nn.Module], tasks: tuple[str, ...], layout: str, tmp_path: Path) -> None:
    source = made(model(), tasks)
    write_elastic(source, tmp_path, layout)
    session = ElasticSession(tmp_path)
    for row in source.table.exported:
        last = {task: len(rows) - 1 for task, rows in source.table.decoders.items()}
        for chosen in (dict.fromkeys(tasks, 0), last):
            found = session.run(BATCH.numpy(), choice=session.controller.choice(row, chosen))
            assert set(found) == set(tasks)
            assert_equal(found, expected(source, row, chosen))


def test_a_width_that_is_a_constant_of_the_graph_is_exported_right(tmp_path: Path) -> None:
    source = made(Flat(), ("kind", "depth"))
    write_elastic(source, tmp_path, "if")
    session = ElasticSession(tmp_path)
    for row in source.table.exported:
        for chosen in ({"kind": 0, "depth": 1}, {"kind": 1, "depth": 0}):
            found = session.run(BATCH.numpy(), choice=session.controller.choice(row, chosen))
            assert_equal(found, expected(source, row, chosen))


def test_it_runs_without_torch(session: ElasticSession) -> None:
    script = f"""
import sys
sys.modules["torch"] = sys.modules["onnx"] = sys.modules["pydantic"] = None
import numpy as np
from secateur.export.runtime import ElasticSession
session = ElasticSession({str(session.folder)!r})
session.use(session.controller.pick(prefer={{"depth": 2}}))
print(sorted(session.run(np.zeros((2, 3, 8, 8), dtype=np.float32))))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "['depth', 'edges']", done.stderr


def test_a_changed_file_is_seen_at_load(dense: ElasticSource, tmp_path: Path) -> None:
    write_elastic(dense, tmp_path, "files")
    for name in ("weights.bin", "elastic.json", next(tmp_path.glob("part*.onnx")).name):
        path, content = tmp_path / name, (tmp_path / name).read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError, match=f"{name} was changed or truncated"):
            ElasticSession(tmp_path)
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(BundleError, match=f"{name} was changed or truncated"):
            ElasticSession(tmp_path)
        path.unlink()
        with pytest.raises(BundleError, match=f"{name} is missing"):
            ElasticSession(tmp_path)
        path.write_bytes(content)
    ElasticSession(tmp_path)
    for text in ("", "[]", "{}", json.dumps({"files": {}, "layout": "x", "tasks": [], "inputs": []})):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(BundleError, match="holds no elastic model"):
            ElasticSession(tmp_path)
    with pytest.raises(BundleError, match="holds no elastic model"):
        ElasticSession(tmp_path / "nowhere")


def test_what_was_not_exported_or_does_not_fit_is_refused(dense: ElasticSource, session: ElasticSession) -> None:
    other = next(row for row in range(len(dense.table.rows)) if row not in dense.table.exported)
    with pytest.raises(ExportError, match="was not exported"):
        session.use(session.controller.choice(other, {"depth": 0, "edges": 0}))
    with pytest.raises(ExportError, match="takes 1 inputs"):
        session.run(BATCH.numpy(), BATCH.numpy())
    with pytest.raises(ExportError, match="does not run"):
        session.run(BATCH[:, :2].numpy())
    with pytest.raises(ExportError, match="unknown elastic layout"):
        write_elastic(dense, session.folder, "zip")


def test_the_shared_part_runs_where_no_task_does(session: ElasticSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes alone is what a latency table begins with."""
    ran, call = list[list[str]](), elastic_session._call

    def noted(graph: Any, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        ran.append(list(names))
        return call(graph, names, feed)

    monkeypatch.setattr(elastic_session, "_call", noted)
    row = session.controller.table.exported[-1]
    assert session.run(BATCH.numpy(), choice=session.controller.choice(row, {})) == {}
    assert len(ran) == 1
    assert ran[0], "ONNX Runtime was asked for something"


def test_latencies_are_sums_of_measured_parts(session: ElasticSession) -> None:
    table = session.controller.table
    found = measured_latencies(session, [BATCH[:1].numpy()], "cpu", limit_s=0.3)
    assert found.source == "measured"
    assert found.figures.shared.shape == (len(table.rows),)
    assert (found.figures.shared > 0).all()
    assert all((values >= 0).all() for values in found.figures.decoders.values())
    assert found.error_pct is not None
    assert found.original_ms == pytest.approx(
        found.figures.of(int(table.costs["flops"].shared.argmax()), {"depth": 1, "edges": 1})
    )


def test_all_of_a_model_that_is_called_by_task_is_its_full_width() -> None:
    """All of its FLOPs are those of tasks."""
    table = made(ByTask(), ("depth", "edges")).table
    row, chosen = table.full
    assert min(table.widths(table.configuration(row, chosen)).values()) == 1.0
