"""Executions of a mixture of experts give the same numbers, whatever the routing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.core.errors import ExportError
from secateur.core.experts import ExpertWeights, by_expert, dense_gates, execution, mix, route

WIDTH, HIDDEN = 6, 5
SPARSE = ("sparse", "batched", "unrolled", "op")


def weights(experts: int, seed: int = 0, *, gated: bool = False, bias: bool = True) -> ExpertWeights:
    noise = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    return ExpertWeights(
        normal(experts, HIDDEN, WIDTH), normal(experts, WIDTH, HIDDEN),
        normal(experts, HIDDEN) if bias else None, normal(experts, WIDTH) if bias else None,
        normal(experts, HIDDEN, WIDTH) if gated else None, "silu" if gated else "gelu",
    )  # fmt: skip


def run(kind: str, x: Tensor, scores: Tensor, made: ExpertWeights, k: int, **options: bool) -> Tensor:
    with execution(kind):  # type: ignore[arg-type]
        return mix(x, scores, torch.arange(len(made)), made, k, **options)


@given(
    experts=st.integers(1, 7), k=st.integers(1, 7), samples=st.integers(1, 3), tokens=st.integers(1, 9),
    gated=st.booleans(), bias=st.booleans(), renormalise=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_all_executions_agree(
    experts: int, k: int, samples: int, tokens: int, gated: bool, bias: bool, renormalise: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(samples, tokens, WIDTH, dtype=torch.float64)
    scores = torch.randn(samples, tokens, experts, dtype=torch.float64).softmax(-1)
    made = weights(experts, seed, gated=gated, bias=bias)
    expected = run("dense", x, scores, made, min(k, experts), renormalise=renormalise)
    for kind in (*SPARSE, "fixed") if k >= experts else SPARSE:
        torch.testing.assert_close(run(kind, x, scores, made, min(k, experts), renormalise=renormalise), expected)


def test_where_nothing_is_left_to_choose_no_routing_is_written_and_else_none_is_faked() -> None:
    x, scores = torch.randn(1, 3, WIDTH, dtype=torch.float64), torch.rand(1, 3, 5, dtype=torch.float64)
    kept, made = torch.tensor([1, 4]), weights(2)
    with execution("fixed"):
        found = mix(x, scores, kept, made, 2)
        with pytest.raises(ExportError, match="each chooses 1 of 2"):
            mix(x, scores, kept, made, 1)
    torch.testing.assert_close(found, mix(x, scores, kept, made, 2))


@pytest.mark.parametrize("kind", ["dense", *SPARSE])
def test_it_is_the_sum_over_the_best_k_without_renormalising(kind: str) -> None:
    x, made = torch.randn(1, 1, WIDTH, dtype=torch.float64), weights(3)
    scores = torch.tensor([[[0.2, 0.5, 0.3]]], dtype=torch.float64)
    by_hand = 0.5 * made.expert(1, x[0]) + 0.3 * made.expert(2, x[0])
    torch.testing.assert_close(run(kind, x, scores, made, 2)[0], by_hand)
    torch.testing.assert_close(run(kind, x, scores, made, 2, renormalise=True)[0], by_hand / 0.8)


@pytest.mark.parametrize("kind", SPARSE)
def test_all_tokens_on_one_expert_leave_the_others_empty(kind: str) -> None:
    x, made = torch.randn(2, 5, WIDTH, dtype=torch.float64), weights(4)
    scores = torch.zeros(2, 5, 4, dtype=torch.float64)
    scores[..., 2] = 1
    torch.testing.assert_close(run(kind, x, scores, made, 1), made.expert(2, x.flatten(0, 1)).view_as(x))


@pytest.mark.parametrize("kind", ["dense", *SPARSE])
def test_equal_scores_choose_k_experts_and_no_more(kind: str) -> None:
    x, made = torch.randn(1, 3, WIDTH, dtype=torch.float64), weights(4)
    scores = torch.full((1, 3, 4), 0.25, dtype=torch.float64)
    assert int((dense_gates(scores[0], 2) > 0).sum()) == 6
    torch.testing.assert_close(run(kind, x, scores, made, 2), run("dense", x, scores, made, 2))


def test_a_token_whose_expert_is_gone_takes_its_next_best_with_the_gate_it_had() -> None:
    x, made = torch.randn(1, 1, WIDTH, dtype=torch.float64), weights(2)
    scores = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64)
    mixed = mix(x, scores, torch.tensor([1, 2]), made, 1)
    torch.testing.assert_close(mixed[0], 0.3 * made.expert(0, x[0]))


def test_taking_out_experts_that_no_token_wants_changes_no_bit() -> None:
    torch.manual_seed(0)
    x, made = torch.randn(4, 65, WIDTH), weights(8)
    made = ExpertWeights(*(part.float() for part in (made.up, made.down, made.up_bias, made.down_bias)))  # type: ignore[union-attr]
    scores = torch.randn(4, 65, 8).softmax(-1)
    scores[..., [0, 3, 6]] *= 1e-6
    kept = torch.tensor([1, 2, 4, 5, 7])
    fewer = ExpertWeights(*(part[kept] for part in (made.up, made.down, made.up_bias, made.down_bias)))  # type: ignore[index]
    assert torch.equal(mix(x, scores, kept, fewer, 2), mix(x, scores, torch.arange(8), made, 2))


def test_gradients_agree_with_the_reference() -> None:
    torch.manual_seed(1)
    x, scores = torch.randn(7, WIDTH, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64).softmax(-1)
    found = []
    for kind in ("dense", "sparse", "batched"):
        leaves = [leaf.clone().requires_grad_() for leaf in (x, scores)]
        run(kind, *leaves, weights(4), 2).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for other in found[1:]:
        for one, grad in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, grad)


def test_queues_hold_every_choice_once_earlier_tokens_first() -> None:
    _, index = route(torch.tensor([[0.1, 0.6, 0.3], [0.7, 0.2, 0.1], [0.5, 0.1, 0.4]]), 2)
    order, counts = by_expert(index, 3)
    assert counts.tolist() == [2, 2, 2]
    assert (order // 2).tolist() == [1, 2, 0, 1, 0, 2]
