"""Journal: what makes a long run resumable. Each finished step's result is written down; a resumed run walks the same
way again and takes the results of finished steps from the journal instead of computing them. Of several processes the
first one computes and writes; the others walk the same way with the results that it sends them.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from secateur.compress import ranks
from secateur.core.errors import ModelError, OutputError
from secateur.core.files import write_json, writing

T = TypeVar("T")
_OURS = re.compile(
    r"journal|lock|experts|pagcp|bundle|\.?(journal\.json|original\.onnx(\.data)?|.+\.pt)(\.\w{8})?|\.bundle\.\w{8}"
)
"""What stands in the folder of a run that is not finished, half-written files among it."""


def check_own(folder: Path) -> None:
    """Refuse a folder that holds something else: what a run keeps is deleted when it ends.

    Raises:
        OutputError
    """
    foreign = (
        sorted(each.name for each in folder.iterdir() if not _OURS.fullmatch(each.name)) if folder.is_dir() else []
    )
    if foreign:
        raise OutputError(
            f"{folder} holds {foreign[0]}, which no run left there",
            "a run keeps its state in a folder of its own, which goes when it ends: name another, or move that away",
        )


class Journal:
    """Finished steps of one run, in a folder; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], *, resume: bool) -> None:
        """Open the journal of the run that `identity` (method, settings, seed, model fingerprint) describes.

        Raises:
            OutputError: to resume a run that was another one, or a folder that holds something else.
        """
        self._folder, self._identity = folder if ranks.leads() else None, dict(identity)
        self._steps: dict[str, Any] = {}
        if self._folder is None or folder is None:
            return
        check_own(folder)
        file = folder / "journal.json"
        if resume and file.is_file():
            self._steps = _read(file, self._identity)
        elif folder.is_dir():
            shutil.rmtree(folder)

    def step(self, key: str, compute: Callable[[], T], encode: Callable[[T], Any], decode: Callable[[Any], T]) -> T:
        """The result of a step: from the journal when it was finished before, else computed and written down."""
        if ranks.connected() and not ranks.leads():
            return decode(_sent(ranks.from_leader(None)))
        try:
            found = key in self._steps
            result = decode(self._steps[key]) if found else compute()
            if not found:
                self._steps[key] = encode(result)
                self._write()
        except BaseException:
            ranks.from_leader({})
            raise
        ranks.from_leader({"result": self._steps[key]})
        return result

    def load_tensors(self, key: str) -> Any | None:
        """Tensors saved under a key (nested dicts and lists of tensors and numbers), or None."""
        there = self._folder is not None and self._path(key).is_file() and key in self._steps
        data = ranks.bytes_from_leader(self._path(key).read_bytes() if there else b"")
        return torch.load(io.BytesIO(data), weights_only=True) if data else None

    def save_tensors(self, key: str, value: Any) -> None:
        """Save tensors under a key, replacing what was there."""
        if self._folder is None:
            return
        buffer = io.BytesIO()  # torch's own writer would not say that the disk is full
        torch.save(value, buffer)
        with writing(self._path(key)) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        self._steps[key] = True
        self._write()

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key.replace('/', '-')}.pt"

    def _write(self) -> None:
        if self._folder is not None:
            write_json(self._folder / "journal.json", {"identity": self._identity, "steps": self._steps})


def _sent(document: Any) -> Any:
    """A step's result as rank 0 sent it.

    Raises:
        ModelError: rank 0 failed in this step.
    """
    if "result" not in document:
        raise ModelError("the first process stopped", "see what it says")
    return document["result"]


def _read(file: Path, identity: dict[str, Any]) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        found, steps = document["identity"], document["steps"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{file} is damaged: {error}", "start again without --resume") from error
    different = [key for key, value in identity.items() if found.get(key) != json.loads(json.dumps(value))]
    if different:
        raise OutputError(
            f"the stopped run in {file.parent} had another {', '.join(different)}",
            "repeat its command with --resume, or start again without --resume",
        )
    return dict(steps)
