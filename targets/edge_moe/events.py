"""The same by events: a loader and a compute unit that wait for each other over a few buffers, as hardware does.

It knows nothing of the closed form. Both must agree; tests hold them against each other on random programs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from secateur.targets.edge_moe.program import Stage


@dataclass
class _Machine:
    stages: Sequence[Stage]
    buffers: int
    events: list[tuple[int, int, str]] = field(default_factory=list)
    now: int = 0
    loaded: int = 0  # stages whose weights are there
    computed: int = 0
    loading: bool = False
    computing: bool = False

    def run(self) -> int:
        """Cycle of the last event."""
        self._start()
        while self.events:
            self.now, _, kind = heapq.heappop(self.events)
            if kind == "load":
                self.loading, self.loaded = False, self.loaded + 1
            else:
                self.computing, self.computed = False, self.computed + 1
            self._start()
        return self.now

    def _start(self) -> None:
        """Let each unit begin what it can: the loader needs a free buffer, the compute unit its weights."""
        if not self.loading and self.loaded < len(self.stages) and self.loaded - self.computed < self.buffers:
            self.loading = True
            self._after(self.stages[self.loaded].load, "load")
        if not self.computing and self.computed < self.loaded:
            self.computing = True
            self._after(self.stages[self.computed].compute, "compute")

    def _after(self, cycles: int, kind: str) -> None:
        heapq.heappush(self.events, (self.now + cycles, len(self.events), kind))


def simulate(stages: Sequence[Stage], *, double_buffer: bool = True) -> int:
    """Cycles of a program, event by event."""
    return _Machine(stages, 2 if double_buffer else 1).run()
