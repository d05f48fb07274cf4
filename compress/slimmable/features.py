"""Features: where the encoder ends and decoders begin, and how to read those tensors while the user's code runs.

The graph says which values are shared and read by a decoder; running the module once with hooks finds the module call
that returns each. Values that no module returns are left out. The features of a smaller width are drawn to those of
the full one (configuration-invariant distillation, ICCV 2023; where the number of channels differs, to the first,
which are the most important):    mean over features of ‖F_c - F*[kept]‖² / (mean F*² + ε)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from secateur.compress.dataflow.replay import Replay
from secateur.compress.recording import recording
from secateur.compress.slimmable.space import Configuration, Space
from secateur.core.inputs import call_model, takes_task
from secateur.core.predict import evaluating
from secateur.profiles.count import outputs_of
from secateur.profiles.graph import Graph, ancestors

EPSILON = 1e-6


@dataclass(frozen=True)
class Feature:
    """What a module returned in one of its calls, with the components along its labelled dimensions."""

    path: str
    call: int
    components: Mapping[int, np.ndarray[Any, Any]]


def find_features(space: Space, inputs: Any) -> tuple[Feature, ...]:
    """The encoder's features of a model that is called once for all tasks; none of one called task by task, or of one
    with a single task."""
    groups = space.groups
    if takes_task(groups.model) or len(space.tasks) < 2:
        return ()
    graph = groups.graphs[0]
    nodes = _border(graph, space.tasks)
    with torch.no_grad():
        _, values = Replay(graph, groups.model).run(inputs, {}, wanted=nodes)
    with evaluating(groups.model), recording(groups.model, [path for path, _ in groups.model.named_modules()]) as seen:
        call_model(groups.model, inputs)
    found = []
    for node in nodes:
        labels = groups.labels.get(node, {})
        place = _place_of(values[node], seen)
        if place is not None and isinstance(labels, dict) and labels:
            components = {dim: groups.components.of[channels] for dim, channels in labels.items()}
            found.append(Feature(*place, components))
    return tuple(found)


def _border(graph: Graph, tasks: Sequence[str]) -> list[Node]:
    """Calls that several tasks depend on and that a call of one task alone reads."""
    needed: dict[Node, int] = {}
    for task in tasks:
        for node in ancestors(outputs_of(graph, task)):
            needed[node] = needed.get(node, 0) + 1
    return [
        node
        for node in graph.compute
        if needed.get(node, 0) > 1 and any(needed.get(user, 0) == 1 for user in node.users)
    ]


def _place_of(value: Any, seen: Sequence[tuple[str, Any]]) -> tuple[str, int] | None:
    """The innermost module call that returned a value: the first one."""
    for place, (path, output) in enumerate(seen):
        both = isinstance(value, Tensor) and isinstance(output, Tensor)
        if both and output.shape == value.shape and torch.equal(output, value):
            return path, sum(earlier == path for earlier, _ in seen[:place])
    return None


def distance(
    small: Sequence[Tensor], full: Sequence[Tensor], features: Sequence[Feature], space: Space, at: Configuration
) -> Tensor:
    """How far a configuration's features are from those of the full width; 0 without features."""
    gone = space.groups.gone(space.keep(at))
    terms = []
    for one, other, feature in zip(small, full, features, strict=True):
        kept = other.detach()
        for dim, components in feature.components.items():
            alive = np.flatnonzero(~np.isin(components, gone))
            if len(alive) < len(components):
                kept = kept.index_select(dim, torch.from_numpy(alive).to(kept.device))
        terms.append((one - kept).float().square().mean() / (kept.float().square().mean() + EPSILON))
    return torch.stack(terms).mean() if terms else torch.zeros(())
