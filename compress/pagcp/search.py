"""How many channels of one group can go: the largest accepted candidate, for as few evaluations as it takes.

As losses grow with the channels removed, a first chunk of samples guesses where the limit is passed; the guess is then
proven: the candidate below it is accepted by the oracle, the one above it refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from secateur.compress.dataflow.groups import Index
from secateur.compress.pagcp.oracle import Losses, Session, Verdict


def rise(losses: Losses, base: Losses) -> float:
    """max_t L_t / B_t - 1."""
    return max(losses[task] / max(value, 1e-12) for task, value in base.items()) - 1


@dataclass
class Search:
    """The search over one group's candidates `counts`: (ratio, channels removed), ascending."""

    session: Session
    keep_without: Callable[[int], Index]
    limits: Losses
    base: Losses
    counts: list[tuple[float, int]]
    check_monotone: bool
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    not_monotone: bool = False

    def keep(self, index: int) -> Index:
        """The channels that a candidate leaves."""
        return self.keep_without(self.counts[index][1])

    def bisect(self) -> int | None:
        """The largest accepted candidate, or None, if losses grow with the channels removed."""
        found = self._prove(self._guess()) if self.counts else -1
        self.not_monotone = self._falls_somewhere()
        if self.not_monotone and self.check_monotone:
            return self.sweep()
        return found if found >= 0 else None

    def sweep(self) -> int | None:
        """In order until the first refusal: the published search."""
        accepted = list(itertools.takewhile(self._accepted, range(len(self.counts))))
        return accepted[-1] if accepted else None

    def _guess(self) -> int:
        """The bracket doubles from the smallest removal, since most groups accept little, and is then halved."""
        low, high, index = -1, len(self.counts), 0
        while high - low > 1:
            passed = self.session.guess(self.keep(index).tolist(), self.limits)
            low, high = (index, high) if passed else (low, index)
            index = min(2 * index + 2, high - 1) if high == len(self.counts) else (low + high) // 2
        return low

    def _prove(self, guess: int) -> int:
        """Step away from the guess, ever further, until an accepted and a refused candidate stand side by side."""
        low, high, index, stride = -1, len(self.counts), max(guess, 0), 1
        while high - low > 1:
            accepted = self._accepted(index)
            low, high = (index, high) if accepted else (low, index)
            bracketed = low >= 0 and high < len(self.counts)
            index = (low + high) // 2 if bracketed and stride > 1 else index + stride if accepted else index - stride
            index, stride = min(max(index, low + 1), high - 1), 2 * stride
        return low

    def _accepted(self, index: int) -> bool:
        if index not in self.verdicts:
            self.verdicts[index] = self.session.judge(self.keep(index).tolist(), self.limits)
        return self.verdicts[index].accepted

    def _falls_somewhere(self) -> bool:
        """Whether the criterion was seen to fall while more channels were removed."""
        worst = [rise(self.verdicts[index].losses, self.base) for index in sorted(self.verdicts)]
        return any(later < earlier - 1e-6 for earlier, later in itertools.pairwise(worst))
