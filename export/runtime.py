"""Runtime: an artefact that was loaded and can be called, whichever library executes it.

    with exporter.open(path) as runtime:
        predictor(runtime)(images)["depth"]     # as the torch model is called

A runtime takes and gives numpy arrays. Most formats fix the batch: `predictor` cuts a batch of any size into such
pieces and puts the answers together again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from secateur.export.controller import Controller
from secateur.export.elastic_session import ElasticSession

if TYPE_CHECKING:
    import torch

__all__ = ["Array", "Controller", "ElasticSession", "Runtime", "predictor", "run_batch"]
Array = np.ndarray[Any, Any]


class Runtime(ABC):
    """A loaded artefact. `batch` is the one batch size that it takes, None when it takes any."""

    batch: int | None = None

    @abstractmethod
    def run(self, inputs: Sequence[Array]) -> Mapping[str, Array]:
        """Predictions of every task for one batch: inputs in the model's order, outputs by task.

        Raises:
            ExportError: inputs that the artefact does not take.
        """

    def close(self) -> None:  # noqa: B027 - most runtimes have nothing to give back
        """Give back what was loaded."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def predictor(runtime: Runtime) -> Callable[[Any], dict[str, torch.Tensor]]:
    """The runtime, called like the torch model: with the inputs of a batch, whose first dimension is the batch."""

    def predict(inputs: Any) -> dict[str, torch.Tensor]:
        import torch

        from secateur.core.inputs import tensors

        arrays = [value.detach().cpu().numpy() for value in tensors(inputs)]
        outputs = run_batch(runtime, arrays)
        return {task: torch.from_numpy(value) for task, value in outputs.items()}

    return predict


def run_batch(runtime: Runtime, arrays: Sequence[Array]) -> dict[str, Array]:
    """Run a batch of any size: in pieces of the runtime's batch, the last one filled up with its last sample."""
    size = runtime.batch
    count = max((len(value) for value in arrays if value.ndim), default=0)
    if size is None or count == size:
        return dict(runtime.run(arrays))
    pieces = []
    for start in range(0, count, size):
        chosen = np.minimum(np.arange(start, start + size), count - 1)
        piece = runtime.run([value[chosen] if value.ndim and len(value) == count else value for value in arrays])
        pieces.append({task: np.array(value) for task, value in piece.items()})
    return {task: np.concatenate([piece[task] for piece in pieces])[:count] for task in pieces[0]} if pieces else {}
