"""Recipe: how to fine-tune, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.compress.training.weighting import check_weighting
from secateur.core.errors import BudgetError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Args:
        distillation: weight of the teacher's outputs; without it and `feature_distillation` no teacher is needed.
        clip: largest norm of the gradient.
        ema_decay: of the moving average of weights, which is the result.
        warmup: share of all steps in which the learning rate rises; it then falls as a cosine.
        feature_distillation: weight of the teacher's features.
        weighting: of the tasks' losses: "fixed", "uncertainty" or "dwa"; see `secateur.compress.training.weighting`.
        accumulate: batches whose gradients make one step.
        patience: stop after so many epochs without a lower loss on the calibration data, with the weights of the best
            epoch; 0 never stops early.
        precision: of convolutions and matrix products: "auto" is bfloat16 where the device computes it, else float16
            (with loss scaling) on a GPU, else float32; and float32 where the model cannot be trained in that.
    """

    epochs: int
    lr: float = 1e-3
    weight_decay: float = 1e-4
    distillation: float = 1.0
    clip: float = 1.0
    ema_decay: float = 0.99
    warmup: float = 0.05
    feature_distillation: float = 0.0
    weighting: str = "fixed"
    accumulate: int = 1
    patience: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        for name, fits, needed in (
            ("lr", self.lr >= 0, "0 or more"), ("clip", self.clip > 0, "more than 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("distillation", self.distillation >= 0, "0 or more"),
            ("feature_distillation", self.feature_distillation >= 0, "0 or more"),
            ("warmup", 0 <= self.warmup < 1, "a share of the steps: 0 or more, less than 1"),
            ("ema_decay", 0 <= self.ema_decay < 1, "0 or more, less than 1"),
            ("epochs", self.epochs >= 0, "0 or more"), ("patience", self.patience >= 0, "0 or more"),
            ("accumulate", self.accumulate >= 1, "at least 1"),
        ):  # fmt: skip
            if not fits:
                raise BudgetError(f"{name} is {getattr(self, name):g}", f"give {needed}")
        if self.precision not in PRECISIONS:
            raise BudgetError(f'unknown precision "{self.precision}"', f"choose one of: {', '.join(PRECISIONS)}")
