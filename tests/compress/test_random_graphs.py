"""Random CNNs: whatever the topology, masked == cut, and nothing raises.

RANDOM_GRAPHS=500 pytest tests/compress/test_random_graphs.py
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import KINDS, SIZE, Program, Step
from traces import assert_same, masked_outputs, outputs, random_keep, trace_quietly

from secateur.compress.dataflow.channel_groups import ChannelGroups
from secateur.compress.dataflow.costs import CostModel
from secateur.core.costs import Costs
from secateur.profiles.count import count

STEPS = st.lists(
    st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=9
)


def check(steps: list[Step], heads: int, seed: int) -> ChannelGroups:
    """What holds of every graph; its groups. In double precision: nothing is put down to rounding."""
    torch.manual_seed(seed)
    model, inputs = Program(steps, heads).double(), torch.randn(2, 3, SIZE, SIZE, dtype=torch.double)
    expected = outputs(model, inputs)
    groups = trace_quietly(model, inputs)
    assert_same(masked_outputs(groups, {}, inputs), expected)
    costs = CostModel(groups)
    for keep in (random_keep(groups.prunable, seed), {group.name: [0] for group in groups.prunable}):
        small = groups.cut(keep)
        found = outputs(small, inputs)
        assert_same(found, masked_outputs(groups, keep, inputs))
        assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
        modelled = costs.costs(costs.widths({name: len(kept) for name, kept in keep.items()}))
        check_costs(modelled, count(small, inputs).costs, single=any(len(kept) == 1 for kept in keep.values()))
    return groups


def check_costs(modelled: Costs, counted: Costs, *, single: bool) -> None:
    """Equal, but that a dimension of one element lets a reshape share the memory which it copies at any other width."""
    if single:
        assert modelled.peak_memory_bytes >= counted.peak_memory_bytes
        counted = replace(counted, peak_memory_bytes=modelled.peak_memory_bytes)
    assert modelled == counted


@settings(
    max_examples=int(os.environ.get("RANDOM_GRAPHS", "40")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(steps=STEPS, heads=st.integers(1, 3), seed=st.integers(0, 99))
def test_masked_equals_cut(steps: list[Step], heads: int, seed: int) -> None:
    check(steps, heads, seed)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_of_step_between_convolutions(kind: str) -> None:
    check([("conv", 0, 6), (kind, 1, 3), ("conv", 2, 5)], 2, 0)


@pytest.mark.parametrize(
    ("steps", "heads", "seed"),
    [
        ([("gate", 11, 1), ("norm", 7, 2), ("gate", 8, 0), ("transposed", 6, 3), ("inplace", 4, 1)], 3, 19),
        ([("conv", 5, 3), ("grouped", 3, 10), ("cat", 1, 1), ("grouped", 8, 5), ("inplace", 1, 11)], 2, 36),
        ([("chunk", 1, 7), ("inplace", 11, 0), ("cat", 2, 7), ("layer_norm", 2, 4)], 3, 46),
        (  # two heads, two channels wide: once one group, whose costs no sum of channels gives
            [
                ("grouped", 2, 6),
                ("shuffle", 0, 11),
                ("cat", 0, 10),
                ("multiply", 4, 5),
                ("activate", 3, 11),
                ("flatten", 3, 2),
                ("attention", 8, 10),
                ("gate", 3, 7),
            ],
            1,
            67,
        ),
        ([("chunk", 3, 3), ("inplace", 1, 0)], 3, 87),
        (
            [
                ("flatten", 0, 3),
                ("flatten", 5, 6),
                ("multiply", 8, 0),
                ("conv", 9, 4),
                ("inplace", 1, 6),
                ("activate", 7, 11),
                ("shuffle", 2, 0),
                ("shuffle", 4, 11),
                ("grouped", 7, 11),
            ],
            2,
            69,
        ),
    ],
)
def test_half_of_an_odd_width_is_taken_by_the_code(steps: list[Step], heads: int, seed: int) -> None:
    """Found at length (benchmarks/random_graphs.py): the trial cuts of both draws agreed with such code by luck,
    in the last case with code whose result is not used, which a trace leaves out."""
    check(steps, heads, seed)


@pytest.mark.parametrize(
    ("steps", "heads", "seed"),
    [
        (
            [("flatten", 8, 5), ("conv", 6, 4), ("chunk", 1, 7), ("activate", 8, 7), ("add", 9, 1), ("inplace", 3, 8),
             ("mlp", 3, 4), ("attention", 7, 1)], 1, 28,
        ),
        (
            [("transposed", 9, 5), ("depthwise", 1, 0), ("add", 8, 9), ("conv", 5, 3), ("conv", 10, 1),
             ("attention", 4, 8), ("resize", 1, 8), ("broadcast", 4, 4), ("attention", 11, 7)], 2, 52,
        ),
    ],
)  # fmt: skip
def test_the_width_of_a_head_is_taken_from_the_input(steps: list[Step], heads: int, seed: int) -> None:
    """Found at length: the widths of both were cut alike in every trial."""
    check(steps, heads, seed)


def test_a_reshape_that_copies_at_every_width_but_one() -> None:
    check([("shuffle", 11, 11), ("inplace", 8, 10)], 3, 51)
