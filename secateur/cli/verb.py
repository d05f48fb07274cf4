"""A command of the line is a function that returns an Answer; run.py prints it, or the error.

@verb(app)
def targets() -> Answer: ...
"""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.core.errors import SecateurError

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and every warning.")]


@dataclass(frozen=True)
class Answer:
    """What a command found: a document for machines, a way to show it to people, and what kept it from being a full
    success, whose exit code is then the command's."""

    document: dict[str, Any]
    show: Callable[[Console], None]
    error: SecateurError | None = None


Verb = Callable[..., Answer]


def verb(app: typer.Typer) -> Callable[[Verb], Verb]:
    """Register a function as the command of its name. `--json` and `--debug` are added to each; they are obeyed where
    the answer is printed, so the function does not see them."""

    def register(function: Verb) -> Verb:
        @functools.wraps(function)
        def command(json: bool, debug: bool, **values: Any) -> Answer:
            return function(**values)

        signature = inspect.signature(function, eval_str=True)
        common = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for name, kind in (("json", Json), ("debug", Debug))
        ]
        parameters = [*signature.parameters.values(), *common]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(function.__name__)(command)
        return function

    return register


def typed(context: typer.Context) -> str:
    """The command as the user typed it."""
    return shlex.join(["secateur", *context.obj])
