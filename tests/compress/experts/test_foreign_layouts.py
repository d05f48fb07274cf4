"""Other people's mixtures: lists of experts and stacked 3-D parameters, traced through twins and cut in their own code.

The models are small language models on token sequences: nothing of the extraction is tied to vision.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.compress.channel_map import ChannelMap
from secateur.compress.compressed import load_model
from secateur.compress.experts import Layout, Settings, extract, find, layers, register
from secateur.compress.experts.cutting import expert_map
from secateur.compress.experts.twin import twinned
from secateur.core.budget import Budget, Tolerance
from secateur.core.errors import BudgetError, ModelError
from secateur.core.task import Batch, Task, Workload
from secateur.verbs.extract import extract_to_bundle
from secateur.workloads.metrics import Accuracy

WIDTH, HIDDEN, EXPERTS, VOCABULARY, LENGTH = 16, 12, 6, 11, 8


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.w2 = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class ListMoE(nn.Module):
    """As Mixtral's block: a loop over a list, which no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        self.num_experts, self.top_k = EXPERTS, 2

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        gates, chosen = self.gate(tokens).softmax(-1).topk(self.top_k)
        gates, mixed = gates / gates.sum(-1, keepdim=True), torch.zeros_like(tokens)
        for number in range(self.num_experts):
            rows, slots = torch.where(chosen == number)
            output = self.experts[number](tokens[rows]) * gates[rows, slots, None]
            mixed.index_add_(0, rows, output.to(mixed.dtype))
        return mixed.view_as(x)


class HitMoE(ListMoE):
    """As transformers has it by now: only the experts that some token chose are run, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        gates, chosen = self.gate(tokens).softmax(-1).topk(self.top_k)
        gates, mixed = gates / gates.sum(-1, keepdim=True), torch.zeros_like(tokens)
        for number in chosen.unique():
            rows, slots = torch.where(chosen == number)
            mixed.index_add_(0, rows, self.experts[int(number)](tokens[rows]) * gates[rows, slots, None])
        return mixed.view_as(x)


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * HIDDEN, WIDTH) * 0.3)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) * 0.3)


class StackedMoE(nn.Module):
    """Stacked 3-D parameters, the gated half first."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, EXPERTS, bias=False), Stacked()
        self.num_experts, self.top_k = EXPERTS, 2

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        gates, chosen = self.gate(tokens).softmax(-1).topk(self.top_k)
        gates, mixed = gates / gates.sum(-1, keepdim=True), torch.zeros_like(tokens)
        for number in range(self.num_experts):
            rows, slots = torch.where(chosen == number)
            glu, up = F.linear(tokens[rows], self.experts.gate_up_proj[number]).chunk(2, -1)
            output = F.linear(F.silu(glu) * up, self.experts.down_proj[number])
            mixed.index_add_(0, rows, (output * gates[rows, slots, None]).to(mixed.dtype))
        return mixed.view_as(x)


class Language(nn.Module):
    """Tokens [N, L] and a task → logits of the next token [N, V, L]; a word at the front says which task it is."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.words, self.tasks = nn.Embedding(VOCABULARY, WIDTH), ("repeat", "reverse")
        self.prompt = nn.ParameterDict({task: nn.Parameter(torch.randn(WIDTH)) for task in self.tasks})
        self.norm, self.moe = nn.LayerNorm(WIDTH), kind()
        self.heads = nn.ModuleDict({task: nn.Linear(WIDTH, VOCABULARY) for task in self.tasks})

    def forward(self, x: Tensor, task: str) -> Tensor:
        hidden = self.words(x) + 2 * self.prompt[task]
        hidden = hidden + self.moe(self.norm(hidden))
        return self.heads[task](hidden).transpose(1, 2)  # type: ignore[no-any-return]


def language(kind: type[nn.Module]) -> Language:
    torch.manual_seed(3)
    model = Language(kind).eval()
    with torch.no_grad():
        model.moe.gate.weight.mul_(6)  # type: ignore[operator, union-attr]
    return model


def sequences(count: int, seed: int) -> list[Batch]:
    noise = torch.Generator().manual_seed(seed)
    words = [torch.randint(VOCABULARY, (6, LENGTH), generator=noise) for _ in range(count)]
    return [(x, {"repeat": x, "reverse": x.flip(1)}) for x in words]


def workload(model: Language) -> Workload:
    tasks = tuple(Task(name, F.cross_entropy, Accuracy(), "higher") for name in model.tasks)
    example = torch.zeros(1, LENGTH, dtype=torch.int64)
    return Workload("words", model, example, tasks, sequences(3, 1), sequences(3, 2), sequences(3, 3))


KINDS = [ListMoE, HitMoE, StackedMoE]


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_computes_what_the_original_does(kind: type[nn.Module]) -> None:
    model = language(kind)
    x = torch.randint(VOCABULARY, (4, LENGTH))
    with torch.no_grad():
        torch.testing.assert_close(twinned(model)(x, "repeat"), model(x, "repeat"), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_extraction_cuts_the_users_own_module(kind: type[nn.Module], tmp_path: Path) -> None:
    model = language(kind)
    before = copy.deepcopy(model.state_dict())
    found = extract(workload(model), ["repeat"], Budget.parse("params<=1%"), Tolerance.parse("99%"),
                    Settings(epochs=1, rounds=1))  # fmt: skip
    exact, small = (point.model for point in found.points)
    assert type(small.moe) is kind  # type: ignore[union-attr]
    kept = [len(record["kept"]["moe"]) for record in found.history["experts"]["points"]]
    assert 2 <= kept[1] < kept[0] < EXPERTS
    assert small.moe.num_experts == small.moe.gate.out_features == kept[1]  # type: ignore[union-attr]
    for inputs, _ in sequences(3, 2):
        with torch.no_grad():
            torch.testing.assert_close(exact(inputs, "repeat"), model(inputs, "repeat"), atol=1e-5, rtol=1e-4)
    rebuilt = load_model(found.save(tmp_path / "bundle"), lambda: language(kind))
    x = torch.randint(VOCABULARY, (2, LENGTH))
    assert torch.equal(rebuilt(x, "repeat"), small(x, "repeat"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_is_exported_with_proof_measured_and_looked_into(kind: type[nn.Module], tmp_path: Path) -> None:
    given = workload(language(kind))
    assert [layer["experts"] for layer in sc.inspect(given).experts] == [EXPERTS]
    bundle = extract_to_bundle(given, tmp_path / "bundle", "repeat", settings=Settings(epochs=0))
    (artefact,) = bundle.manifest.artefacts
    assert artefact.max_abs is not None
    assert artefact.max_abs < 1e-4  # beside the user's own module
    assert bundle.manifest.point.latency_ms["cpu"] > 0


def test_a_list_is_cut_as_one_dimension_and_maps_compose() -> None:
    model = language(ListMoE)
    first = expert_map(model, find(model), {"moe": [0, 2, 3, 5]})
    small = copy.deepcopy(model)
    first.apply(small)
    second = expert_map(small, find(small), {"moe": [1, 2]})
    hidden = ChannelMap(
        {"moe.experts.1.w2.weight": {0: torch.arange(4).numpy()}}, {"moe.experts.1.w2.weight": (16, 12)}
    )
    together = ChannelMap.from_json(first.then(hidden).then(second).as_json())
    again = copy.deepcopy(model)
    together.apply(again)
    assert len(again.moe.experts) == 2  # type: ignore[arg-type]
    assert torch.equal(again.moe.experts[0].w1.weight, model.moe.experts[2].w1.weight)  # type: ignore[index, union-attr]
    assert again.moe.experts[0].w2.weight.shape == (4, 12)  # type: ignore[index, union-attr]


def test_a_top_k_above_the_experts_kept_must_be_lowered_explicitly() -> None:
    model = language(ListMoE)
    with pytest.raises(BudgetError, match="moe would keep 1 expert and choose 2 of them") as error:
        expert_map(model, find(model), {"moe": [4]})
    assert "--top-k 1" in error.value.hint
    expert_map(model, find(model), {"moe": [4]}, top_k=1).apply(model)
    assert model.moe.top_k == 1


def test_a_router_with_other_rows_is_refused() -> None:
    model = language(ListMoE)
    model.moe.gate = nn.Linear(WIDTH, EXPERTS + 1, bias=False)
    with pytest.raises(ModelError, match="the router of moe has 7 rows, the layer 6 experts"):
        find(model)


def test_a_user_registers_a_layout_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_LAYOUTS", list(layers._LAYOUTS))

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(WIDTH, 4)
            self.parts = nn.ModuleList(
                nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH)) for _ in range(4)
            )
            self.k = 1

        def forward(self, x: Tensor) -> Any:
            gates, chosen = self.router(x).softmax(-1).max(-1)
            outputs = torch.stack([part(x) for part in self.parts], -2)
            picked = outputs.gather(-2, chosen[..., None, None].expand(*x.shape[:-1], 1, x.shape[-1])).squeeze(-2)
            return picked * gates[..., None]

    register(Layout(
        "mine", fits=lambda m: isinstance(m, Mine), up="parts.{}.0.weight", up_bias="parts.{}.0.bias",
        down="parts.{}.2.weight", down_bias="parts.{}.2.bias", activation="relu",
        scores=lambda m, x, task: m.router(x).softmax(-1), rows="router.weight", top_k="k",
    ))  # fmt: skip
    model, x = nn.Sequential(Mine()), torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(twinned(model)(x), model(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [ListMoE, HitMoE])
def test_channels_of_a_mixture_that_no_graph_can_hold_are_refused_before_any_work(kind: type[nn.Module]) -> None:
    with pytest.raises(ModelError, match=r"depends on the values of its input|cannot trace") as caught:
        sc.extract(workload(language(kind)), ["repeat"], "params<=50%", prune=True)
    assert "\n" not in caught.value.message


class Twice(Language):
    """The same mixture in two places, called by the name of its argument."""

    def __init__(self) -> None:
        super().__init__(ListMoE)
        self.again = self.moe

    def forward(self, x: Tensor, task: str) -> Tensor:
        hidden = self.words(x) + 2 * self.prompt[task]
        hidden = hidden + self.moe(x=self.norm(hidden))
        hidden = hidden + self.again(x=self.norm(hidden))
        return self.heads[task](hidden).transpose(1, 2)  # type: ignore[no-any-return]


def test_a_mixture_in_two_places_called_by_name_keeps_what_either_uses() -> None:
    torch.manual_seed(3)
    model = Twice().eval()
    with torch.no_grad():
        model.moe.gate.weight.mul_(6)  # type: ignore[operator, union-attr]
    small = extract(workload(model), ["repeat"], settings=Settings(epochs=0, rounds=1)).points[0].model
    assert small.again is small.moe
    for inputs, _ in sequences(3, 2):
        with torch.no_grad():
            torch.testing.assert_close(small(inputs, "repeat"), model(inputs, "repeat"), atol=1e-5, rtol=1e-4)
