"""What a batch's input stands for: a tensor, a tuple, a dict of arguments, or a dict that is one argument."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.compress.dataflow import trace
from secateur.compress.pagcp.calibration import calibration_batches, chunked
from secateur.core.device import moved
from secateur.core.errors import DataError
from secateur.core.inputs import arguments, call_model, filled, mapped, names_of, samples, tensors
from secateur.core.predict import check
from secateur.export.onnx import to_onnx
from secateur.export.onnx_session import OnnxModel
from secateur.export.parity import check_parity

IMAGE, TABLE = torch.randn(2, 3, 8, 8), torch.randn(2, 5)


class Net(nn.Module):
    """A picture and a table, two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table = nn.Conv2d(3, 12, 3), nn.Linear(5, 10)
        self.heads = nn.ModuleDict({"depth": nn.Linear(22, 1), "edges": nn.Linear(22, 2)})

    def predictions(self, pixels: Tensor, table: Tensor) -> dict[str, Tensor]:
        found = torch.cat([self.image(pixels).relu().mean((2, 3)), self.table(table).relu()], 1)
        return {name: head(found) for name, head in self.heads.items()}


class ByName(Net):
    """Takes its inputs by name, as models of the transformers library do."""

    def forward(self, pixels: Tensor, table: Tensor | None = None) -> dict[str, Tensor]:
        assert table is not None
        return self.predictions(pixels, table)


class OneBatch(Net):
    """Takes one dict."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.predictions(batch["pixels"], batch["table"])


class OneTask(Net):
    """Takes its inputs by name, and a task."""

    def forward(self, pixels: Tensor, table: Tensor, task: str) -> Tensor:
        return self.predictions(pixels, table)[task]


def filled_otherwise(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same dict, filled in another order."""
    return {key: inputs[key] for key in reversed(inputs)}


def workload(model: nn.Module, example: Any = None) -> sc.Workload:
    given = {"pixels": IMAGE, "table": TABLE}
    targets = {"depth": torch.randn(2, 1), "edges": torch.randn(2, 2)}
    tasks = [sc.Task(name, nn.functional.mse_loss, MeanError(), "lower") for name in targets]
    batches = [(filled_otherwise(given), targets)]
    return sc.Workload("named", model, given if example is None else example, tuple(tasks), batches, batches, batches)


class MeanError:
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def update(self, prediction: Tensor, target: Tensor, /) -> None:
        self.seen.append((prediction - target).abs().mean())

    def compute(self) -> Tensor:
        return torch.stack(self.seen).mean()


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def test_a_dict_is_arguments_by_name_where_the_model_takes_such() -> None:
    given = {"table": TABLE, "pixels": IMAGE}
    assert arguments(ByName(), given) == ((), given)
    assert arguments(OneTask(), given) == ((), given)
    assert arguments(OneBatch(), given) == ((given,), {})
    assert arguments(ByName(), {"pixels": IMAGE, "unknown": TABLE})[1] == {}, "no argument is called so"
    assert arguments(ByName(), UserDict(given)) == ((), given), "as tokenizers of transformers give it"


@pytest.mark.parametrize("make", [ByName, OneBatch])
def test_both_ways_compute_the_same(make: Callable[[], nn.Module]) -> None:
    model, other = make(), ByName()
    other.load_state_dict(model.state_dict())
    found = call_model(model, {"pixels": IMAGE, "table": TABLE})
    assert torch.equal(found["depth"], other(IMAGE, TABLE)["depth"])


def test_tensors_are_in_the_same_order_however_a_dict_was_filled() -> None:
    given = {"b": IMAGE, "a": (TABLE, None, 3), "c": {"z": IMAGE, "y": TABLE}}
    other = OrderedDict(filled_otherwise(given))
    assert [id(each) for each in tensors(given)] == [id(each) for each in tensors(other)]
    assert [tuple(each.shape) for each in tensors(given)] == [(2, 5), (2, 3, 8, 8), (2, 5), (2, 3, 8, 8)]
    fresh = [torch.zeros(1), torch.ones(1), torch.zeros(2), torch.ones(2)]
    again = filled(given, fresh)
    assert tensors(again) == fresh
    assert list(again) == ["b", "a", "c"]
    assert again["a"][1:] == (None, 3)


def test_a_mapping_that_torch_does_not_know_goes_along() -> None:
    batch = (UserDict({"pixels": IMAGE, "table": TABLE}), {"depth": torch.zeros(2, 1)})
    chunks = chunked(calibration_batches([batch, batch], None), 2)
    assert [chunk[0].keys() for chunk in chunks] == [{"pixels", "table"}] * 2
    assert all(len(chunk[0]["pixels"]) == 2 for chunk in chunks), "samples of both batches, in chunks"
    assert moved(batch, "meta")[0]["pixels"].is_meta


def test_a_named_tuple_keeps_its_class() -> None:
    found = mapped(lambda each: each + 1, Pair(torch.zeros(2), torch.ones(2)))
    assert isinstance(found, Pair)
    assert torch.equal(found.right, torch.full((2,), 2.0))


def test_samples_repeat_a_batch_and_leave_what_carries_none() -> None:
    found = samples({"x": IMAGE, "table": torch.arange(7), "scale": 2, "y": TABLE}, 3)
    assert torch.equal(found["x"], IMAGE[[0, 1, 0]])
    assert torch.equal(found["table"], torch.arange(7))
    assert found["scale"] == 2
    assert torch.equal(samples((IMAGE, torch.tensor(1.0)), 1)[0], IMAGE[:1])


def test_inputs_of_files_are_named_by_place_or_key() -> None:
    assert names_of(IMAGE) == names_of((IMAGE,)) == ["input"]
    assert names_of((IMAGE, 3, TABLE)) == ["input_1", "input_3"]
    assert names_of({"pixels": IMAGE}) == ["pixels"]
    assert names_of(({"b": IMAGE, "a": TABLE}, IMAGE)) == ["input_1_a", "input_1_b", "input_2"]


@pytest.mark.parametrize("make", [ByName, OneBatch, OneTask])
def test_cut_and_masked_agree_whatever_the_order(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    groups = trace(model, {"pixels": IMAGE, "table": TABLE}, ("depth", "edges"))
    keep = {group.name: range(3) for group in groups.prunable}
    assert {groups[name].channels for name in keep} == {12, 10}
    other = {"table": torch.randn(2, 5), "pixels": torch.randn(2, 3, 8, 8)}
    small, task = groups.cut(keep), "depth" if make is OneTask else None
    found, wanted = call_model(small, other, task), groups.mask(keep)(other)
    torch.testing.assert_close(found if task else found["depth"], next(iter(wanted.values())))


@pytest.mark.parametrize("make", [ByName, OneBatch, OneTask])
def test_files_take_the_names_and_compute_the_same(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    made = workload(make().eval(), {"table": TABLE, "pixels": IMAGE})
    check(made)
    file = OnnxModel(to_onnx(made.model, made, tmp_path / "model.onnx"))
    assert file.inputs == ["pixels", "table"]
    assert check_parity(made.model, file.predict, made).max_abs < 1e-5


def test_a_loader_that_yields_other_inputs_than_the_example() -> None:
    made = workload(ByName(), {"pixels": IMAGE})
    with pytest.raises(DataError, match="yields a dict of table, pixels, the example input is a dict of pixels"):
        check(made)
    made = workload(ByName(), {"pixels": IMAGE, "table": torch.randn(2, 6)})
    with pytest.raises(DataError, match=r"shape \[5\] a sample, the example input has \[6\]"):
        check(made)
