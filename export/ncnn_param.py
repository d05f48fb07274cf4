"""ncnn's graph as text: one operator a line, read and rewritten without ncnn.

7767517
2 2
Input        in0     0 1 in0
InnerProduct linear  1 1 in0 out0 0=5 1=1 2=60

A line is the operator's type and name, how many blobs it takes and gives, their names, and its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from secateur.core.errors import ExportError

MAGIC = "7767517"


@dataclass(frozen=True)
class Operator:
    """One line of the graph."""

    kind: str
    name: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    parameters: tuple[str, ...]

    def renamed(self, names: Mapping[str, str]) -> Operator:
        """The same operator between blobs of other names."""
        return replace(
            self,
            takes=tuple(names.get(blob, blob) for blob in self.takes),
            gives=tuple(names.get(blob, blob) for blob in self.gives),
        )

    def line(self) -> str:
        fields = (f"{self.kind:<24} {self.name:<24} {len(self.takes)} {len(self.gives)}", *self.takes, *self.gives)
        return " ".join((*fields, *self.parameters))


def read_param(path: Path) -> list[Operator]:
    """The operators of a file.

    Raises:
        ExportError: missing, truncated, or no graph of ncnn.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines[0].strip() != MAGIC:
            raise ValueError("its first line is another one")
        operators = [_operator(line) for line in lines[2:] if line.strip()]
        count, blobs = map(int, lines[1].split())
        if count != len(operators) or blobs != sum(len(each.gives) for each in operators):
            raise ValueError("it does not hold as many operators as it says")
        _check_order(operators)
        return operators
    except (OSError, ValueError, IndexError) as error:
        raise ExportError(
            f"{path} is no graph of ncnn: {error}", "the file may be truncated: export it again"
        ) from error


def write_param(operators: list[Operator], path: Path) -> None:
    """Write a file that `read_param` and ncnn read."""
    blobs = sum(len(each.gives) for each in operators)
    lines = [MAGIC, f"{len(operators)} {blobs}", *(each.line() for each in operators)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def name_blobs(operators: list[Operator], names: Mapping[str, str]) -> list[Operator]:
    """The graph with some blobs renamed; an inner blob that happens to bear one of the new names makes way.

    Raises:
        ExportError: a blob that is not there.
    """
    blobs = {blob for each in operators for blob in each.gives}
    if missing := set(names) - blobs:
        raise ExportError(f"the converter left out {sorted(missing)[0]} of the graph", "report this model")
    mapping, taken = dict(names), blobs | set(names.values())
    for blob in sorted(blobs - set(names)):
        if blob in names.values():
            fresh = blob
            while fresh in taken:
                fresh += "_"
            taken.add(fresh)
            mapping[blob] = fresh
    return [each.renamed(mapping) for each in operators]


def _operator(line: str) -> Operator:
    fields = line.split()
    takes, gives = int(fields[2]), int(fields[3])
    if takes < 0 or gives < 0 or len(fields) < 4 + takes + gives:
        raise ValueError(f'a line ends early: "{line.strip()[:80]}"')
    middle, end = 4 + takes, 4 + takes + gives
    return Operator(fields[0], fields[1], tuple(fields[4:middle]), tuple(fields[middle:end]), tuple(fields[end:]))


def _check_order(operators: list[Operator]) -> None:
    """Every blob is made once, before it is used: what ncnn itself takes for granted."""
    made: set[str] = set()
    for each in operators:
        if missing := set(each.takes) - made:
            raise ValueError(f"{each.name} takes {sorted(missing)[0]}, which nothing before it gives")
        if twice := set(each.gives) & made:
            raise ValueError(f"{sorted(twice)[0]} is given twice")
        made.update(each.gives)
