"""Calling a user's model: the shapes its output may take, and every mistake found on the first batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from toy_metrics import AbsoluteError

from secateur.core.errors import DataError, ModelError
from secateur.core.inputs import batch_size, takes_task
from secateur.core.predict import check, evaluate, losses, predict
from secateur.core.task import Task, Workload

TASKS = ("depth", "edges")
BATCH = (torch.randn(4, 3, 8, 8), {"depth": torch.randn(4, 1, 8, 8), "edges": torch.randn(4, 1, 8, 8), "extra": 0})


class TwoHeads(nn.Module):
    """`shape` says how the predictions are returned."""

    def __init__(self, shape: Callable[[dict[str, Any]], Any] = lambda output: output) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.heads = nn.ModuleDict({name: nn.Conv2d(4, 1, 1) for name in TASKS})
        self.shape = shape

    def forward(self, x: torch.Tensor) -> Any:
        features = self.trunk(x)
        return self.shape({name: head(features) for name, head in self.heads.items()})


class Pair(NamedTuple):
    depth: torch.Tensor
    edges: torch.Tensor


class OneAtATime(TwoHeads):
    def forward(self, x: torch.Tensor, task: str) -> Any:  # type: ignore[override]
        return self.heads[task](self.trunk(x))


class TwoInputs(TwoHeads):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:  # type: ignore[override]
        return super().forward(x + y)


def tasks() -> tuple[Task, ...]:
    return tuple(Task(name, nn.functional.mse_loss, AbsoluteError(), "lower") for name in TASKS)


def workload(model: nn.Module | None = None, **changes: Any) -> Workload:
    plain = Workload("mine", model or TwoHeads(), torch.zeros(1, 3, 8, 8), tasks(), [BATCH], [BATCH], [BATCH])
    return replace(plain, **changes)


@pytest.mark.parametrize(
    "shape",
    [
        lambda output: output,
        lambda output: {**output, "auxiliary": [1], "features": None},
        lambda output: {"initial": dict.fromkeys(TASKS), **output},
        lambda output: {"tasks": {"dense": output}, "loss": 0},
        lambda output: {"first": {"depth": output["depth"]}, "second": {"edges": output["edges"]}},
        lambda output: Pair(**output),
        lambda output: {"tasks": Pair(**output), "loss": 0},
    ],
    ids=["plain", "extra outputs", "the nearest to the top wins", "nested twice", "apart", "named tuple", "nested one"],
)
def test_predictions_are_found_wherever_the_model_puts_them(shape: Callable[[dict[str, Any]], Any]) -> None:
    model = TwoHeads(shape).eval()
    features = model.trunk(BATCH[0])
    predictions = predict(model, BATCH[0], tasks())
    assert list(predictions) == list(TASKS)
    for name in TASKS:
        assert torch.equal(predictions[name], model.heads[name](features))


def test_a_model_called_one_task_at_a_time_predicts_the_same() -> None:
    whole, single = TwoHeads().eval(), OneAtATime().eval()
    single.load_state_dict(whole.state_dict())
    assert takes_task(single)
    assert not takes_task(whole)
    for name, prediction in predict(single, BATCH[0], tasks()).items():
        assert torch.equal(prediction, whole(BATCH[0])[name])


def test_a_tuple_is_a_model_s_positional_inputs() -> None:
    model, x = TwoInputs().eval(), BATCH[0]
    assert torch.equal(predict(model, (x, x), tasks())["depth"], predict(model, [x, x], tasks())["depth"])
    assert batch_size((x, x)) == batch_size(x) == 4
    with pytest.raises(DataError, match="the model's input is str"):
        batch_size("image")


def test_losses_are_each_task_s_own() -> None:
    model = TwoHeads().eval()
    values = losses(model, BATCH, iter(tasks()))
    assert values["depth"] == nn.functional.mse_loss(model(BATCH[0])["depth"], BATCH[1]["depth"])
    assert values["edges"].requires_grad


def test_a_metric_accumulates_over_batches_of_unequal_size_and_starts_afresh() -> None:
    model, mine = TwoHeads(), tasks()
    parts = [(BATCH[0][s], {name: BATCH[1][name][s] for name in TASKS}) for s in (slice(0, 3), slice(3, 4))]
    whole = evaluate(model, [BATCH], mine)
    assert evaluate(model, parts, mine) == pytest.approx(whole)
    assert evaluate(model, [BATCH], mine) == whole


@pytest.mark.parametrize("call", [lambda work: evaluate(work.model, work.test, work.tasks), check])
def test_the_mode_of_every_module_and_the_weights_stay_as_they_were(call: Callable[[Workload], object]) -> None:
    work = workload()
    work.model.train()
    work.model.trunk[1].eval()  # a frozen normalisation
    modes = [module.training for module in work.model.modules()]
    state = {name: tensor.clone() for name, tensor in work.model.state_dict().items()}
    call(work)
    assert [module.training for module in work.model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in work.model.state_dict().items())
    assert torch.is_grad_enabled()


def test_the_mode_is_restored_when_the_model_fails() -> None:
    work = workload(TwoHeads(lambda _: [][0]))
    work.model.train()
    with pytest.raises(DataError):
        check(work)
    assert all(module.training for module in work.model.modules())


def test_an_evaluation_without_a_batch_or_without_a_number_is_refused() -> None:
    with pytest.raises(DataError, match="no batch"):
        evaluate(TwoHeads(), [], tasks())
    nowhere = (BATCH[0], {**BATCH[1], "edges": torch.full((4, 1, 8, 8), float("nan"))})
    with pytest.raises(DataError, match='the metric of "edges" is nan'):
        evaluate(TwoHeads(), [nowhere], tasks())


def test_a_sound_workload_passes() -> None:
    check(workload())
    check(workload(OneAtATime()))
    check(workload(TwoHeads(lambda output: {"deep": {"nested": output}})))


def with_nan() -> nn.Module:
    model = TwoHeads()
    model.trunk[0].weight.data[0, 0, 0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        (with_nan(), '"trunk.0.weight" of the model holds NaN', "sound checkpoint"),
        (TwoHeads(lambda output: {"depth": output["depth"]}), 'no prediction for task "edges"', "it has: depth"),
        (TwoHeads(lambda output: list(output.values())), "the model returns list", "return {task: prediction}"),
    ],
)
def test_a_model_that_does_not_fit(model: nn.Module, message: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        check(workload(model))
    assert message in caught.value.message
    assert hint in caught.value.hint


class Broken:
    def __iter__(self) -> Iterator[Any]:
        raise OSError("no such image")


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("split", ["train", "calibration", "test"])
@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "loader yields nothing"),
        ([BATCH[0]], r"loader yields a tensor of shape \[4, 3, 8, 8\]"),
        ([(BATCH[0], BATCH[1], 0)], "loader yields a tuple of 3"),
        ([(BATCH[0], BATCH[0])], "loader yields a tuple of 2"),
        ([(BATCH[0], {"depth": BATCH[1]["depth"]})], 'targets have no "edges"'),
        ([(BATCH[0][:, :, :4], BATCH[1])], r"inputs of shape \[3, 4, 8\] a sample, the example input has \[3, 8, 8\]"),
        ([(BATCH[0][0], BATCH[1])], r"inputs of shape \[8, 8\] a sample"),
        ([(BATCH[0], {**BATCH[1], "edges": torch.zeros(4, 2, 5, 5)})], "fails on the first .* batch: RuntimeError"),
        ([(None, BATCH[1])], "loader yields NoneType, the example input is a tensor"),
        (iter([BATCH]), "can be read only once"),
        (Broken(), "loader fails: OSError: no such image"),
        (3, "loader fails: TypeError"),
    ],
)
def test_a_loader_that_does_not_fit(split: str, loader: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check(workload(**{split: loader}))
    assert split in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p, t: (p - t).sum() / 0, "is (nan|-?inf)"),
        (lambda p, t: (p - t).abs(), r"is a tensor of shape \[4, 1, 8, 8\]"),
        (lambda p, t: 0.5, "is float"),
        (lambda p, t: p["a", "b"], "fails on the first train batch: (Type|Index)Error"),
    ],
)
def test_a_loss_that_is_not_one_finite_number(loss: Any, message: str) -> None:
    mine = Task("depth", loss, AbsoluteError(), "lower")
    with pytest.raises(DataError, match=message):
        check(workload(tasks=(mine,)))


def test_a_metric_that_fails_is_found_before_any_long_work() -> None:
    class Unusable(AbsoluteError):
        def compute(self) -> float:
            raise ValueError("no samples of class 3")

    mine = Task("depth", nn.functional.mse_loss, Unusable(), "lower")
    with pytest.raises(DataError, match="ValueError: no samples of class 3"):
        check(workload(tasks=(mine,)))
