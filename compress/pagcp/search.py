"""How many channels of one group can go: the largest accepted candidate, for as few evaluations as it takes.

As losses grow with the channels removed, a first chunk of samples guesses where the limit is passed; the two candidates
on either side of it are then looked at until the one is accepted and the other refused, and where more samples say that
the limit is passed elsewhere, the pair moves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from secateur.compress.dataflow.groups import Index
from secateur.compress.pagcp.sampling import Losses
from secateur.compress.pagcp.session import FEWEST_CHUNKS, Limits, Session, Verdict


def rise(losses: Losses, base: Losses) -> float:
    """max_t L_t / B_t - 1."""
    return max(losses[task] / max(value, 1e-12) for task, value in base.items()) - 1


@dataclass
class Search:
    """The search over one group's candidates `counts`: (ratio, channels removed), ascending."""

    session: Session
    keep_without: Callable[[int], Index]
    limits: Limits
    base: Losses
    counts: list[tuple[float, int]]
    check_monotone: bool
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    not_monotone: bool = False
    _kept: dict[int, Index] = field(default_factory=dict)

    def keep(self, index: int) -> Index:
        """The channels that a candidate leaves."""
        if index not in self._kept:
            self._kept[index] = self.keep_without(self.counts[index][1])
        return self._kept[index]

    def bisect(self) -> int | None:
        """The largest accepted candidate, or None, if losses grow with the channels removed."""
        found = self._bracket()
        self.not_monotone = self._falls_somewhere()
        if self.not_monotone and self.check_monotone:
            return self.sweep()
        return found if found >= 0 else None

    def sweep(self) -> int | None:
        """In order until the first refusal: the published search."""
        accepted = list(itertools.takewhile(self._accepted, range(len(self.counts))))
        return accepted[-1] if accepted else None

    def _bracket(self) -> int:
        """The candidate that is accepted while the next one is refused; -1 where the first is."""
        low, high = -1, len(self.counts)
        while high - low > 1:
            index = self._next(low, high)
            self.session.look(self.keep(index).tolist())
            verdict = self.session.verdict(self.keep(index).tolist(), self.limits)
            if verdict is not None:
                self.verdicts[index] = verdict
                low, high = (index, high) if verdict.accepted else (low, index)
        return low

    def _next(self, low: int, high: int) -> int:
        """Which candidate between an accepted and a refused one to look at: a new one while the pair on either side of
        the limit, as far as was seen, is not adjacent; else the lower one of the pair, whose work is the next group's
        start, once both were seen as often as a spread takes."""
        seen = {index: self.session.chunks(self.keep(index).tolist()) for index in range(low + 1, high)}
        seen = {index: chunks for index, chunks in seen.items() if chunks}
        likely = {index for index in seen if self.session.likely(self.keep(index).tolist(), self.limits)}
        above = min(seen.keys() - likely, default=high)
        below = max((index for index in likely if index < above), default=low)
        if above - below > 1:  # most groups accept little, so that a bracket doubles from the smallest removal
            return min(2 * below + 2, above - 1) if above == len(self.counts) else (below + above) // 2
        if below == low or above == high:
            return above if below == low else below
        return above if seen[above] < min(seen[below], FEWEST_CHUNKS) else below

    def _accepted(self, index: int) -> bool:
        if index not in self.verdicts:
            self.verdicts[index] = self.session.judge(self.keep(index).tolist(), self.limits)
        return self.verdicts[index].accepted

    def _falls_somewhere(self) -> bool:
        """Whether the criterion was seen to fall while more channels were removed."""
        worst = [rise(self.verdicts[index].losses, self.base) for index in sorted(self.verdicts)]
        return any(later < earlier - 1e-6 for earlier, later in itertools.pairwise(worst))
