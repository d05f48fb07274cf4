"""Compensation: after a cut, the layers that read fewer channels are solved to compute what they computed before.

    min_W  Σ_n ‖y_n - W·x_n - b‖² + r·‖W - W_0‖²

y_n is the layer's output before the cut, x_n its input in the model as cut and compensated so far, so that a layer also
mends what is left of the errors before it (as in He, Zhang and Sun, ICCV 2017). Then the statistics of batch norms are
estimated anew. A few seconds, no labels, no gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.compress.channel_map import ChannelMap
from secateur.compress.least_squares import least_squares
from secateur.compress.pagcp.windows import Rows, observe, readable
from secateur.core.inputs import batch_size
from secateur.core.modes import averaging
from secateur.core.predict import evaluating, predict
from secateur.core.task import Batch, Task

SAMPLES = 128
"""Samples of the least squares; the statistics take all that there are."""
RIDGE = 0.01
"""r, as a share of the mean square of the inputs."""


def compensate(
    model: nn.Module, before: nn.Module, cut: ChannelMap, batches: Sequence[Batch], tasks: Sequence[Task]
) -> None:
    """Mend a cut model in place.

    Args:
        before: the model that the cut was made on; not changed.
        batches: of which only the inputs are used.
    """
    solve_readers(model, before, cut, _few(batches), tasks)
    estimate_statistics(model, batches, tasks)


def solve_readers(
    model: nn.Module, before: nn.Module, cut: ChannelMap, batches: Sequence[Batch], tasks: Sequence[Task]
) -> None:
    """Least squares of every layer that reads fewer channels than before, in the order of execution."""
    modules = dict(model.named_modules())
    paths = [
        path
        for path in modules
        if 1 in cut.kept.get(f"{path}.weight", {}) and readable(modules[path]) and path in dict(before.named_modules())
    ]
    wanted: dict[str, list[Tensor]] = {}  # filled in the order of execution

    def note(path: str, rows: Rows) -> None:
        kept = cut.kept[f"{path}.weight"].get(0)
        outputs = rows.outputs if kept is None else rows.outputs[:, torch.from_numpy(kept).to(rows.outputs.device)]
        wanted.setdefault(path, []).append(outputs)

    observe(before, paths, batches, tasks, note)
    for path, outputs in wanted.items():
        if len(outputs) == len(batches):  # called once a run
            _solve(model, path, outputs, batches, tasks)


def _solve(
    model: nn.Module, path: str, outputs: Sequence[Tensor], batches: Sequence[Batch], tasks: Sequence[Task]
) -> None:
    inputs: list[Tensor] = []
    observe(model, [path], batches, tasks, lambda _, rows: inputs.append(rows.inputs.flatten(1)), only=True)
    layer = model.get_submodule(path)
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    if any(len(x) != len(y) for x, y in zip(inputs, outputs, strict=True)):
        return
    weight, shift = least_squares(
        torch.cat(list(inputs)), torch.cat(list(outputs)), layer.weight.flatten(1), layer.bias, RIDGE
    )
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if layer.bias is not None and shift is not None:
            layer.bias.copy_(shift)


def estimate_statistics(model: nn.Module, batches: Sequence[Batch], tasks: Sequence[Task]) -> None:
    """The running statistics of batch norms as the mean over batches; everything else runs in evaluation mode. Norms
    that do not run there, and those that see a single value for each channel, keep theirs."""
    norms = _that_see_several(model, batches, tasks)
    with evaluating(model), averaging(norms):
        for norm in norms:
            norm.reset_running_stats()
        for inputs, _ in batches:
            predict(model, inputs, tasks)


def _that_see_several(model: nn.Module, batches: Sequence[Batch], tasks: Sequence[Task]) -> list[_BatchNorm]:
    """The batch norms that run on every batch, on more than one value for each channel."""
    seen: dict[nn.Module, int] = {}

    def note(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        values = args[0].numel() // args[0].shape[1]
        seen[norm] = min(values, seen.get(norm, values))

    norms = [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        with evaluating(model):
            for inputs, _ in (batches[0], batches[-1]):  # the last one may be smaller
                predict(model, inputs, tasks)
    finally:
        for handle in handles:
            handle.remove()
    return [norm for norm in norms if seen.get(norm, 0) > 1]


def _few(batches: Sequence[Batch]) -> Sequence[Batch]:
    return batches[: max(1, SAMPLES // batch_size(batches[0][0]))]
