"""Settings of an expert extraction."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from secateur.compress.training.recipe import Recipe
from secateur.core.errors import BudgetError

ORDERS = ("contribution", "usage", "random")


@dataclass(frozen=True)
class Settings:
    """How to extract.

    Args:
        top_k: experts that each token goes through, if fewer than the model's.
        order: which experts go first: "contribution" to the kept tasks, per byte; "usage" by all tasks of the model
            (task-agnostic) and "random" are there to compare with.
        oracle: let the kept tasks' losses decide about every expert; without it the order alone does.
        tolerance: relative rise of each task's loss that removing experts may cost before fine-tuning, at first.
        passes: how often the tolerance may be doubled before a budget is given up.
        rounds: steps from the exact extraction to the budget; each leaves a point to select from.
        epochs: of fine-tuning with the whole model as teacher, over all rounds.
        lr, weight_decay, distillation, clip: of fine-tuning.
        calibration_samples: samples that the oracle uses; None for all. The table is counted on all of them.
        cache_limit: bytes of activations that the oracle may keep.
    """

    top_k: int | None = None
    order: str = "contribution"
    oracle: bool = True
    tolerance: float = 0.02
    passes: int = 6
    rounds: int = 2
    epochs: int = 4
    lr: float = 5e-4
    weight_decay: float = 1e-4
    distillation: float = 1.0
    clip: float = 1.0
    calibration_samples: int | None = 128
    cache_limit: int = 2**30

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise BudgetError(f'no order "{self.order}"', f"the orders are: {', '.join(ORDERS)}")
        for name in ("passes", "rounds"):
            if getattr(self, name) < 1:
                raise BudgetError(f"{name} is {getattr(self, name)}", "give at least 1")
        self.recipe(self.epochs)

    def recipe(self, epochs: int) -> Recipe:
        """How to fine-tune for so many epochs."""
        return Recipe(epochs, self.lr, self.weight_decay, self.distillation, self.clip)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
