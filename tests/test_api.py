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


def test_what_was_pruned_is_pruned_further(pruned: sc.Compressed, bundle: sc.Bundle, tmp_path: Path) -> None:
    """From memory or from a bundle: limits and metrics refer to the original, and one cut of the user's class does it
    all."""
    further = sc.prune(pruned, "flops<=40%", "95%", settings=replace(SETTINGS, rounds=1))
    assert further.costs_before == pruned.costs_before
    assert further.metrics_before == pytest.approx(pruned.metrics_before)
    assert further.costs.flops <= 0.4 * pruned.costs_before.flops < pruned.costs.flops
    model = sc.load(further.save(tmp_path / "further")).model(TwoHeads)
    assert torch.equal(outputs(model), outputs(further.model))
    small = {name: tensor.shape for name, tensor in further.model.state_dict().items()}
    large = {name: tensor.shape for name, tensor in pruned.model.state_dict().items()}
    assert all(a <= b for name in small for a, b in zip(small[name], large[name], strict=True))
    with pytest.raises(WorkloadError, match="does not say where its workload is"):
        sc.prune(bundle, "flops<=40%")


def test_a_limit_that_the_start_meets_costs_nothing_more(pruned: sc.Compressed) -> None:
    again = sc.prune(pruned, "flops<=90%", "95%", settings=replace(SETTINGS, rounds=1))
    assert again.costs == pruned.costs
    assert torch.equal(outputs(again.model), outputs(pruned.model))


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


def of_metrics(pruned: sc.Compressed, drop: str, path: Path, *changes: dict[str, float]) -> sc.Bundle:
    """The same run as if its points had changed the metrics (lower is better) by these factors."""
    points = [
        replace(point, metrics={task: pruned.metrics_before[task] * factor for task, factor in factors.items()})
        for point, factors in zip(pruned.points, changes, strict=True)
    ]
    return replace(pruned, points=points, tolerance=sc.Tolerance.parse(drop)).save(path)


def test_select_keeps_to_what_the_run_allowed_to_lose(pruned: sc.Compressed, tmp_path: Path) -> None:
    """The second point has the better Δ_MTL, but `kind` loses 10 % there."""
    changes = ({"depth": 0.99, "kind": 1.01}, {"depth": 0.5, "kind": 1.1})
    strict = sc.select(of_metrics(pruned, "2%", tmp_path / "strict", *changes), "flops<=99%")
    assert (strict.point, strict.misses, strict.error) == (0, (), None)
    assert sc.select(of_metrics(pruned, "20%", tmp_path / "lax", *changes), "flops<=99%").point == 1


def test_select_says_what_is_lost_beyond_what_the_run_allowed(pruned: sc.Compressed, tmp_path: Path) -> None:
    bundle = of_metrics(pruned, "2%", tmp_path / "run", {"depth": 1, "kind": 1.2}, {"depth": 1, "kind": 1.1})
    with pytest.warns(UserWarning, match="weights only"):
        chosen = sc.select(bundle, "flops<=99%", output=tmp_path / "chosen")
    assert chosen.misses == ("kind: -10.00% where a drop of 2% is allowed",)
    assert chosen.error is not None
    assert chosen.error.exit_code == 3
    assert (chosen.bundle.manifest.budget_met, chosen.bundle.manifest.misses) == (False, list(chosen.misses))


def test_a_latency_of_another_measurement_is_not_taken_along(pruned: sc.Compressed, tmp_path: Path) -> None:
    points = [replace(point, latency_ms={"cpu": 1e6}) for point in pruned.points]
    bundle = replace(pruned, points=points).save(tmp_path / "run")
    written = sc.select(bundle, "flops<=60%", output=tmp_path / "chosen", workload=pair()).bundle
    assert all(point.latency_ms.get("cpu", 0) < 1e6 for point in written.manifest.points)


def test_what_select_cannot_do_is_refused(bundle: sc.Bundle) -> None:
    with pytest.raises(BudgetError, match="fine-tuned as it is written"):
        sc.select(bundle, "flops<=60%", epochs=2)


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
