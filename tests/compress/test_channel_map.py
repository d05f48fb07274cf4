"""A channel map's own arithmetic, apart from any trace."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.compress.channel_map import ChannelMap


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("experts.0.up.weight", "experts.1.up.weight"),
        ("experts.1", "experts.3"),
        ("experts", "experts"),
        ("expertise.0.weight", "expertise.0.weight"),
    ],
)
def test_what_was_in_a_list_is_found_by_its_number_before_the_cut(name: str, before: str) -> None:
    cut = ChannelMap({}, {}, (), {}, {"experts": np.array([1, 3])})
    assert cut.original(name) == before
