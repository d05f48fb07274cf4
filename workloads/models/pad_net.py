"""PAD-Net: tasks predict once from shared features, tell one another what they saw, and predict again.

Xu, Ouyang, Wang and Sebe, PAD-Net (CVPR 2018), with the attention-guided distillation (module C).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from secateur.workloads.models.blocks import BasicBlock, TaskOutputs, Trunk, resized
from secateur.workloads.models.distillation import Distillation, InitialPredictions


class PADNet(nn.Module):
    """[N, 3, H, W] → {task: [N, outputs, H, W]}; while training also "initial": {task: the first predictions}.

    Args:
        tasks: those that are asked for.
        helpers: further tasks that only are predicted first, to help the others.
    """

    def __init__(
        self, tasks: TaskOutputs, widths: Sequence[int], width: int, helpers: TaskOutputs | None = None, blocks: int = 2
    ) -> None:
        super().__init__()
        everything = tasks | (helpers or {})
        self.trunk = Trunk(widths, blocks)
        self.initial = InitialPredictions(everything, widths[-1], width)
        self.distil = Distillation(tasks, width, everything)
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(BasicBlock(width, width), nn.Conv2d(width, outputs, 1))
                for task, outputs in tasks.items()
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor | dict[str, Tensor]]:
        features, initial = self.initial(self.trunk(x)[-1])
        told = self.distil(features)
        out: dict[str, Tensor | dict[str, Tensor]] = {
            task: resized(head(told[task]), x) for task, head in self.heads.items()
        }
        if self.training:
            out["initial"] = {task: resized(prediction, x) for task, prediction in initial.items()}
        return out
