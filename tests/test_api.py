"""The verbs in Python: what a user's ten lines rely on."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import secateur as sc
from secateur.compress.pagcp import Settings
from secateur.core.errors import BudgetError, OutputError, WorkloadError

sys.path.append(str(Path(__file__).parent / "cli"))
from toys import TwoHeads, pair

SETTINGS = Settings(rounds=2, epochs=0)


@pytest.fixture(scope="module")
def pruned() -> sc.Compressed:
    return sc.prune(pair(), "flops<=60%", {"*": "90%", "depth": "95%"}, settings=SETTINGS)


@pytest.fixture(scope="module")
def bundle(pruned: sc.Compressed, tmp_path_factory: pytest.TempPathFactory) -> sc.Bundle:
    return pruned.save(tmp_path_factory.mktemp("runs") / "pair")


def outputs(model: torch.nn.Module) -> torch.Tensor:
    x = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    with torch.no_grad():
        return torch.cat([value.flatten() for value in model(x).values()])


def test_prune_leaves_the_users_model_alone() -> None:
    workload = pair()
    before = {name: tensor.clone() for name, tensor in workload.model.state_dict().items()}
    result = sc.prune(workload, "flops<=70%", "90%", settings=SETTINGS)
    assert result.costs.flops <= 0.7 * result.costs_before.flops
    assert all(torch.equal(tensor, before[name]) for name, tensor in workload.model.state_dict().items())


def test_prune_in_place_makes_the_users_model_the_result() -> None:
    workload = pair()
    model, whole = workload.model, outputs(workload.model)
    result = sc.prune(workload, "flops<=70%", "90%", settings=SETTINGS, inplace=True)
    assert model is workload.model
    assert sum(parameter.numel() for parameter in model.parameters()) == result.costs.params
    assert torch.equal(outputs(model), outputs(result.model))
    assert torch.equal(outputs(result.workload.model), whole)


def test_a_state_folder_goes_when_the_run_is_done(tmp_path: Path) -> None:
    sc.prune(pair(), "flops<=90%", "90%", settings=replace(SETTINGS, rounds=1), state=tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_load_gives_the_users_class_with_the_same_outputs(pruned: sc.Compressed, bundle: sc.Bundle) -> None:
    loaded = sc.load(bundle.path)
    assert type(loaded.model(TwoHeads)) is TwoHeads
    assert torch.equal(outputs(loaded.model(TwoHeads)), outputs(pruned.model))
    assert torch.equal(outputs(loaded.model(TwoHeads, point=0)), outputs(pruned.points[0].model))
    assert loaded.manifest.metrics_before.keys() == {"depth", "kind"}


def test_a_bundle_without_a_reference_asks_for_its_workload(bundle: sc.Bundle) -> None:
    with pytest.raises(WorkloadError, match="does not say where its workload is"):
        sc.load(bundle).model()
    found = sc.verify(bundle)
    assert found.skipped is not None
    assert found.files == len(bundle.manifest.files) + 1


def test_select_prefers_the_tasks_that_matter(bundle: sc.Bundle) -> None:
    manifest = bundle.manifest
    assert sc.select(bundle, ["flops<=60%"]).point == 1
    assert sc.select(bundle, "flops<=99%").delta_mtl == max(point.delta_mtl for point in manifest.points)
    depth_only = sc.select(bundle, "flops<=99%", prefer={"depth": 1, "kind": 0})
    changes = [point.metrics["depth"] / manifest.metrics_before["depth"] - 1 for point in manifest.points]
    assert depth_only.delta_mtl == pytest.approx(-100 * min(changes))  # a lower depth error is better


def test_select_measures_a_latency_that_is_not_known(bundle: sc.Bundle) -> None:
    selection = sc.select(bundle, "latency<=10s", workload=pair())
    assert selection.measured
    assert selection.latency_ms is not None
    assert selection.latency_ms > 0


def test_benchmark_of_a_bundle_against_its_original(bundle: sc.Bundle) -> None:
    found = sc.benchmark(bundle, ["cpu", "fpga:edge-moe"], workload=pair())
    cpu, other = found.profiles
    assert found.against == "original"
    assert cpu.source == "measured"
    assert cpu.speedup_against is not None
    assert found.profiles_against[0].flops == bundle.manifest.before.flops
    assert other.source == "unavailable"
    assert other.how


def test_compress_to_bundle_is_complete(tmp_path: Path) -> None:
    settings = replace(SETTINGS, rounds=1)
    made = sc.compress_to_bundle(pair(), tmp_path / "out", "flops<=70%", "90%", settings=settings)
    assert made.verify() == []
    assert {"benchmark.json", "report.html", "artefacts/model.onnx"} <= made.manifest.files.keys()
    assert all(point.latency_ms.keys() == {"cpu"} for point in made.manifest.points)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OutputError, match="already holds a bundle"):
        sc.compress_to_bundle(pair(), tmp_path / "out", "flops<=70%", settings=settings)


def test_a_mistake_is_found_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="has no unit"):
        sc.compress_to_bundle(pair(), tmp_path / "out", "flops<=40")
    assert list(tmp_path.iterdir()) == []
