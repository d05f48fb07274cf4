"""Tasks, workloads and Δ_MTL, checked against figures derived by hand; errors and costs as users see them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.core.costs import Costs, Latency, Profile
from secateur.core.errors import BudgetError, MissingExtraError, SecateurError, WorkloadError
from secateur.core.machine import describe, versions
from secateur.core.seeds import seed_everything
from secateur.core.task import Task, Workload, delta_mtl, preference, relative_change


@pytest.mark.parametrize("prefer", [{"a": -1}, {"a": float("nan")}, {"a": float("inf")}, {"a": "2"}, {"a": 0, "b": 0}])
def test_weights_that_make_no_mean_are_refused(prefer: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match="weight"):
        preference(prefer, ["a", "b"])


def test_weights_that_are_not_given_are_1() -> None:
    assert preference({"a": 2, "c": 5}, ["a", "b"]) == {"a": 2.0, "b": 1.0}


@pytest.mark.parametrize(
    ("better", "after", "change"), [("higher", 0.3, -0.25), ("lower", 0.3, 0.25), ("lower", 0.5, -0.25)]
)
def test_a_change_for_the_better_is_positive(better: str, after: float, change: float) -> None:
    assert relative_change(better, 0.4, after) == pytest.approx(change)
    assert relative_change(better, -0.4, after - 0.8) == pytest.approx(change), "of negative metrics as well"
    assert abs(relative_change(better, 0.0, after)) > 1e9, "nothing is divided by zero"


class Never:
    def update(self, prediction: Any, target: Any) -> None: ...
    def compute(self) -> float:
        return 0.0


def task(name: str, better: Any = "higher") -> Task:
    return Task(name, nn.functional.mse_loss, Never(), better)


def workload(*tasks: Task) -> Workload:
    return Workload("mine", nn.Identity(), torch.zeros(1, 2), tasks, [], [], [])


def test_delta_mtl_is_the_mean_signed_relative_change() -> None:
    tasks = [task("segmentation"), task("depth", "lower")]
    before, after = {"segmentation": 0.80, "depth": 0.50}, {"segmentation": 0.76, "depth": 0.45}
    assert delta_mtl(tasks, before, after) == pytest.approx((-5.0 + 10.0) / 2)
    assert delta_mtl(tasks, before, before) == 0.0


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_better_is_positive_whichever_way_the_metric_runs(before: float, after: float) -> None:
    higher, lower = task("a"), task("a", "lower")
    assert higher.relative_change(before, after) == -lower.relative_change(before, after)
    assert (higher.relative_change(before, after) > 0) == (after > before)


def test_a_task_says_which_way_its_metric_runs() -> None:
    with pytest.raises(WorkloadError, match='better is "up"'):
        task("depth", "up")


@pytest.mark.parametrize(("metric", "is_a"), [(nn.functional.l1_loss, "a function"), (Never, "the class Never")])
def test_a_metric_that_cannot_accumulate_is_refused_at_once(metric: Any, is_a: str) -> None:
    with pytest.raises(WorkloadError, match=f"the metric is {is_a}"):
        Task("depth", nn.functional.mse_loss, metric, "lower")


def test_a_workload_has_distinct_tasks() -> None:
    with pytest.raises(WorkloadError, match="has no tasks"):
        workload()
    with pytest.raises(WorkloadError, match="names a task twice"):
        workload(task("a"), task("a"))


def test_tasks_are_selected_by_name_in_the_order_of_the_workload() -> None:
    chosen = workload(task("a"), task("b"), task("c")).select_tasks(["c", "a"])
    assert chosen.task_names == ("a", "c")
    with pytest.raises(BudgetError, match='no task "d"') as caught:
        workload(task("a"), task("b")).select_tasks(["d"])
    assert "a, b" in caught.value.hint


def test_costs_count_two_flops_for_a_mac() -> None:
    costs = Costs(flops=10, params=3, peak_memory_bytes=40, size_bytes=12)
    assert costs.as_json() == {"flops": 10, "macs": 5, "params": 3, "peak_memory_bytes": 40, "size_bytes": 12}


def test_a_profile_shows_null_for_what_does_not_apply() -> None:
    document = Profile("cpu", "onnxruntime", "measured", Latency(2.0, 1.5, 2.5, 100)).as_json()
    assert document["latency_ms"] == {"median": 2.0, "p10": 1.5, "p90": 2.5}
    assert document["source"] == "measured"
    assert document["parity"] is None
    assert Profile("gpu", "tensorrt", "unavailable", reason="no GPU").as_json()["latency_ms"] is None


def test_every_error_has_its_own_kind_and_a_documented_exit_code() -> None:
    mistakes = [error for error in SecateurError.__subclasses__() if error.__module__ == SecateurError.__module__]
    assert len({error.kind for error in mistakes}) == len(mistakes)
    assert {error.exit_code for error in mistakes} == {2, 3, 4, 130}
    assert MissingExtraError("tvm", "tvm").as_json() == {
        "error": {
            "kind": "missing_extra",
            "message": "tvm is not installed",
            "hint": 'install it with: pip install "secateur[tvm]"',
        }
    }


def test_a_step_of_a_run_draws_the_same_whether_the_run_was_resumed_or_not() -> None:
    def draw(step: int) -> torch.Tensor:
        seed_everything(7, step)
        return torch.rand(4)

    first, second = draw(1), draw(2)
    assert torch.equal(draw(2), second)
    assert not torch.equal(first, second)


def test_the_machine_and_the_versions_of_a_figure() -> None:
    assert int(describe()["cores"]) >= 1
    assert describe()["cpu"]
    assert torch.__version__.startswith(versions()["torch"])  # which may name the build besides: 2.13.0+cpu
    assert versions()["secateur"] == secateur.__version__


def test_public_names_load_when_they_are_used() -> None:
    assert secateur.Task is Task
    with pytest.raises(AttributeError, match="has no attribute 'prunes'"):
        secateur.prunes  # noqa: B018
