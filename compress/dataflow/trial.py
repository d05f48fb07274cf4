"""Trial cuts: does the model's own forward accept smaller layers, and compute what masking promises?

The graph shows the sizes of one trace; a user's code may hold some of them as constants (`x.split(16, 1)`,
`x.view(b, 8, 64)`) or take them from another tensor's shape. All groups are cut in a copy at once; where its forward
fails inside a module whose code may take one size from another, those sizes are tied in modules of that class (see
`coupling`); where that does not help, what fails is found by halving, and kept whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from secateur.compress.channel_map import remove_modules
from secateur.compress.dataflow.attempt import Attempts, Failure, difference, kind_of, outputs, tolerance
from secateur.compress.dataflow.channel_groups import ChannelGroups
from secateur.compress.dataflow.coupling import Coupling
from secateur.compress.dataflow.groups import Groups

Walk = Callable[[Collection[Coupling]], ChannelGroups]
"""The groups, with the sizes in the code of some module classes coupled."""


def settle(walk: Walk, inputs: Any, tasks: Sequence[str]) -> ChannelGroups:
    """The groups, with those that a trial cut proves unusable marked not prunable, and why; and the dead modules
    that a trial shows to be removable."""
    groups, bad = _coupled(walk, inputs, tasks)
    settled = [
        replace(group, why_not=f"a trial cut failed: {bad[group.name]}") if group.name in bad else group
        for group in groups.values()
    ]
    removable = tuple(path for path in groups.dead if _runs_without(groups, (path,), inputs, tasks))
    if len(removable) > 1 and not _runs_without(groups, removable, inputs, tasks):
        removable = ()
    return groups.settled(Groups(settled), removable)


def _coupled(walk: Walk, inputs: Any, tasks: Sequence[str]) -> tuple[ChannelGroups, dict[str, str]]:
    """The groups, with module classes coupled while a trial fails inside of one that is not yet; and those that fail
    however classes are coupled, with the reason."""
    couplings: set[Coupling] = set()
    while True:
        groups, bad = walk(couplings), dict[str, str]()
        attempts = Attempts(groups, inputs, tasks)
        rest = [group.name for group in groups.prunable]
        while failure := attempts(rest):
            if more := _coupling(groups, failure, couplings):
                couplings.add(more)
                break
            gone, why = _failing(groups, attempts, rest, failure)
            bad |= dict.fromkeys(gone, str(why))
            rest = [name for name in rest if name not in bad]
        else:
            return groups, bad


def _coupling(groups: ChannelGroups, failure: Failure, couplings: Collection[Coupling]) -> Coupling | None:
    """How to couple the innermost module around a failure for which there is a way left."""
    path = failure.module
    while True:
        for way in groups.couplable.get(path, ()):
            if way not in couplings:
                return way
        if not path:
            return None
        path = path.rpartition(".")[0]


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
