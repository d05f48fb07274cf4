"""Two processes under torchrun: the gradient of both, one decision for both, and the same model in both at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import several
import torch
from torch import nn

TESTS = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights(trained_squares: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "squares.safetensors"
    safetensors.torch.save_file(trained_squares.state_dict(), path)
    return path


def torchrun(what: str, weights: Path, out: Path) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """(what it says, its model) of each process."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join([str(TESTS), str(TESTS / "compress")])
    done = subprocess.run(
        [*command, several.__file__, what, str(weights), str(out)], env=os.environ | {"PYTHONPATH": paths},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, "users would see it once from each process"
    files = [out / str(rank) for rank in (0, 1)]
    return [(f.with_suffix(".json").read_text(), safetensors.torch.load_file(f"{f}.safetensors")) for f in files]


def test_two_processes_learn_as_one_that_accumulates(weights: Path, tmp_path: Path) -> None:
    """The mean gradient of two batches is the same wherever they are; statistics of batches are the first process's."""
    (said, model), (other_said, other) = torchrun("tune", weights, tmp_path / "out")
    alone = several.WithUnused()
    alone.load_state_dict(safetensors.torch.load_file(weights), strict=False)
    nn.init.zeros_(alone.unused.weight)
    history = several.tuned(alone, replace(several.RECIPE, accumulate=2))
    assert said == other_said
    for name, tensor in model.items():
        assert torch.equal(tensor, other[name]), name
    for name, parameter in alone.named_parameters():
        if not name.startswith("unused"):
            torch.testing.assert_close(model[name], parameter.detach(), rtol=1e-2, atol=1e-4, msg=name)
    found = json.loads(said)["history"]
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in history], rel=1e-3)


def test_the_first_process_decides_for_all(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (said, model), (other_said, other) = torchrun("prune", weights, out)
    assert said == other_said
    assert model.keys() == other.keys()
    for name, tensor in model.items():
        assert torch.equal(tensor, other[name]), name
    assert any(line["pruned"] for line in json.loads(said)["decisions"])
    assert json.loads((out / "state" / "journal.json").read_text())["steps"]
