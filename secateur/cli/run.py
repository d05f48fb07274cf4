"""Run one command: print its answer, or its error as one line with a hint, and give the exit code.

0 done · 1 unexpected · 2 the user's input is wrong · 3 budget not met · 4 a target or an extra is missing · 130 stopped
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer

from secateur.cli.blame import users_failure
from secateur.cli.verb import Answer
from secateur.core.errors import OutputError, SecateurError, StoppedError

UNEXPECTED, STOPPED = 1, StoppedError.exit_code
THREADS_SECONDS = 5.0
NARROWEST = 40
"""Columns of a table, whatever the terminal says of itself: COLUMNS=0 would show nothing."""


def run(app: typer.Typer, args: Sequence[str]) -> int:
    """The exit code of `secateur ARGS`."""
    as_json, debug = "--json" in args, "--debug" in args
    _open_closed_streams()
    try:
        with _stoppable(), _one_line_warnings(debug), _no_other_output(as_json):
            result = app(list(args) or ["--help"], standalone_mode=False, obj=list(args), prog_name="secateur")
        if result == STOPPED:
            raise KeyboardInterrupt
        return _answer(result, as_json) if isinstance(result, Answer) else int(result or 0)
    except BrokenPipeError:  # nobody reads on: `secateur ... | head`
        _drop_output()
        return UNEXPECTED
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if debug:
            traceback.print_exc()
        return _refuse(_clear(error), as_json)


def leave(code: int) -> NoReturn:
    """End the process. Threads of the user's own code that are no daemons get a while to finish, not for ever."""
    until = time.monotonic() + THREADS_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                _show_warning(f'a thread of the workload\'s code, "{thread.name}", still runs; it is not waited for')
                atexit._run_exitfuncs()
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(OSError, ValueError):
                        stream.flush()
                os._exit(code)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Whoever starts this may have closed its streams (`>&-`, a daemon), or a workload's code has: what is said there
    is said to nobody."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None or getattr(sys, name).closed:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - as long as the process lives


def _drop_output() -> None:
    """What stands in the buffer of stdout and cannot be written, so that Python does not say so at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _answer(answer: Answer, as_json: bool) -> int:
    _tolerate_narrow_encodings()
    if as_json:
        _print_json({**answer.document, **(answer.error.as_json() if answer.error else {})})
    else:
        from rich.console import Console

        console = Console(highlight=False, markup=False, emoji=False)
        console.width = max(console.width, NARROWEST)
        try:
            answer.show(console)
        except SystemExit:  # rich's answer to a reader that went away
            return UNEXPECTED
    sys.stdout.flush()
    if answer.error is None:
        return 0
    if not as_json:
        _show_error(answer.error)
    return answer.error.exit_code


def _refuse(error: SecateurError, as_json: bool) -> int:
    _open_closed_streams()
    try:
        if as_json:
            _print_json(error.as_json())
    except OSError:
        _drop_output()
        as_json = False
    if not as_json:
        _tolerate_narrow_encodings()
        _show_error(error)
    return error.exit_code


class _UsageError(SecateurError):
    """The command line itself is wrong."""

    kind = "usage"


class _UnexpectedError(SecateurError):
    """A bug, or a mistake in the user's own code that no check foresaw."""

    kind = "unexpected"
    exit_code = UNEXPECTED


def _clear(error: BaseException) -> SecateurError:
    """Any error as one that says what to do."""
    if isinstance(error, SecateurError):
        return error
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return StoppedError("stopped; what stands at the output is whole")
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        return _UsageError(error.format_message(), f"see: {context.command_path if context else 'secateur'} --help")
    if isinstance(error, SystemExit):
        return _UsageError(f"the workload's code ended the program with sys.exit({error.code!r})", "let it return")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return OutputError("no space left for what is printed or written", "free some space")
    if (failure := users_failure(error)) is not None:
        return failure
    lines = str(error).strip().splitlines()
    return _UnexpectedError(
        f"unexpected {type(error).__name__}{': ' + lines[0] if lines else ''}", "run again with --debug"
    )


def _show_error(error: SecateurError) -> None:
    from rich.console import Console
    from rich.text import Text

    label = Text("", "").append("" if isinstance(error, StoppedError) else "error: ", "bold red")
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    console.print(label.append(" ".join(error.message.split()), "default"))
    if error.hint:
        console.print(Text("hint: ", "dim").append(" ".join(error.hint.split()), "default"))


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2), flush=True)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, stop as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]  # not: nohup
    for each in ours:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


@contextlib.contextmanager
def _one_line_warnings(debug: bool) -> Iterator[None]:
    """Our own warnings, one line each on stderr; those of libraries are for those who debug."""
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=UserWarning, module=r"secateur\.")
            warnings.showwarning = _show_warning
        yield


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    from secateur.core.progress import console

    console.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _no_other_output(as_json: bool) -> Iterator[None]:
    """With --json, whatever else prints (a user's own code, say) goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def _tolerate_narrow_encodings() -> None:
    """A terminal that cannot show an arrow shows a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
