"""Settings of a slimmable run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from secateur.compress.slimmable.stages import WIDTHS, Rule
from secateur.compress.training.recipe import Recipe
from secateur.core.errors import BudgetError


@dataclass(frozen=True)
class Settings:
    """How to make a model elastic, train it, and tabulate its configurations.

    Args:
        widths, per_group, round_to, fixed, neck, stream: where widths may change; see `stages.Rule`.
        order: which channels come first: "l1" of the weights that read them, "taylor", or "none".
        private_norms: statistics and parameters of its own for each width of a normalisation layer ("switchable");
            otherwise they are shared, and statistics are recalibrated for each configuration.
        epochs, lr, weight_decay, clip, ema_decay, warmup: of training, which starts from the trained weights.
        accumulate: batches whose gradients make one step (times the number of processes).
        random: configurations a step draws besides the largest and the smallest (Yu and Huang, 2019: the sandwich).
        output_distillation: weight of the largest configuration's outputs as teacher of the others.
        original_distillation: weight of the original model's outputs as teacher of the largest configuration.
        feature_distillation: weight of the configuration-invariant distillation of encoder features.
        concentration: of the Dirichlet distribution that task preferences are drawn from; larger is more even.
        recalibration_batches: of training data, for statistics.
        calibration_samples: that a configuration is judged on; None for all.
        rows: encoder configurations that the table holds at most, uniform ones aside, which are there in any case; all
            are tabulated where they are not more.
        decoder_rows: as `rows`, for each decoder.
        exported: encoder configurations that the exported files can run at most; the smallest and the largest always.
        half: round the trained weights to half precision, and store them so: half the size.
    """

    widths: tuple[float, ...] = WIDTHS
    per_group: bool = False
    round_to: int = 8
    fixed: tuple[str, ...] = ()
    neck: bool = True
    stream: bool = False
    order: str = "l1"
    private_norms: bool = False
    epochs: int = 12
    lr: float = 3e-3
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema_decay: float = 0.99
    warmup: float = 0.05
    accumulate: int = 1
    random: int = 2
    output_distillation: float = 1.0
    original_distillation: float = 1.0
    feature_distillation: float = 0.5
    concentration: float = 2.0
    recalibration_batches: int = 4
    calibration_samples: int | None = 256
    rows: int = 64
    decoder_rows: int = 16
    exported: int = 12
    half: bool = False

    def __post_init__(self) -> None:
        for name in ("accumulate", "rows", "decoder_rows", "exported", "recalibration_batches"):
            if getattr(self, name) < 1:
                raise BudgetError(f"{name} is {getattr(self, name)}", "give at least 1")
        for name in ("epochs", "random", "output_distillation", "original_distillation", "feature_distillation"):
            if getattr(self, name) < 0:
                raise BudgetError(f"{name} is {getattr(self, name)}", "give 0 or more")
        if not self.concentration > 0:
            raise BudgetError(f"concentration is {self.concentration:g}", "give more than 0")
        self.recipe(self.epochs)
        _ = self.rule

    def recipe(self, epochs: int) -> Recipe:
        """How one configuration is fine-tuned by itself, which has learnt before: more gently than all together."""
        return Recipe(
            epochs, min(self.lr, Recipe.lr), self.weight_decay, self.original_distillation, self.clip, self.ema_decay,
            self.warmup,
        )  # fmt: skip

    @property
    def rule(self) -> Rule:
        return Rule(self.widths, self.per_group, self.round_to, self.fixed, self.neck, self.stream)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Settings:
        """Settings from a manifest; what this version does not know is left out."""
        known: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in document.items()}
        return cls(**{key: each for key, each in known.items() if key in cls.__dataclass_fields__})

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"widths": list(self.widths), "fixed": list(self.fixed)}
