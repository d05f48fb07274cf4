"""A few of the hostile cases of benchmarks/hostile.py: one clear line each, nothing changed, nothing executed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAMILIES = (
    "manifests with a right seal", "manifests as text", "files with right hashes", "links and pipes", "elastic tables",
    "onnx files", "device files", "farm files", "texts",
)  # fmt: skip
CASES = 4


@pytest.fixture(scope="module")
def hostile() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    import hostile

    yield hostile
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_refused_or_harmless(family: str, hostile: ModuleType, finished: Path) -> None:
    for number in range(CASES):
        command, _, problem = hostile.play(number, family, finished)
        assert problem is None, (number, command)


@pytest.mark.parametrize(
    "where", ["model:1", "model:5", "loss:9", "metric:5", "train:4", "calibration:5", "test:4", "shapes:3"]
)
def test_what_fails_in_the_middle_of_a_run_is_one_line(
    where: str, hostile: ModuleType, finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAGILE", where)
    code, out, err = hostile.ended(["compress", "fragile:workload", *hostile.QUICK, "-o", "out"])
    assert hostile.judged(code, out, err, {}, hostile.Given(finished, folder)) is None
    assert code in (0, 2)
    assert code == 0 or ".py, line" in err or "loader" in err or "fails on the first" in err


def test_the_judge_sees_what_is_wrong(hostile: ModuleType, finished: Path, folder: Path) -> None:
    given = hostile.Given(finished, folder)
    assert hostile.judged(2, "", "error: no\nhint: yes\n", {}, given) is None
    assert "exit code 1" in hostile.judged(1, "", "error: unexpected KeyError", {}, given)
    assert hostile.judged(2, "", "something\n", {}, given).startswith("no clear line")
    assert hostile.judged(2, "", "error: no", {"gone": "x"}, given) == "changed: ['gone']"
    (folder / hostile.CANARY).touch()
    assert hostile.judged(0, "", "", {}, given) == "data were executed"
