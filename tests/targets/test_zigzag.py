"""The same soft core in two models: what must agree does, and what cannot be checked is one clear line."""

from __future__ import annotations

import sys

import pytest

from secateur.core.errors import DeviceError, MissingExtraError
from secateur.profiles.latency.operators import Operator
from secateur.targets.device import get
from secateur.targets.zigzag import cross_check

CORE = get("fpga:zcu102")
ALIGNED = Operator("conv", ((32, 16, 16),), (64, 16, 16), (3, 3), weights=64 * 32 * 9)
DEPTHWISE = Operator("conv", ((32, 16, 16),), (32, 16, 16), (3, 3), groups=32, weights=32 * 9)
RAGGED = Operator("conv", ((33, 16, 16),), (65, 16, 16), (1, 1), weights=33 * 65)
LINEAR = Operator("linear", ((256,),), (48,), weights=256 * 48)
POOL = Operator("pool", ((64, 16, 16),), (64, 8, 8), (2, 2), stride=2)


def zigzag_or_skip() -> None:
    pytest.importorskip("zigzag", reason="zigzag-dse is not installed (the extra [fpga])")


def test_both_models_keep_the_array_busy_for_the_same_cycles() -> None:
    zigzag_or_skip()
    for layer in cross_check(CORE, [ALIGNED, DEPTHWISE, RAGGED, LINEAR]):
        assert layer.zigzag.busy == layer.ours.busy, layer.operator
        assert layer.zigzag.cycles > layer.zigzag.busy


def test_both_models_move_each_operand_of_a_small_layer_once() -> None:
    """Then the energies differ only by what ZigZag counts on the chip, which is little."""
    zigzag_or_skip()
    for layer in cross_check(CORE, [ALIGNED, LINEAR]):
        assert 0.98 < layer.zigzag.energy_mj / layer.ours.energy_mj < 1.1


def test_layers_come_in_order_with_repeats_and_without_what_multiplies_nothing() -> None:
    zigzag_or_skip()
    layers = cross_check(CORE, [LINEAR, POOL, ALIGNED, LINEAR])
    assert [each.operator for each in layers] == [LINEAR, ALIGNED, LINEAR]
    assert layers[0] == layers[2]
    assert cross_check(CORE, [POOL]) == []


@pytest.mark.parametrize("name", ["cpu", "mobile:raspberry-pi-5", "gpu:a100"])
def test_what_is_no_soft_core_cannot_be_checked(name: str) -> None:
    with pytest.raises(DeviceError):
        cross_check(get(name), [ALIGNED])


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zigzag.mapping.temporal_mapping", None)
    with pytest.raises(MissingExtraError, match="zigzag-dse is not installed") as caught:
        cross_check(CORE, [ALIGNED])
    assert "secateur[fpga]" in str(caught.value.hint)
