"""Routing tables: of single samples, which experts each token goes through. What an accelerator that works expert by
expert is predicted from.

tables = routing_tables(model, look_for(model), workload.test, "depth", samples=64)
tables[0]["blocks.1.mlp"][3]          experts of the fourth token of the first sample
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from secateur.compress.experts.layers import ExpertLayer
from secateur.compress.experts.usage import call, watching
from secateur.core.errors import DataError
from secateur.core.experts import route
from secateur.core.inputs import batch_size
from secateur.core.predict import evaluating
from secateur.core.task import Batch

Tokens = list[list[int]]
"""Of each token its experts, by the router's numbers."""


def routing_tables(
    model: nn.Module, layers: Sequence[ExpertLayer], batches: Iterable[Batch], task: str, samples: int
) -> list[dict[str, Tokens]]:
    """The tables of the first samples under one task: path of each layer that ran → its tokens.

    Raises:
        DataError: there is no sample.
        ModelError: a router that does not fit its experts, or gives NaN.
    """
    found: list[dict[str, Tokens]] = []
    chosen: dict[str, Tensor] = {}

    def note(layer: ExpertLayer, x: Tensor, scores: Tensor) -> None:
        known = scores.flatten(0, -2).index_select(-1, layer.kept)
        chosen[layer.path] = layer.kept[route(known, layer.top_k)[1]]

    with evaluating(model), watching(layers, task, note):
        for inputs, _ in batches:
            call(model, inputs, task)
            size = batch_size(inputs)
            split = {path: tokens.view(size, -1, tokens.shape[-1]).tolist() for path, tokens in chosen.items()}
            found += [{path: tokens[sample] for path, tokens in split.items()} for sample in range(size)]
            if len(found) >= samples:
                break
    if not found:
        raise DataError("there is no sample to route", "give the test split at least one batch")
    return found[:samples]
