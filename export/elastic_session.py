"""ElasticSession: an exported elastic model, run at any of its widths without torch. Needs numpy and onnxruntime.

    session = ElasticSession("runs/scenes-elastic/artefacts/elastic")
    session.use(session.controller.pick(budget_ms=6, prefer={"depth": 2}))
    session.run(image)["depth"]

Switching is a matter of the next call: nothing is loaded anew, but for graphs of the layout `files`, which are opened
when they are first used. `run` may be called from several threads; each call keeps to the widths it began with.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.elastic import Choice
from secateur.core.errors import BundleError, ExportError
from secateur.export.controller import Controller

Array = np.ndarray[Any, Any]
INDEX = "index.json"
SHARED = ""
_AGAIN = "copy the folder again, or export again"


class ElasticSession:
    """An elastic model that was exported to a folder.

    Args:
        path: the folder, or its index.json.
        threads: of ONNX Runtime inside of one operator.
        target: whose latencies the controller goes by.

    Raises:
        BundleError: a file is missing, was changed or truncated.
        ExportError: ONNX Runtime cannot load the model.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1, target: str = "cpu") -> None:
        place = Path(path)
        self.folder = place.parent if place.name == INDEX else place
        self._index, self._threads = _read(self.folder), threads
        self.tasks: tuple[str, ...] = tuple(self._index["tasks"])
        self.inputs: tuple[str, ...] = tuple(self._index["inputs"])
        self.controller = Controller.load(self.folder, target)
        self._lock = threading.Lock()
        self._sessions: dict[str, Any] = {}
        self._choice = self.controller.pick()
        if self._index["layout"] == "if":
            self._session(self._index["model"])

    @property
    def choice(self) -> Choice:
        """The widths that the next call runs at."""
        return self._choice

    def use(self, choice: Choice) -> None:
        """Run at these widths from the next call on; tasks that are not in the choice do not run.

        Raises:
            ExportError: widths that were not exported.
        """
        self._check(choice)
        self._choice = choice

    def run(self, *inputs: Array, choice: Choice | None = None) -> dict[str, Array]:
        """Predictions of one batch by task.

        Args:
            inputs: arrays in the model's order.
            choice: widths for this call only.

        Raises:
            ExportError: wrong inputs, or widths that were not exported.
        """
        chosen = choice or self._choice
        self._check(chosen)
        if len(inputs) != len(self.inputs):
            raise ExportError(f"the model takes {len(self.inputs)} inputs, {len(inputs)} were given", "give them all")
        feed = dict(zip(self.inputs, (np.ascontiguousarray(each) for each in inputs), strict=True))
        if self._index["layout"] == "if":
            return self._run_branches(feed, chosen)
        return self._run_graphs(feed, chosen)

    def prepare(self, choices: Sequence[Choice]) -> None:
        """Open the graphs of these choices now, so that switching to them later costs nothing."""
        for choice in choices:
            self._check(choice)
            if self._index["layout"] == "files":
                for name, d in [(SHARED, 0), *choice.decoders.items()]:
                    if self._file(name, choice.row, d):
                        self._graph(name, choice.row, d)

    def _check(self, choice: Choice) -> None:
        if choice.row not in self.controller.table.exported:
            raise ExportError(f"encoder row {choice.row} was not exported", "choose with this session's controller")

    def _run_branches(self, feed: dict[str, Array], choice: Choice) -> dict[str, Array]:
        index = self._index
        numbers = {SHARED: index["rows"].index(choice.row), **dict.fromkeys(self.tasks, -1), **choice.decoders}
        feed |= {scalar: np.array(numbers[name], dtype=np.int64) for name, scalar in index["selectors"].items()}
        wanted = [each for each in self.tasks if each in choice.decoders] if len(index["selectors"]) > 1 else self.tasks
        names = dict(zip(self.tasks, index["results"], strict=True))
        asked = wanted or self.tasks  # without any, the shared part runs alone and the tasks give nothing
        outputs = _call(self._session(index["model"]), [names[task] for task in asked], feed)
        return dict(zip(asked, outputs, strict=True)) if wanted else {}

    def _run_graphs(self, feed: dict[str, Array], choice: Choice) -> dict[str, Array]:
        values: dict[str, Array] = dict(feed)
        if self._file(SHARED, choice.row, 0):
            shared = self._graph(SHARED, choice.row, 0)
            names = [value.name for value in shared.get_outputs()]
            values.update(zip(names, _call(shared, names, _fed(shared, values)), strict=True))
            if not self._file(self.tasks[0], choice.row, 0):  # one task: all of it is shared
                return {task: values[name] for task, name in zip(self.tasks, names, strict=True)}
        found = {}
        for task, d in choice.decoders.items():
            decoder = self._graph(task, choice.row, d)
            name = decoder.get_outputs()[0].name
            found[task] = _call(decoder, [name], _fed(decoder, values))[0]
        return found

    def _file(self, name: str, row: int, d: int) -> str | None:
        """The graph of a part at a width; None where there is no such part."""
        found: str | None = self._index["graphs"].get(f"{name}/{row}/{d}")
        return found

    def _graph(self, name: str, row: int, d: int) -> Any:
        file = self._file(name, row, d)
        if file is None:
            raise ExportError(f"{name} was not exported at this width", "choose with this session's controller")
        return self._session(file)

    def _session(self, file: str) -> Any:
        session = self._sessions.get(file)
        if session is not None:
            return session
        with self._lock:
            if file not in self._sessions:
                self._sessions[file] = _open(self.folder / file, self._threads)
            return self._sessions[file]


def _open(path: Path, threads: int) -> Any:
    """An ONNX Runtime session on the CPU, one operator at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        from secateur.export.onnx_session import runtime_reason

        raise ExportError(f"ONNX Runtime cannot load {path}: {runtime_reason(error)}", _AGAIN) from error


def _fed(session: Any, values: Mapping[str, Array]) -> dict[str, Array]:
    return {value.name: values[value.name] for value in session.get_inputs()}


def _call(session: Any, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
    if not names:
        return []
    try:
        found: list[Array] = session.run(list(names), dict(feed))
        return found
    except Exception as error:  # ONNX Runtime's errors share no base class
        from secateur.export.onnx_session import runtime_reason

        raise ExportError(f"the model does not run: {runtime_reason(error)}", "compare shapes and types") from error


def _read(folder: Path) -> dict[str, Any]:
    """The index, after every file was compared with its hash."""
    try:
        document = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = dict(document["files"])
        if not {"layout", "tasks", "inputs"} <= document.keys() or document["layout"] not in ("if", "files"):
            raise ValueError("it is no index of an elastic model")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder} holds no elastic model: {error}", _AGAIN) from error
    for name, expected in files.items():
        try:
            with (folder / Path(name).name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(f"{folder}: {name} is missing", _AGAIN) from error
        if found != expected:
            raise BundleError(f"{folder}: {name} was changed or truncated", _AGAIN)
    return document  # type: ignore[no-any-return]
