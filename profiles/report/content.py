"""What goes into a report. Only the manifest is needed: a section without data is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from secateur.core.bundle import Manifest, TaskEntry
from secateur.core.costs import Profile
from secateur.core.elastic import Table

Picture = npt.NDArray[np.uint8]


class Layer(Protocol):
    """One layer's count: dotted name, kind of op, FLOPs for one sample."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def flops(self) -> int | None: ...


@dataclass(frozen=True)
class Sample:
    """One sample as pictures: uint8 arrays [H, W, 3] (or [H, W] for grey).

    `tasks` is `{task: {"label": picture, "before": picture, "after": picture}}`; what is not known is left out.
    """

    input: Picture
    tasks: Mapping[str, Mapping[str, Picture]]


@dataclass(frozen=True)
class Report:
    """A compressed bundle and what is known of it.

    Args:
        title: heading and title of the page.
        manifest: of the bundle.
        history: the bundle's history.json, or an empty mapping.
        layers_before, layers_after: counts per layer of the original and of the chosen point.
        profiles: what each target says of the compressed model, unavailable targets among them.
        profiles_before: what the same targets say of the original, matched by target and backend.
        samples: predictions to look at.
        elastic: what the configurations of an elastic model cost and yield.
    """

    title: str
    manifest: Manifest
    history: Mapping[str, Any] = field(default_factory=dict)
    layers_before: Sequence[Layer] = ()
    layers_after: Sequence[Layer] = ()
    profiles: Sequence[Profile] = ()
    profiles_before: Sequence[Profile] = ()
    samples: Sequence[Sample] = ()
    elastic: Table | None = None

    @property
    def tasks(self) -> Sequence[TaskEntry]:
        return self.manifest.tasks

    def before(self, profile: Profile) -> Profile | None:
        """The original's profile on the same target and backend."""
        key = (profile.target, profile.backend)
        return next((each for each in self.profiles_before if (each.target, each.backend) == key), None)
