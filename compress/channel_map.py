"""ChannelMap: what was cut, as plain data, and the surgery that cuts it out of a user's own module.

A map says for every parameter and dimension which indices of the *original* tensor stay. It can be saved, and
replayed on a fresh instance of the model's class: the class and its state-dict keys stay the user's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.core.errors import BundleError
from secateur.core.modes import forget, modes_kept

Index = np.ndarray[Any, np.dtype[np.int64]]
Dims = dict[int, Index]
_Parts = Mapping[str, Dims]
"""A module's own tensors → what was kept of each."""


@dataclass(frozen=True)
class ChannelMap:
    """Kept indices by parameter name and dimension, the original shapes, modules that were taken out, and the sizes
    that modules keep in attributes of their own (`blocks.0.attn.num_heads`).

    `lists` holds, for lists of modules, the numbers of those that stay: a list of experts is cut as one dimension.
    They are cut last, so that parameters have their original names everywhere.
    """

    kept: Mapping[str, Dims] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    removed_modules: tuple[str, ...] = ()
    attributes: Mapping[str, int | list[int]] = field(default_factory=dict)
    lists: Mapping[str, Index] = field(default_factory=dict)

    def apply(self, model: nn.Module) -> None:
        """Cut a full-size model in place.

        Raises:
            BundleError: the model is not the one that the map was made for.
        """
        try:
            remove_modules(model, self.removed_modules)
        except AttributeError as error:
            raise BundleError(
                f"a module that compression took out is not in the model: {error}",
                "load the bundle with the class it was made from",
            ) from error
        names = tensor_aliases(model)
        for name, shape in self.shapes.items():
            if name in self.lists:
                continue
            if name not in names:
                raise BundleError(
                    f'the model has no parameter "{name}"', "load the bundle with the class it was made from"
                )
            found = tuple(_get(model, name).shape)
            if found != shape:
                raise BundleError(
                    f'"{name}" has shape {list(found)}, the bundle was made from {list(shape)}',
                    "build the model with the same settings as before compression",
                )
        cut(model, self.kept)
        for name, size in self.attributes.items():
            _set_size(model, name, size)
        for path, index in self.lists.items():
            _cut_list(model, path, index, self.shapes[path])
        forget(model)

    def then(self, later: ChannelMap) -> ChannelMap:
        """The map of this cut followed by a later one on the result. What is taken out later needs no cut before."""
        later = later._renamed(self.original)
        kept = {name: dict(dims) for name, dims in self.kept.items()}
        for name, dims in later.kept.items():
            for dim, index in dims.items():
                before = kept.setdefault(name, {}).get(dim)
                kept[name][dim] = index if before is None else before[index]
        gone = tuple(dict.fromkeys((*self.removed_modules, *later.removed_modules)))
        left = {name: dims for name, dims in kept.items() if not within(name, gone)}
        shapes = {**later.shapes, **self.shapes}
        sizes = {name: size for name, size in {**self.attributes, **later.attributes}.items() if not within(name, gone)}
        lists = dict(self.lists)
        for path, index in later.lists.items():
            lists[path] = lists[path][index] if path in lists else index
        return ChannelMap(left, {name: shapes[name] for name in (*left, *lists)}, gone, sizes, lists)

    def _renamed(self, rename: Callable[[str], str]) -> ChannelMap:
        """The same map for other names."""
        return ChannelMap(
            {rename(name): dims for name, dims in self.kept.items()},
            {rename(name): shape for name, shape in self.shapes.items()},
            tuple(map(rename, self.removed_modules)),
            {rename(name): size for name, size in self.attributes.items()},
            {rename(name): index for name, index in self.lists.items()},
        )

    def original(self, name: str) -> str:
        """The name that a parameter of the cut model had before its list was cut."""
        for path, index in self.lists.items():
            if name.startswith(f"{path}."):
                place, _, rest = name[len(path) + 1 :].partition(".")
                return ".".join(filter(None, (path, str(index[int(place)]), rest)))
        return name

    def as_json(self) -> dict[str, Any]:
        return {
            "kept": {
                name: {str(dim): index.tolist() for dim, index in dims.items()} for name, dims in self.kept.items()
            },
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "removed_modules": list(self.removed_modules),
            "attributes": dict(self.attributes),
            "lists": {path: index.tolist() for path, index in self.lists.items()},
        }

    @classmethod
    def from_json(cls, document: Any) -> ChannelMap:
        """Read a map; every index is checked against the shape it selects from.

        Raises:
            BundleError: one that does not fit, or no map at all.
        """
        try:
            shapes = {str(name): tuple(int(n) for n in shape) for name, shape in document["shapes"].items()}
            kept = {
                str(name): {int(dim): _checked(index, shapes[name], int(dim)) for dim, index in dims.items()}
                for name, dims in document["kept"].items()
            }
            sizes = {str(name): _checked_size(size) for name, size in document.get("attributes", {}).items()}
            lists = {str(path): _checked(index, shapes[path], 0) for path, index in document.get("lists", {}).items()}
            return cls(kept, shapes, tuple(map(str, document["removed_modules"])), sizes, lists)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BundleError(f"the channel map is damaged: {error}", "compress again") from error


def _checked(index: Sequence[int], shape: tuple[int, ...], dim: int) -> Index:
    if dim < 0 or not all(type(entry) is int for entry in index):
        raise ValueError("kept indices must be whole numbers along a dimension counted from 0")
    array = np.asarray(index, dtype=np.int64)
    if array.size == 0 or array[0] < 0 or array[-1] >= shape[dim] or (np.diff(array) <= 0).any():
        raise ValueError("kept indices must ascend within the parameter's size")
    return array


def _checked_size(size: Any) -> int | list[int]:
    entries = size if isinstance(size, list) else [size]
    if not entries or not all(type(entry) is int and 0 <= entry < 2**31 for entry in entries):
        raise ValueError("attributes must be sizes")
    return size  # type: ignore[no-any-return]


def _set_size(model: nn.Module, name: str, size: int | list[int]) -> None:
    """Rewrite an integer attribute, or a sequence of integers, by another of its kind."""
    path, _, attribute = name.rpartition(".")
    try:
        module = model.get_submodule(path)
        old = getattr(module, attribute)
    except AttributeError as error:
        raise BundleError(
            f'the model has no attribute "{name}"', "load the bundle with the class it was made from"
        ) from error
    alike = type(old) is int if isinstance(size, int) else isinstance(old, (tuple, list)) and len(old) == len(size)
    if not alike:
        raise BundleError(
            f'the attribute "{name}" is {old!r}, the bundle was made from a model where it is a size like {size}',
            "build the model with the same settings as before compression",
        )
    setattr(module, attribute, size if isinstance(size, int) else type(old)(size))


def _cut_list(model: nn.Module, path: str, index: Index, shape: tuple[int, ...]) -> None:
    try:
        members = model.get_submodule(path)
    except AttributeError as error:
        raise BundleError(
            f'the model has no list "{path}"', "load the bundle with the class it was made from"
        ) from error
    if not isinstance(members, nn.ModuleList) or len(members) != shape[0]:
        raise BundleError(
            f'"{path}" is no list of {shape[0]} modules, as the bundle was made from',
            "build the model with the same settings as before compression",
        )
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList([members[int(place)] for place in index]))


def cut(model: nn.Module, kept: Mapping[str, Dims]) -> None:
    """Keep only the given indices of the named parameters and buffers, and set the modules' size attributes.

    Parameters that are shared under several names stay shared.
    """
    aliases = tensor_aliases(model)
    touched: dict[nn.Module, dict[str, dict[int, Index]]] = defaultdict(dict)
    for name, dims in kept.items():
        tensor = _get(model, name)
        small = tensor.detach()
        for dim, index in dims.items():
            small = small.index_select(dim, torch.from_numpy(index).to(small.device))
        fresh = nn.Parameter(small, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small
        for alias in aliases[name]:
            path, _, attribute = alias.rpartition(".")
            setattr(model.get_submodule(path), attribute, fresh)
            layer, attribute = _parametrised(path, attribute)
            touched[model.get_submodule(layer)].setdefault(attribute, {}).update(dims)
    with modes_kept(model):
        for module in model.modules():
            module.training = False  # in training, reading a spectrally normalised weight is a step of its iteration
        for module, parts in touched.items():
            for kind, update in _ATTRIBUTES:
                if isinstance(module, kind):
                    update(module, parts)


def _parametrised(path: str, attribute: str) -> tuple[str, str]:
    """The layer, and its attribute, that a tensor belongs to: `conv.parametrizations.weight.original0` is of `conv`'s
    weight (torch.nn.utils.parametrize)."""
    layer, parametrised, name = path.rpartition(".parametrizations.")
    return (layer, name) if parametrised else (path, attribute)


def remove_modules(model: nn.Module, paths: Iterable[str]) -> None:
    """Replace modules by an identity, so that a forward that still calls them runs. Of a container that is not called
    itself (a ModuleDict), the members are replaced.

    Raises:
        AttributeError: the model has no such module.
    """
    for path in paths:
        if not path:
            raise AttributeError("the path is empty")
        module = model.get_submodule(path)
        if type(module).forward is nn.Module.forward:
            remove_modules(module, [name for name, _ in module.named_children()])
            continue
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())


def within(name: str, paths: Iterable[str]) -> bool:
    """Whether a parameter belongs to one of the modules."""
    return any(name.startswith(f"{path}.") for path in paths)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names: a shared one has several."""
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    return dict(parameters) | dict(buffers)


def tensor_aliases(model: nn.Module) -> dict[str, list[str]]:
    """Every name of every parameter and buffer → all names of the same tensor."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in named_tensors(model).items():
        names[id(tensor)].append(name)
    return {name: group for group in names.values() for name in group}


def _get(model: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), attribute)
    assert isinstance(tensor, Tensor)
    return tensor


def _convolution(module: Any, parts: _Parts) -> None:
    """A group of filters that is gone as a whole, as a depthwise filter is, is one group less."""
    weight = module.weight
    if isinstance(module, _ConvTransposeNd):
        module.groups = _rows_left(parts, module.in_channels, module.groups)
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
        return
    module.groups = _rows_left(parts, module.out_channels, module.groups)
    module.in_channels, module.out_channels = weight.shape[1] * module.groups, weight.shape[0]


def _rows_left(parts: _Parts, size: int, rows: int) -> int:
    """Of equal rows of filters or channels, how many keep any."""
    kept = parts.get("weight", {}).get(0)
    return rows if kept is None else len(np.unique(kept // (size // rows)))


def _linear(module: Any, parts: _Parts) -> None:
    module.out_features, module.in_features = module.weight.shape


def _batch_norm(module: Any, parts: _Parts) -> None:
    bound = module.weight if module.weight is not None else module.running_mean
    module.num_features = len(bound)


def _group_norm(module: Any, parts: _Parts) -> None:
    module.num_groups = _rows_left(parts, module.num_channels, module.num_groups)
    module.num_channels = len(module.weight)


def _layer_norm(module: Any, parts: _Parts) -> None:
    module.normalized_shape = tuple(module.weight.shape)


def _prelu(module: Any, parts: _Parts) -> None:
    module.num_parameters = module.weight.numel()


def _embedding(module: Any, parts: _Parts) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


_ATTRIBUTES: tuple[tuple[type[nn.Module], Callable[[Any, _Parts], None]], ...] = (
    (_ConvNd, _convolution),
    (nn.Linear, _linear),
    (_NormBase, _batch_norm),
    (nn.GroupNorm, _group_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.PReLU, _prelu),
    (nn.Embedding, _embedding),
)
"""Which size attributes a module keeps besides its parameters, so that it prints, exports and re-initialises right."""
