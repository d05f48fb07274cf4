"""What each process of `torchrun several.py WHAT WEIGHTS OUT` does: fine-tune, or prune; and write its result."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import tiny
import torch
from torch import Tensor, nn

from secateur.compress import ranks
from secateur.compress.finetune import Recipe, finetune
from secateur.compress.journal import Journal
from secateur.compress.pagcp import prune
from secateur.core.budget import Budget, Tolerance

RECIPE = Recipe(2, feature_distillation=0.5, weighting="uncertainty", precision="float32")
SETTINGS = replace(tiny.FAST, epochs=4, max_passes=3, local_tolerance=0.5, precision="float32")


class WithUnused(tiny.Squares):
    """Has a branch that no loss depends on, as an auxiliary head that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {**super().forward(x), "unused": self.unused(self.stem(x))}


def tuned(model: nn.Module, recipe: Recipe) -> list[object]:
    """Fine-tune a model in place, against itself as it is."""
    return finetune(
        model, tiny.workload(model), recipe, seed=0, label="tuning", journal=Journal(None, {}, resume=False)
    )


def main(what: str, weights: str, out: str) -> None:
    torch.set_num_threads(1)
    model = WithUnused() if what == "tune" else tiny.Squares()
    model.load_state_dict(safetensors.torch.load_file(weights), strict=False)
    if what == "tune":
        torch.nn.init.zeros_(model.unused.weight)
        document = {"history": tuned(model, RECIPE)}
    else:
        state = Path(out) / "state"
        result = prune(
            tiny.workload(model), Budget.parse("flops<=60%"), Tolerance.parse("50%"), SETTINGS, seed=1, state=state
        )
        model = result.model
        document = {"metrics": result.metrics, "oracle": result.oracle, "decisions": result.history["decisions"]}
    safetensors.torch.save_file(model.state_dict(), f"{out}/{ranks.rank()}.safetensors")
    Path(f"{out}/{ranks.rank()}.json").write_text(json.dumps(document, sort_keys=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
