"""The expert-by-expert accelerator: small cases by hand, the closed form against the events, what reordering saves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.core.errors import DeviceError
from secateur.targets.edge_moe import Board, Prediction, Stage, ViT, board, cycles, on_chip, predict, program, simulate
from secateur.targets.edge_moe.program import linear, queues

EDGE = board("zcu102")
PUBLISHED = ViT(129, 192, 3, 64, (768, 0) * 6, (None, (16, 384)) * 6)
"""Edge-MoE's model: 128x256 pixels in patches of 16 and a class token, 12 blocks, 16 experts of 384."""
SPREAD = [[[token % 16, (token + 5) % 16] for token in range(129)]] * 6


def changed(**values: object) -> Board:
    return Board.model_validate({**EDGE.model_dump(), **values})


def test_a_linear_layer_by_hand() -> None:
    stage = linear(EDGE, "", 10, 32, 48)  # 2 x 3 tiles, 10 tokens
    assert stage.compute == 60
    assert stage.load == 48 * 2 + 3  # 48 rows of two words of 16 weights; 48 biases in three words
    assert stage.weight_bytes == (32 + 1) * 48 * 2
    assert stage.feature_bytes == 10 * (32 + 48) * 4
    assert stage.macs == 10 * 32 * 48


def test_a_narrow_layer_is_bound_by_the_bus() -> None:
    assert linear(EDGE, "", 10, 192, 16).compute == 10 * 24  # 24 words of 8 features against 12 tiles


def test_sizes_that_do_not_fill_a_tile_round_up() -> None:
    assert linear(EDGE, "", 1, 17, 17).compute == 2 * 2


def test_two_buffers_hide_the_shorter_of_load_and_compute_by_hand() -> None:
    stages = [Stage("a", 10, 4), Stage("b", 3, 6), Stage("c", 5, 9)]
    assert cycles(stages) == 4 + max(10, 6) + max(3, 9) + 5 == 28
    assert cycles(stages, double_buffer=False) == 14 + 9 + 14
    assert cycles([]) == 0


def predicted(routing: list[list[list[int]]], on: Board = EDGE) -> Prediction:
    return predict(on, program(on, PUBLISHED, routing))


durations = st.integers(0, 50)
programs = st.lists(st.builds(lambda c, w: Stage("", c, w), durations, durations), max_size=12)


@given(programs, st.booleans())
def test_the_event_simulation_agrees_with_the_closed_form(stages: list[Stage], double: bool) -> None:
    assert simulate(stages, double_buffer=double) == cycles(stages, double_buffer=double)


def test_queues_by_hand() -> None:
    chosen = [[2, 0], [2, 3], [0, 2]]
    assert queues(EDGE, chosen) == [(0, 2), (2, 3), (3, 1)]  # expert 1 has no tokens and is skipped
    assert queues(changed(reorder=False), chosen) == [(2, 1), (0, 1), (2, 1), (3, 1), (0, 1), (2, 1)]


def test_reordering_computes_the_same_and_loads_each_expert_once() -> None:
    tokens, experts = 129 * 2 * 6, 16 * 6
    one_expert = (193 * 384 + 385 * 192) * 2
    with_order, without = predicted(SPREAD), predicted(SPREAD, changed(reorder=False))
    assert with_order.macs == without.macs
    assert with_order.expert_weight_bytes == experts * one_expert
    assert without.expert_weight_bytes == tokens * one_expert
    assert without.expert_cycles > 10 * with_order.expert_cycles


def test_fewer_experts_need_fewer_bytes_and_no_more_cycles() -> None:
    four = [[[expert % 4 for expert in experts] for experts in layer] for layer in SPREAD]
    assert predicted(four).expert_weight_bytes * 4 == predicted(SPREAD).expert_weight_bytes
    assert predicted(four).cycles <= predicted(SPREAD).cycles


def test_another_task_is_only_another_routing() -> None:
    other = [[[(expert + 3) % 16 for expert in experts] for experts in layer] for layer in SPREAD]
    one, two = (program(EDGE, PUBLISHED, routing).stages for routing in (SPREAD, other))
    back_to_back = cycles([*one, *two])
    assert back_to_back <= cycles(one) + cycles(two)  # nothing is reloaded between them


def test_the_published_design_fits_its_chip_and_resident_experts_do_not_fit() -> None:
    memory = on_chip(EDGE, program(EDGE, PUBLISHED, SPREAD))
    assert memory.fits
    assert memory.parts["weights"] == 2 * 193 * 768 * 2
    resident = on_chip(EDGE, program(EDGE, PUBLISHED, SPREAD), resident_experts=True)
    assert not resident.fits
    assert resident.bytes - memory.bytes == 16 * (193 * 384 + 385 * 192) * 2


def test_uram_is_used_where_there_is_any() -> None:
    there = on_chip(board("zcu104"), program(EDGE, PUBLISHED, SPREAD))
    assert 0 < there.uram <= 96
    assert there.fits


def test_time_and_energy_follow_from_cycles_and_bytes() -> None:
    found = predicted(SPREAD)
    assert found.latency_ms == pytest.approx(found.cycles / 300e3)
    moved = found.weight_bytes + found.feature_bytes
    assert found.energy_mj == pytest.approx(found.latency_ms * 10 + moved * 160e-9)


def test_wrong_input_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match='unknown board "zcu999"'):
        board("zcu999")
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\nclock: 3\n")
    with pytest.raises(DeviceError, match=r"bad\.yaml"):
        board(bad)
    with pytest.raises(ValueError, match="6 routings of 129 tokens"):
        program(EDGE, PUBLISHED, SPREAD[:2])
