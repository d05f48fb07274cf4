"""benchmarks/speedup.py: what a layer takes beyond its share of FLOPs has reasons that sum to it."""

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "speedup.py"))


@pytest.mark.parametrize(
    ("flops", "ms", "expected"),
    [
        ([100, 25], [1.0, 0.25], {"allocation": 0.0, "narrow": 0.0}),  # as the model, and as fast as before
        ([100, 50], [1.0, 0.5], {"allocation": 0.25, "narrow": 0.0}),  # kept more
        ([100, 25], [1.0, 0.75], {"allocation": 0.0, "narrow": 0.5}),  # slower for its FLOPs
        ([0, 0], [1.0, 0.5], {"without FLOPs": 0.25}),
    ],
)
def test_reasons(flops: list[int], ms: list[float], expected: dict[str, float]) -> None:
    """Of a model that kept a quarter of its FLOPs."""
    found = SCRIPT["beyond"](flops, ms, 0.25)
    assert found == pytest.approx(expected)
    assert sum(found.values()) == pytest.approx(ms[1] - 0.25 * ms[0])
