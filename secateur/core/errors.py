"""Every error a user can cause, one type per kind of mistake.

Each carries what was found (`message`), what to do next (`hint`) and the exit code of the command line:
2 wrong input, 3 budget not met, 4 a target or an extra is missing. Anything else is a bug and exits with 1.
"""

from __future__ import annotations


class SecateurError(Exception):
    """Base of all errors that are shown to a user as one message and one hint, never as a traceback."""

    kind = "error"
    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_json(self) -> dict[str, dict[str, str]]:
        """The document that `--json` prints for an error."""
        return {"error": {"kind": self.kind, "message": self.message, "hint": self.hint}}


def described(error: BaseException, limit: int = 300) -> str:
    """`ValueError: what it says`, by the first line of a foreign error."""
    return f"{type(error).__name__}: {first_line(error, limit)}".removesuffix(": ")


def first_line(text: object, limit: int = 300) -> str:
    """The first line of a message that may be long, or empty."""
    return (str(text).strip().splitlines() or [""])[0][:limit]


class WorkloadError(SecateurError):
    """A workload cannot be found, loaded, or does not describe a multi-task model."""

    kind = "workload"


class ModelError(SecateurError):
    """The model itself cannot be used: not traceable, NaN weights, a task missing from its output."""

    kind = "model"


class DataError(SecateurError):
    """A loader yields something that does not fit the model or the tasks."""

    kind = "data"


class BudgetError(SecateurError):
    """A budget or tolerance does not parse, or makes no sense."""

    kind = "budget"


class BudgetNotMetError(SecateurError):
    """The budget cannot be reached within the tolerances; the nearest result was kept."""

    kind = "budget_not_met"
    exit_code = 3


class BundleError(SecateurError):
    """A bundle is damaged, altered, of a newer schema, or does not fit the model."""

    kind = "bundle"


class OutputError(SecateurError):
    """Results cannot be written where the user asked."""

    kind = "output"


class ExportError(SecateurError):
    """A model cannot be exported, or an exported file cannot be read or run."""

    kind = "export"


class ParityError(SecateurError):
    """An exported artefact does not compute what the torch model computes."""

    kind = "parity"


class DeviceError(SecateurError):
    """A device is unknown, or its description is wrong."""

    kind = "device"


class TargetUnavailableError(SecateurError):
    """A target cannot be reached from here; `hint` says how to get it."""

    kind = "target_unavailable"
    exit_code = 4


class DeviceLostError(TargetUnavailableError):
    """A device that was reached before gives no answer any more, or gave half of one."""

    kind = "device_lost"


class MissingExtraError(SecateurError):
    """An optional dependency is not installed."""

    kind = "missing_extra"
    exit_code = 4

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed", f'install it with: pip install "secateur[{extra}]"')


class StoppedError(SecateurError):
    """The user stopped the run; its state was kept."""

    kind = "stopped"
    exit_code = 130


def no_routing(what: str, why: str = "") -> ExportError:
    """That something cannot run a mixture of experts as long as there is a choice to make."""
    return ExportError(
        f"{what} cannot route tokens to experts{why}",
        "extract until as many experts are left as a token chooses (a smaller --budget), or export to onnx or openvino",
    )
