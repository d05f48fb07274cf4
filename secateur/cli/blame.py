"""Whose code failed: a model, a loss, a metric or a loader of the user's, called from here, or Secateur itself."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from types import FrameType

from secateur.core.errors import SecateurError

_STANDARD = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})


class UsersCodeError(SecateurError):
    """What the user brought failed while it was used."""

    kind = "workload"


def users_failure(error: BaseException) -> UsersCodeError | None:
    """The error as one of the user's own code, if the innermost code that is no library's is the user's."""
    known = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _ours(frame) or _users(frame)]
    if not known or _ours(known[-1][0]):
        return None
    frame, line = known[-1]
    where = f"{Path(frame.f_code.co_filename).name}, line {line}, in {frame.f_code.co_name}"
    return UsersCodeError(
        f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": "),
        "this is code that the workload brought; --debug shows the traceback",
    )


def _ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).split(".")[0] == "secateur"


def _users(frame: FrameType) -> bool:
    """Code of a file that is neither a library's nor what started this process."""
    path = Path(frame.f_code.co_filename)
    library = "site-packages" in path.parts or str(path).startswith(_STANDARD)
    return not library and frame.f_globals.get("__name__") != "__main__" and path.is_file()
