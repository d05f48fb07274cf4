"""Restoring: what a round took beyond its limits goes back to where it helps most.

The last cut of a round overshoots by up to a step, and cuts that were cheap one by one can turn out dear together. Each
group that lost channels in the round is asked what the losses fall by when a step of them comes back; the largest fall
per cost goes first, for as long as the limits hold. Steps that do not help now go last: fine-tuning puts them to use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.compress.dataflow.groups import Index
from secateur.compress.pagcp.saliency import lowest
from secateur.compress.pagcp.sampling import Standing, values
from secateur.compress.pagcp.sequence import Kept, Sequence

CHUNKS = 32
"""Chunks of calibration data that a step back is looked at on."""


@dataclass(frozen=True)
class _Step:
    """One step back of one group: the channels that it then keeps, what is known of the losses, and the fall per
    cost."""

    keep: Index
    standing: Standing
    worth: float


def restore(sequence: Sequence, before: Kept) -> Kept:
    """The choice of channels of a sequence after giving back, nowhere more than there was `before`."""
    kept, standing = sequence.kept, sequence.standing
    steps = {name: _step_back(sequence, kept, standing, before, name) for name in kept}
    while True:
        open_steps = {name: step for name, step in steps.items() if step and _fits(sequence, kept, name, step.keep)}
        name = max(open_steps, key=lambda each: open_steps[each].worth, default="")
        if not name:
            return kept
        kept, standing = {**kept, name: open_steps[name].keep}, open_steps[name].standing
        steps[name] = _step_back(sequence, kept, standing, before, name)


def _step_back(sequence: Sequence, kept: Kept, standing: Standing, before: Kept, name: str) -> _Step | None:
    """None where there is nothing to give back, or no room for it."""
    keep = _larger(sequence, kept, before, name)
    if keep is None or not _fits(sequence, kept, name, keep):
        return None
    session = sequence.oracle.at(kept, name, standing)
    found = session.peek(keep.tolist(), CHUNKS)
    session.close(None)
    cost = sequence.target.cost(_widths(sequence, kept), _widths(sequence, {**kept, name: keep}))
    losses = values(session.standing())
    fall = sum((losses[task] - loss) / sequence.weight(task) for task, loss in values(found).items())
    return _Step(keep, found, fall / max(cost, 1e-12))


def _larger(sequence: Sequence, kept: Kept, before: Kept, name: str) -> Index | None:
    """What a group keeps when its most salient lost channels come back, up to the next count."""
    count, lost = len(kept[name]), np.setdiff1d(before[name], kept[name])
    if not len(lost):
        return None
    scores = sequence.scores(name, {**kept, name: before[name]})
    back = min(sequence.next_count(name, count), len(before[name])) - count
    gone = lost[lowest(scores[lost], len(lost) - back)]
    return np.setdiff1d(before[name], gone)


def _fits(sequence: Sequence, kept: Kept, name: str, keep: Index) -> bool:
    return sequence.target.met(_widths(sequence, {**kept, name: keep}))


def _widths(sequence: Sequence, kept: Kept) -> np.ndarray:
    return sequence.costs.widths({name: len(channels) for name, channels in kept.items()})
