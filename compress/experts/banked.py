"""Reading a bank: models of task sets that share their trunk in memory, each loaded by the bytes that it needs.

bank = Bank(bundle, factory)
depth = bank.model("depth")          reads the trunk, and depth's experts, router and head
normals = bank.model("normals")      reads what normals needs besides; the trunk's tensors are the same ones
bank.drop("depth")                   frees what only depth needs
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor, nn

from secateur.compress.channel_map import ChannelMap
from secateur.compress.compressed import cut_model, filled
from secateur.compress.experts.bank import FILE, Part, digest, parts_of
from secateur.core.bundle import Bundle
from secateur.core.errors import BundleError
from secateur.core.rows import TensorFile


def bank_file(bundle: Bundle) -> str:
    """The name that the bank of a bundle's chosen point has."""
    return str(PurePosixPath(bundle.manifest.point.weights).with_name(FILE))


def has_bank(bundle: Bundle) -> bool:
    return bank_file(bundle) in bundle.manifest.files


class Bank:
    """The bank of a bundle's chosen point."""

    def __init__(
        self, bundle: Bundle, factory: Callable[[], nn.Module], opened: BinaryIO | None = None
    ) -> None:  # fmt: skip
        """`opened`: the file of weights, instead of that in the bundle.

        Raises:
            BundleError: the bundle has no bank, or a damaged one.
        """
        if not has_bank(bundle):
            raise BundleError(
                f"{bundle.path} is no bank",
                "compress with several sets: --method experts --tasks depth --tasks normals",
            )
        self._bundle, self._factory = bundle, factory
        document = _read(bundle)
        self._sets = {_key(each["tasks"]): each for each in document["sets"]}
        self._hashes = document["hashes"]
        weights = bundle.file(bundle.manifest.point.weights)
        self._opened = opened or weights.open("rb")
        self._file = TensorFile(self._opened, weights)
        self._held: dict[Part, Tensor] = {}
        self._models: dict[tuple[str, ...], nn.Module] = {}

    def close(self) -> None:
        """Close the file of weights; models that were loaded stay."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def sets(self) -> list[tuple[str, ...]]:
        """The sets of tasks that can be loaded."""
        return list(self._sets)

    @property
    def bytes_read(self) -> int:
        """Bytes of the file of weights that were read so far."""
        return self._file.bytes_read

    @property
    def resident_bytes(self) -> int:
        """Bytes of all tensors of the models that are loaded, shared ones once."""
        tensors = [tensor for model in self._models.values() for tensor in model.state_dict().values()]
        return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())

    def needed_bytes(self, tasks: str | Iterable[str]) -> int:
        """Bytes of one set's model."""
        return sum(map(self._size, set(parts_of(self._set(tasks)).values())))

    def describe(self) -> dict[str, Any]:
        """Bytes of each set's model, and of what is stored for all of them, as JSON."""
        stored = {part.stored for each in self._sets.values() for part in parts_of(each).values()}
        return {
            "sets": [{"tasks": list(tasks), "bytes": self.needed_bytes(tasks)} for tasks in self._sets],
            "stored_bytes": sum(self._file.entries[name].bytes for name in stored),
        }

    def model(self, tasks: str | Iterable[str]) -> nn.Module:
        """The model of one set, in evaluation mode. What other loaded sets have already is not read again.

        Raises:
            BundleError: no such set, bytes that are not those that were written, or a class that does not fit.
        """
        document = self._set(tasks)
        key = _key(document["tasks"])
        if key not in self._models:
            model = cut_model(self._bundle, self._factory, self._bundle.manifest.chosen)
            ChannelMap.from_json(document["channels"]).apply(model)
            state = {name: self._tensor(part) for name, part in parts_of(document).items()}
            self._models[key] = filled(model, state, assign=True).eval()
        return self._models[key]

    def drop(self, tasks: str | Iterable[str]) -> None:
        """Forget a set's model, and the tensors that no other loaded one needs."""
        self._models.pop(_key(self._set(tasks)["tasks"]), None)
        needed = {part for key in self._models for part in parts_of(self._sets[key]).values()}
        self._held = {part: tensor for part, tensor in self._held.items() if part in needed}

    def _set(self, tasks: str | Iterable[str]) -> dict[str, Any]:
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        found = self._sets.get(_key(part.strip() for name in names for part in name.split(",")))
        if found is None:
            known = "; ".join(", ".join(each["tasks"]) for each in self._sets.values())
            raise BundleError(f"the bank has no set {', '.join(names)}", f"its sets are: {known}")
        return found  # type: ignore[no-any-return]

    def _size(self, part: Part) -> int:
        entry = self._file.entries[part.stored]
        return entry.bytes if part.rows is None else len(part.rows) * entry.row_bytes

    def _tensor(self, part: Part) -> Tensor:
        if part not in self._held:
            self._held[part] = (
                self._read_rows(part) if isinstance(self._hashes[part.stored], list) else self._whole(part)
            )
        return self._held[part]

    def _whole(self, part: Part) -> Tensor:
        data = self._file.read(part.stored)
        self._check(part.stored, data, self._hashes[part.stored])
        return self._file.tensor(part.stored, data)

    def _read_rows(self, part: Part) -> Tensor:
        hashes = self._hashes[part.stored]
        there = {
            row: tensor[place]
            for other, tensor in self._held.items()
            if other.stored == part.stored
            for place, row in enumerate(self._rows(other))
        }
        for row in self._rows(part):
            if row not in there:
                data = self._file.read(part.stored, row)
                self._check(f"{part.stored}[{row}]", data, hashes[row])
                there[row] = self._file.tensor(part.stored, data, 1)[0]
        return torch.stack([there[row] for row in self._rows(part)])

    def _rows(self, part: Part) -> Iterable[int]:
        return range(len(self._hashes[part.stored])) if part.rows is None else part.rows

    def _check(self, what: str, data: bytes, expected: str) -> None:
        if digest(data) != expected:
            raise BundleError(
                f"{self._bundle.path}: {what} was changed or truncated", "copy the bundle again, or compress again"
            )


def _key(tasks: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(tasks))


def _read(bundle: Bundle) -> dict[str, Any]:
    path = bundle.checked_file(bank_file(bundle))
    try:
        document = json.loads(path.read_bytes())
        for each in document["sets"]:
            parts_of(each)
            _key(each["tasks"])
        return {"sets": document["sets"], "hashes": dict(document["hashes"])}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}", "compress again") from error
