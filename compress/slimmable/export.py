"""What the exporters of an elastic model ask for: static models of configurations, and how their weights are cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from secateur.compress.slimmable.elastic import ElasticModel
from secateur.compress.slimmable.result import Statistics, statistics_at
from secateur.core.elastic import Table
from secateur.core.errors import BundleError

Kept = Mapping[str, Mapping[int, np.ndarray[Any, Any]]]


class Configurations:
    """The exported configurations of an elastic model, as static models with the statistics that were kept."""

    def __init__(self, elastic: ElasticModel, table: Table, statistics: Statistics) -> None:
        self.elastic, self.table, self.statistics = elastic, table, statistics

    def __call__(self, row: int, chosen: Mapping[str, int]) -> tuple[nn.Module, Kept]:
        """(the static model, weight → kept indices of the full one).

        Raises:
            BundleError: the bundle kept no statistics of this configuration.
        """
        at = self.table.configuration(row, chosen)
        statistics = statistics_at(self.statistics, self.elastic.space, row, chosen)
        if statistics is None:
            raise BundleError(f"no statistics were kept of encoder row {row}", "compress again")
        return self.elastic.static(at, statistics), self.elastic.space.channel_map(at).kept
