"""What a command of a test gives back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

QUICK = ("--rounds", "2", "--epochs", "2", "--drop", "90%")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    def refused(self, code: int, *words: str) -> None:
        """One line that says what is wrong and one that says what to do, nothing on stdout, no traceback."""
        begins = (": compressing to ", ": extracting ")
        lines = [line for line in self.err.splitlines() if not any(said in line for said in begins)]
        assert self.code == code, self.err
        assert self.out == ""
        assert [line.split(": ")[0] for line in lines] == ["error", "hint"], self.err
        for word in words:
            assert word in self.err


Secateur = Callable[..., Outcome]
