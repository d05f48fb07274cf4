"""Features of student and teacher: found where all tasks share them, compared through maps that start solved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.compress.dataflow import trace
from secateur.compress.recording import recording
from secateur.compress.training.distill import Adapters, shared_points
from secateur.core.task import Workload


def test_points_are_the_last_shared_module_of_each_resolution(squares: Workload) -> None:
    inputs = squares.calibration[0][0]
    points = shared_points(squares.model, squares.model, inputs, squares.tasks)
    assert points == ("block", "deep")  # the heads belong to one task each, the stem ends before the block


def test_looking_for_points_leaves_the_model_as_it_was(squares: Workload) -> None:
    squares.model.train()
    squares.model.stem[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in squares.model.state_dict().items()}
    shared_points(squares.model, squares.model, squares.calibration[0][0], squares.tasks)
    assert squares.model.training
    assert [not p.requires_grad for p in squares.model.parameters()].count(True) == 1
    assert all(p.grad is None for p in squares.model.parameters())
    assert not any(module._forward_hooks for module in squares.model.modules())
    for name, tensor in squares.model.state_dict().items():
        assert torch.equal(tensor, before[name])


class ByTask(nn.Module):
    """Called once per task; what only one of the calls runs is not shared."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 3)
        self.extra = nn.Conv2d(8, 32, 1)
        self.heads = nn.ModuleDict({"quadrant": nn.Conv2d(32, 4, 1), "brightness": nn.Conv2d(8, 1, 1)})

    def forward(self, x: Tensor, task: str) -> Tensor:
        x = self.trunk(x)
        return self.heads[task](self.extra(x) if task == "quadrant" else x)


def test_a_model_called_task_by_task_shares_its_trunk(squares: Workload) -> None:
    model = ByTask()
    assert shared_points(model, model, torch.randn(2, 3, 8, 8), squares.tasks) == ("trunk",)


def test_adapters_start_as_the_least_squares_fit_of_what_was_cut() -> None:
    """A student that holds half of the teacher's channels, which the other half depend on linearly, loses nothing;
    with as many random channels of its own it does."""
    torch.manual_seed(0)
    half = torch.randn(4, 6, 5, 5)
    whole = torch.cat([half, torch.einsum("ij,njhw->nihw", torch.randn(6, 6), half)], 1)
    other = torch.randn(4, 6, 5, 5)
    with torch.no_grad():
        assert float(Adapters([half], [whole])([half], [whole])) < 1e-4
        assert float(Adapters([other], [whole])([other], [whole])) > 0.5


def test_equal_shapes_need_no_adapter() -> None:
    one, other = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    adapters = Adapters([one], [other])
    assert not list(adapters.parameters())
    expected = (one - other).square().mean() / other.var(correction=0)
    assert float(adapters([one], [other])) == pytest.approx(float(expected))


def test_sequences_are_adapted_along_their_channels() -> None:
    whole = torch.randn(2, 7, 6)
    adapters = Adapters([whole[..., :4]], [whole])
    assert adapters.maps[0].shape == (4, 6)
    assert adapters([whole[..., :4]], [whole]).shape == ()


def test_a_cut_student_meets_its_teacher_at_the_same_points(squares: Workload) -> None:
    inputs = squares.calibration[0][0]
    small = trace(squares.model, inputs).cut({"deep.0": range(9)})
    points = shared_points(small, squares.model, inputs, squares.tasks)
    assert points == ("block", "deep")
    with recording(small, points) as seen:
        small(inputs)
    assert [(path, output.shape[1]) for path, output in seen] == [("block", 12), ("deep", 9)]
