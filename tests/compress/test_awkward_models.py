"""Models that need care: handled, or refused by one clear line; the user's model stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from traces import assert_identical, assert_same, masked_outputs, outputs, random_keep, trace_quietly

from secateur.compress.dataflow import trace
from secateur.core.errors import ModelError


def small(**options: object) -> nn.Sequential:
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
        )
        .to(**options)
        .eval()
    )  # type: ignore[call-overload]


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 6, 6).to(dtype)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 2, 1))


def quantised() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.Linear(8, 2))
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if float(x.sum()) > 0 else x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.DataParallel(small()), "wrapped in DataParallel"),
        (lazy, "not initialised yet"),
        (lambda: small(device="meta"), "meta device"),
        pytest.param(quantised, "quantised layer", marks=pytest.mark.filterwarnings("ignore")),
        (Branching, "torch.export cannot trace the model"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ModelError, match=message) as found:
        trace(make(), inputs())
    assert found.value.hint
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_cut_as_they_are(dtype: torch.dtype) -> None:
    model = small(dtype=dtype)
    groups = trace_quietly(model, inputs(dtype))
    assert len(groups.prunable) == 2
    cut = groups.cut({"0": [0, 3, 4]})
    assert cut[0].weight.dtype == dtype


def test_a_complex_model_is_cut() -> None:
    model = nn.Sequential(nn.Linear(5, 8, dtype=torch.cfloat), nn.Linear(8, 2, dtype=torch.cfloat))
    x = torch.randn(3, 5, dtype=torch.cfloat)
    groups = trace_quietly(model.eval(), x)
    assert [group.name for group in groups.prunable] == ["0"]
    keep = {"0": [1, 5, 6]}
    torch.testing.assert_close(groups.cut(keep)(x), groups.mask(keep)(x)[""])


def test_frozen_parameters_stay_frozen() -> None:
    model = small()
    model[0].weight.requires_grad_(False)
    cut = trace_quietly(model, inputs()).cut({"0": [0, 1]})
    assert not cut[0].weight.requires_grad
    assert cut[0].bias.requires_grad


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.third(self.second(torch.relu(self.first(x))))

    model, x = Tied().eval(), torch.randn(3, 6)
    groups = trace_quietly(model, x)
    keep = random_keep(groups.prunable, 0)
    cut = groups.cut(keep)
    assert cut.second.weight is cut.first.weight
    assert_same(outputs(cut, x), masked_outputs(groups, keep, x))


def test_hooks_run_and_stay() -> None:
    model, seen = small(), []
    model[0].register_forward_hook(lambda module, args, out: out * 2)
    model[3].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    groups = trace_quietly(model, inputs())
    keep = random_keep(groups.prunable, 1)
    x = inputs()
    assert_same(outputs(groups.cut(keep), x), masked_outputs(groups, keep, x))
    assert seen[-1] == len(keep["0"])


def test_a_parametrised_weight_is_cut_or_refused_but_never_wrong() -> None:
    model, x = small(), inputs()
    torch.nn.utils.parametrizations.weight_norm(model[3])
    groups = trace_quietly(model, x)
    keep = random_keep(groups.prunable, 2)
    assert_same(outputs(groups.cut(keep), x), masked_outputs(groups, keep, x))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_a_weight_that_autograd_computed_is_refused_with_what_to_take_instead() -> None:
    model = small()
    torch.nn.utils.weight_norm(model[3])
    with pytest.raises(ModelError, match=r'"3\.weight" was computed from other tensors') as caught:
        trace(model, inputs())
    assert "torch.nn.utils.parametrizations" in caught.value.hint


def test_writing_in_place_over_an_alias_is_followed() -> None:
    class Aliasing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            same = x.view_as(x)
            same.mul_(2).relu_()
            return self.b(x)

    x = inputs()
    groups = trace_quietly(Aliasing().eval(), x)
    keep = random_keep(groups.prunable, 3)
    assert groups.prunable
    assert_same(outputs(groups.cut(keep), x), masked_outputs(groups, keep, x))


def test_tracing_changes_nothing_of_the_model() -> None:
    model = small().train()
    before, state = copy.deepcopy(model.state_dict()), {path: dict(vars(m)) for path, m in model.named_modules()}
    trace_quietly(model, inputs())
    assert_identical(model.state_dict(), before)
    for path, module in model.named_modules():
        assert vars(module).keys() == state[path].keys()
        assert module.training
        assert not module._forward_hooks


class Remembers(nn.Module):
    """Biases for each pair of tokens, made once in evaluation and kept until training begins (LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.q, self.proj = 3, nn.Linear(4, 12), nn.Linear(12, 2)
        self.biases, self.kept = nn.Parameter(torch.randn(3, 1, 5)), list[Tensor]()

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            self.kept = []
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        heads = self.q(x).view(b, n, self.heads, -1).transpose(1, 2)
        if not self.training and not self.kept:
            self.kept = [self.biases * 2]
        weights = (heads @ heads.transpose(2, 3) + (self.biases * 2 if self.training else self.kept[0])).softmax(-1)
        return self.proj((weights @ heads).transpose(1, 2).reshape(b, n, -1))


def test_what_a_model_keeps_from_evaluation_is_made_anew() -> None:
    torch.manual_seed(0)
    model, x = Remembers().eval(), torch.randn(2, 5, 4)
    before = model(x)
    groups = trace_quietly(model, x)
    assert torch.equal(model(x), before)
    assert [group.channels for group in groups.prunable if any(m.parameter == "biases" for m in group.members)] == [3]
    keep = random_keep(groups.prunable, 1)
    assert_same(outputs(groups.cut(keep), x), masked_outputs(groups, keep, x))
