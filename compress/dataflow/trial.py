"""Trial cuts: does the model's own forward accept smaller layers, and compute what masking promises?

The graph shows the sizes of one trace; a user's code may hold some of them as constants (`x.split(16, 1)`,
`x.view(b, 8, 64)`) or take them from another tensor's shape. All groups are cut in a copy at once; where its forward
fails inside a module whose code may take one size from another, those sizes are tied in modules of that class (see
`coupling`); where it computes something else, numbers are looked for that the code computes from sizes (see `scales`);
where neither helps, what fails is found by halving. It is kept whole, unless it passes once an attribute stays that was
taken to count channels, as it is as large by coincidence.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np

from secateur.compress.channel_map import remove_modules
from secateur.compress.dataflow.attempt import Attempts, Failure, difference, kind_of, outputs, tolerance
from secateur.compress.dataflow.attributes import Constant, constant_of
from secateur.compress.dataflow.channel_groups import ChannelGroups
from secateur.compress.dataflow.coupling import Coupling
from secateur.compress.dataflow.groups import Groups
from secateur.compress.dataflow.scales import Scale

Walk = Callable[[Collection[Coupling], Sequence[Scale], Collection[Constant]], ChannelGroups]
"""The groups, with the sizes in the code of some module classes coupled, numbers that follow sizes, and attributes that
count no channels."""


def settle(walk: Walk, inputs: Any, tasks: Sequence[str]) -> ChannelGroups:
    """The groups, with those that a trial cut proves unusable marked not prunable, and why; and the dead modules
    that a trial shows to be removable."""
    groups, bad = _coupled(walk, inputs, tasks)
    settled = [
        replace(group, why_not=f"a trial cut failed: {bad[group.name]}") if group.name in bad else group
        for group in groups.values()
    ]
    return groups.settled(Groups(settled), _removable(groups, inputs, tasks))


def _coupled(walk: Walk, inputs: Any, tasks: Sequence[str]) -> tuple[ChannelGroups, dict[str, str]]:
    """The groups, with module classes coupled while a trial fails inside of one for which that helps; and those that
    fail however classes are coupled, with the reason."""
    state = _Trial(walk, inputs, tasks)
    bad: dict[str, str] = {}
    while failure := state.fails(bad):
        better = (state.scaled(bad) if failure.differs else None) or _better(state, failure, bad)
        if better is not None:
            state, bad = better, {}
        else:
            gone, why = _failing(state.groups, state.attempts, state.rest(bad), failure)
            if (freed := _freed(state, gone)) is not None:
                state, bad = freed, {}
            else:
                bad |= dict.fromkeys(gone, str(why))
    return state.groups, bad


@dataclass
class _Trial:
    """The groups of a model with some module classes coupled and some attributes constant, and trial cuts of them."""

    walk: Walk
    inputs: Any
    tasks: Sequence[str]
    couplings: frozenset[Coupling] = frozenset()
    scales: tuple[Scale, ...] = ()
    constants: frozenset[Constant] = frozenset()

    def __post_init__(self) -> None:
        self.groups = self.walk(self.couplings, self.scales, self.constants)
        self._looked = False
        self.attempts = Attempts(self.groups, self.inputs, self.tasks)

    def rest(self, bad: Collection[str]) -> list[str]:
        return [group.name for group in self.groups.prunable if group.name not in bad]

    def fails(self, bad: Collection[str]) -> Failure | None:
        """What goes wrong when all groups are cut but for these."""
        return self.attempts(self.rest(bad))

    def coupled(self, coupling: Coupling) -> _Trial:
        return replace(self, couplings=self.couplings | {coupling})

    def scaled(self, bad: Collection[str]) -> _Trial | None:
        """With numbers that follow sizes and were not known to, as a cut of all groups but these shows them; None where
        it shows no more."""
        if self._looked:
            return None
        self._looked = True
        known = {(scale.node, scale.place) for scale in self.scales}
        fresh = [each for each in self.attempts.scales(self.rest(bad)) if (each.node, each.place) not in known]
        return replace(self, scales=(*self.scales, *fresh)) if fresh else None

    @property
    def reach(self) -> int:
        """How many dimensions of parameters can be cut."""
        return len({(member.parameter, member.dim) for group in self.groups.prunable for member in group.members})

    @property
    def places(self) -> int:
        """In how many places the model can be cut."""
        return sum(group.channels for group in self.groups.prunable)


def _better(state: _Trial, failure: Failure, bad: Collection[str]) -> _Trial | None:
    """With another class coupled, the nearest one to the failure for which there is a way left: in the first way that
    ends this failure and costs no layer and at most half of the places to cut at, or that which costs least."""
    for ways in _ways(state, failure.module):
        found: list[tuple[bool, int, int, _Trial]] = []
        for way in ways:
            trial = state.coupled(way)
            ends = not _alike(trial.fails(bad), failure)
            if ends and trial.reach >= state.reach and 2 * trial.places >= state.places:
                return trial
            found.append((ends, trial.reach, trial.places, trial))
        if found:
            return max(found, key=itemgetter(0, 1, 2))[3]
    return None


def _freed(state: _Trial, names: Sequence[str]) -> _Trial | None:
    """With an attribute constant that was taken to count channels of these groups, if they then pass."""
    groups = state.groups
    gone = groups.components.closure(np.concatenate([groups[name].components for name in names]))
    bound = [binding for binding in groups.bindings if np.isin(binding.components, gone).any()]
    for constant in dict.fromkeys(constant_of(binding, groups.model) for binding in bound):
        trial = replace(state, constants=state.constants | {constant})
        if trial.attempts(names) is None:
            return trial
    return None


def _ways(state: _Trial, path: str) -> Iterator[list[Coupling]]:
    """Ways left to couple modules near a path: itself and those around it, innermost first, then what is inside of the
    two around it, where a wrong shape can come from."""
    around = [path]
    while around[-1]:
        around.append(around[-1].rpartition(".")[0])
    couplable = state.groups.couplable
    near = [other for outer in filter(None, around[1:3]) for other in couplable if other.startswith(f"{outer}.")]
    for places in (*([each] for each in around), near):
        ways = [way for place in places for way in couplable.get(place, ()) if way not in state.couplings]
        yield list(dict.fromkeys(ways))


def _alike(one: Failure | None, other: Failure) -> bool:
    """Whether it is the same failure but for the sizes, which no two trials cut alike."""
    return one is not None and one.module == other.module and _sizeless(one) == _sizeless(other)


def _sizeless(failure: Failure) -> str:
    return re.sub(r"\d+", "0", failure.message)


def _failing(
    groups: ChannelGroups, attempts: Attempts, names: Sequence[str], failure: Failure
) -> tuple[list[str], Failure]:
    """Groups that fail, and why. One that makes the smallest failing beginning of the list fail is found by halving;
    groups like it in other blocks share its fate unless they pass on their own."""
    names = _suspects_first(groups, names, failure)
    culprit, why = _first_failing(attempts, names, failure)
    alike = [name for name in names if kind_of(groups[name]) == kind_of(groups[culprit])]
    others = [name for name in alike if name != culprit]
    return ([culprit] if others and attempts(others) is None else alike), why


def _first_failing(attempts: Attempts, names: Sequence[str], failure: Failure) -> tuple[str, Failure]:
    """The last group of the shortest beginning that fails, as far as failing is monotone."""
    low, high = 0, len(names)
    while high - low > 1:
        middle = (low + high) // 2
        found = attempts(names[:middle])
        low, high, failure = (low, middle, found) if found else (middle, high, failure)
    return names[high - 1], failure


def _suspects_first(groups: ChannelGroups, names: Sequence[str], failure: Failure) -> list[str]:
    """Groups with members in the failing module, or in the one around it, come first."""
    place = failure.module.rpartition(".")[0]

    def far(name: str) -> bool:
        return not any(member.parameter.startswith(f"{place}.") for member in groups[name].members)

    return sorted(names, key=far) if place else list(names)


def _removable(groups: ChannelGroups, inputs: Any, tasks: Sequence[str]) -> tuple[str, ...]:
    """The dead modules that the model runs without: all of them, or those that it runs without one by one."""
    if not groups.dead or _runs_without(groups, groups.dead, inputs, tasks):
        return groups.dead
    alone = tuple(path for path in groups.dead if _runs_without(groups, (path,), inputs, tasks))
    return alone if len(alone) < 2 or _runs_without(groups, alone, inputs, tasks) else ()


def _runs_without(groups: ChannelGroups, paths: Sequence[str], inputs: Any, tasks: Sequence[str]) -> bool:
    """Whether the model gives the same outputs, and trains, without some of its dead modules."""
    small = copy.deepcopy(groups.model).eval()
    remove_modules(small, paths)
    whole = groups.mask({})
    try:
        for call in range(len(groups.graphs)):
            pairs = zip(whole(inputs, call).values(), outputs(small, inputs, tasks, call), strict=True)
            if any(not difference(one, other) <= tolerance(one) for one, other in pairs):
                return False
        if groups.trains:
            outputs(small.train(), inputs, tasks, 0)
    except Exception:  # the user's forward may raise anything
        return False
    return True
