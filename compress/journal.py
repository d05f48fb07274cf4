"""Journal: what makes a long run resumable. Each finished step's result is written down; a resumed run walks the same
way again and takes the results of finished steps from the journal instead of computing them.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from secateur.core.errors import OutputError
from secateur.core.files import write_json, writing

T = TypeVar("T")


class Journal:
    """Finished steps of one run, in a folder; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], *, resume: bool) -> None:
        """Open the journal of the run that `identity` (method, settings, seed, model fingerprint) describes.

        Raises:
            OutputError: to resume a run that was another one.
        """
        self._folder, self._identity = folder, dict(identity)
        self._steps: dict[str, Any] = {}
        if folder is None:
            return
        file = folder / "journal.json"
        if resume and file.is_file():
            self._steps = _read(file, self._identity)
        elif folder.is_dir():
            shutil.rmtree(folder)

    def step(self, key: str, compute: Callable[[], T], encode: Callable[[T], Any], decode: Callable[[Any], T]) -> T:
        """The result of a step: from the journal when it was finished before, else computed and written down."""
        if key in self._steps:
            return decode(self._steps[key])
        result = compute()
        self._steps[key] = encode(result)
        self._write()
        return result

    def load_tensors(self, key: str) -> Any | None:
        """Tensors saved under a key (nested dicts and lists of tensors and numbers), or None."""
        if self._folder is None or not self._path(key).is_file() or key not in self._steps:
            return None
        return torch.load(self._path(key), weights_only=True)

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
