"""Ops that rearrange: views, permutations, concatenation, slices. Where a dimension is split into rows, the rows keep
equal sizes; where rows are merged, each channel stands at several indices."""

from __future__ import annotations

import itertools

import numpy as np
from torch.fx import Node

from secateur.compress.dataflow.rules.contraction import refuse
from secateur.compress.dataflow.rules.registry import Labels, Op, rule
from secateur.compress.dataflow.space import Channels


@rule(
    "view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as", "squeeze", "unsqueeze", "reshape_as", "ravel",
)  # fmt: skip
def reshape(op: Op) -> Labels:
    """Dimensions are matched in runs of equal size, and each run is merged or split on its own."""
    labels, result = op.labels("self"), Labels()
    for old, new in _runs(op.shape_of("self"), op.shape):
        labelled = [dim for dim in old if len(labels.get(dim, ())) > 1]
        for dim in old:
            if dim not in labelled:
                op.fix(labels.get(dim), "a single channel")
        if labelled:
            result.update(_split(op, _merged(op, old, labelled), new))
    if op.name in ("view_as", "reshape_as"):
        for dim, channels in op.labels("other").items():
            op.tie(channels, result.get(dim))
        for dim in result.keys() - op.labels("other").keys():
            op.fix(result.pop(dim), "takes the shape of a tensor of fixed size")
    return result


def _runs(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Match dimensions of two shapes of one size: the smallest runs whose products are equal."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [], []
        product_left = product_right = 1
        while True:
            if i < len(old) and (product_left <= product_right or j >= len(new)):
                product_left *= old[i]
                left.append(i)
                i += 1
            elif j < len(new):
                product_right *= new[j]
                right.append(j)
                j += 1
            else:
                break
            if product_left == product_right and left and right:
                break
        runs.append((left, right))
    return runs


def _merged(op: Op, dims: list[int], labelled: list[int]) -> Channels:
    """The channels along a run of dimensions, flattened: where several of them are labelled, channels of a table."""
    labels, shape = op.labels("self"), op.shape_of("self")
    table = op.space.product([labels[dim] for dim in labelled])
    aligned = table.reshape([shape[dim] if dim in labelled else 1 for dim in dims])
    return np.broadcast_to(aligned, [shape[dim] for dim in dims]).ravel()


def _split(op: Op, channels: Channels, dims: list[int]) -> Labels:
    """Labels of a run's new dimensions. Along those that do not tell channels apart the rows are tied, and so they are
    where the code fixes how many rows there are (the 3 of q, k and v); of several others, heads and their width, say,
    each gets channels of its own."""
    table = channels.reshape([op.shape[dim] for dim in dims])
    varying = [axis for axis in range(table.ndim) if (table != np.take(table, [0], axis=axis)).any()]
    if not varying:  # one channel only, which cannot be cut anyway
        op.fix(channels, "a single channel")
        return {}
    if len(varying) > 1 and not op.space.is_product(channels):
        constant = _constants(op, [dims[axis] for axis in varying])
        varying = [axis for axis in varying if dims[axis] not in constant]
    rows = np.moveaxis(table, varying, range(-len(varying), 0)).reshape(-1, *(table.shape[axis] for axis in varying))
    op.space.tie(rows[:1], rows)
    if len(varying) == 1:
        return {dims[varying[0]]: rows[0].copy()}
    axes = [_axis(op, rows[0], axis) for axis in range(len(varying))]
    op.space.tie(op.space.product(axes), rows[0])
    return {dims[axis]: own for axis, own in zip(varying, axes, strict=True)}


def _axis(op: Op, table: Channels, axis: int) -> Channels:
    """New channels for one axis of a table; places whose slices are the same, as those of one head in several samples
    of a batch, are one channel."""
    slices = np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1)
    _, first, which = np.unique(slices, axis=0, return_index=True, return_inverse=True)
    channels = op.space.fresh(len(first))[np.argsort(np.argsort(first))]
    return channels[which.ravel()]


def _constants(op: Op, dims: list[int]) -> set[int]:
    """Of the sizes that split a dimension one follows from the others; those that no attribute holds are constants."""
    asked = op.args.get("shape", op.args.get("size"))
    if not isinstance(asked, (list, tuple)):
        return set()
    unknown = {dim for dim in dims if asked[dim] != -1 and not op.is_attribute(op.shape[dim])}
    if unknown and all(asked[dim] != -1 for dim in dims):
        unknown.remove(max(sorted(unknown), key=lambda dim: op.shape[dim]))
    return unknown


@rule("permute")
def permute(op: Op) -> Labels:
    labels, ndim = op.labels("self"), len(op.shape)
    order = [int(dim) % ndim for dim in op["dims"]]
    return {new: labels[old] for new, old in enumerate(order) if old in labels}


@rule("transpose", "swapaxes", "swapdims")
def transpose(op: Op) -> Labels:
    labels = op.labels("self")
    names = [name for name in ("dim0", "dim1", "axis0", "axis1") if name in op.args]
    one, other = (op.dim(name, "self") for name in names)
    moved = {one: other, other: one}
    return {moved.get(dim, dim): channels for dim, channels in labels.items()}


@rule("mT", "mH", "adjoint")
def matrix_transpose(op: Op) -> Labels:
    last = len(op.shape) - 1
    moved = {last: last - 1, last - 1: last}
    return {moved.get(dim, dim): channels for dim, channels in op.labels("self").items()}


@rule("t", "numpy_T")
def t(op: Op) -> Labels:
    last = len(op.shape) - 1
    return {last - dim: channels for dim, channels in op.labels("self").items()}


@rule("movedim", "moveaxis")
def movedim(op: Op) -> Labels:
    labels, ndim = op.labels("self"), len(op.shape)
    source, destination = (
        [int(dim) % ndim for dim in (value if isinstance(value, (list, tuple)) else [value])]
        for value in (op["source"], op["destination"])
    )
    order = [dim for dim in range(ndim) if dim not in source]
    for new, old in sorted(zip(destination, source, strict=True)):
        order.insert(new, old)
    return {new: labels[old] for new, old in enumerate(order) if old in labels}


@rule("expand", "expand_as", "broadcast_to")
def expand(op: Op) -> Labels:
    """A dimension that grows loses its label, or takes that of the tensor which it follows; others keep it."""
    labels, offset = op.labels("self"), len(op.shape) - len(op.shape_of("self"))
    own = op.shape_of("self")
    result = {dim: channels for dim, channels in op.labels("other").items() if dim < offset or own[dim - offset] == 1}
    for dim, channels in labels.items():
        if op.shape[dim + offset] == len(channels):
            result[dim + offset] = channels
        else:
            op.fix(channels, "a single channel is spread over a dimension")
    return result


@rule("repeat", "tile")
def repeat(op: Op) -> Labels:
    labels, offset = op.labels("self"), len(op.shape) - len(op.shape_of("self"))
    return {
        dim + offset: np.tile(channels, op.shape[dim + offset] // len(channels)) for dim, channels in labels.items()
    }


@rule("repeat_interleave")
def repeat_interleave(op: Op) -> Labels:
    if not isinstance(op["repeats"], int) or op["dim"] is None:
        return refuse(op)
    result, dim = dict(op.labels("self")), op.dim("dim", "self")
    if dim in result:
        result[dim] = np.repeat(result[dim], op["repeats"])
    return result


@rule("cat", "concat", "concatenate")
def cat(op: Op) -> Labels:
    """Along `dim` the channels stand one after another; elsewhere they are the same."""
    return _one_after_another(op, op.dim("dim", op["tensors"][0]))


@rule("hstack", "vstack", "dstack")
def cat_along(op: Op) -> Labels:
    """cat along a dimension that the op's name says; of tensors with fewer dimensions it is something else."""
    dim = ("vstack", "hstack", "dstack").index(op.name)
    enough = all(len(op.shape_of(node)) > max(dim, 1) for node in op["tensors"])
    return _one_after_another(op, dim) if enough else refuse(op)


def _one_after_another(op: Op, dim: int) -> Labels:
    tensors, result = op["tensors"], Labels()
    if any(dim in op.labels(node) for node in tensors):
        parts = [
            op.labels(node).get(dim, op.space.fixed(op.shape_of(node)[dim], f"fixed input of {op.where}"))
            for node in tensors
        ]
        result[dim] = np.concatenate(parts)
    return result | _tie_elsewhere(op, tensors, skip=dim)


@rule("stack")
def stack(op: Op) -> Labels:
    """A new dimension of fixed size."""
    new = int(op["dim"]) % len(op.shape)
    return {dim + (dim >= new): channels for dim, channels in _tie_elsewhere(op, op["tensors"]).items()}


def _tie_elsewhere(op: Op, tensors: list[Node], skip: int | None = None) -> Labels:
    """Tie the dimensions that concatenated tensors share."""
    result = Labels()
    for dim in range(len(op.shape_of(tensors[0]))):
        labels = [op.labels(node).get(dim) for node in tensors]
        if dim == skip or all(label is None for label in labels):
            continue
        for one, other in itertools.pairwise(labels):
            op.tie(one, other)
        if all(label is not None for label in labels):
            result[dim] = labels[0]  # type: ignore[assignment]
    return result


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def split(op: Op) -> list[Labels]:
    """Parts of one dimension. Equal parts stay equal, since that is how such code is written: x.chunk(2)."""
    labels, dim = op.labels("self"), op.dim("dim", "self")
    sizes = [part.shape[dim] for part in op.node.meta["val"]]
    rest = {other: channels for other, channels in labels.items() if other != dim}
    if dim not in labels:
        return [rest for _ in sizes]
    if len(set(sizes)) == 1:
        op.space.tie_rows(labels[dim], len(sizes))
    elif op.name in ("chunk", "split", "tensor_split"):
        op.fix(labels[dim], "unequal parts")
    ends = list(itertools.accumulate(sizes))
    return [{**rest, dim: labels[dim][end - size : end]} for size, end in zip(sizes, ends, strict=True)]


@rule("glu")
def glu(op: Op) -> Labels:
    """One half gates the other: both keep the same channels."""
    labels, dim = dict(op.labels("self")), op.dim("dim", "self")
    if dim in labels:
        labels[dim] = op.space.tie_rows(labels[dim], 2)
    return labels


@rule("slice", "narrow")
def slice_(op: Op) -> Labels:
    """A range of one dimension; one that tiles the dimension stands for equal parts: x[:, : c // 2], x[:, ::2]."""
    result = dict(op.labels("self"))
    dim = op.dim("dim", "self")
    if dim not in result:
        return result
    size = len(result[dim])
    if op.name == "narrow":
        start, end, step = int(op["start"]) % size, int(op["start"]) % size + int(op["length"]), 1
    else:
        start, end, step = slice(op["start"], op["end"], op["step"]).indices(size)
    part = result[dim][start:end:step]
    if len(part) not in (0, size):
        if step == 1 and size % len(part) == 0 and start % len(part) == 0:
            op.space.tie_rows(result[dim], size // len(part))
        elif step > 1 and size % step == 0 and start < step and end == size:
            blocks = result[dim].reshape(-1, step)
            op.space.tie(blocks[:, :1], blocks)
        elif step != 1:
            op.fix(result[dim], "strided slice")
    result[dim] = part
    return result


@rule("slice_scatter")
def slice_scatter(op: Op) -> Labels:
    """`self` with a range of one dimension replaced by `src`: what a write through a slice amounts to."""
    labels, part = op.labels("self"), op.labels("src")
    dim, replaced = op.dim("dim", "self"), slice(op["start"], op["end"], op["step"])
    for other in labels.keys() | part.keys():
        own = labels.get(other)
        op.tie(own[replaced] if other == dim and own is not None else own, part.get(other))
    return labels


@rule("select_scatter")
def select_scatter(op: Op) -> Labels:
    """`self` with one index of a dimension replaced by `src`."""
    labels, part, dim = op.labels("self"), op.labels("src"), op.dim("dim", "self")
    op.fix(labels.get(dim), "one index is replaced")
    rest = [other for other in range(len(op.shape)) if other != dim]
    for place, other in enumerate(rest):
        if not op.is_spread("src", place):
            op.tie(labels.get(other), part.get(place))
    return {other: labels[other] for other in rest if other in labels}


@rule("select")
def select(op: Op) -> Labels:
    """One index of a dimension, which therefore may not move."""
    labels, dim = op.labels("self"), op.dim("dim", "self")
    op.fix(labels.get(dim), "one index is picked")
    return {other - (other > dim): channels for other, channels in labels.items() if other != dim}


@rule("unbind")
def unbind(op: Op) -> list[Labels]:
    labels, dim = op.labels("self"), op.dim("dim", "self")
    op.fix(labels.get(dim), "unpacked into parts")
    part = {other - (other > dim): channels for other, channels in labels.items() if other != dim}
    return [part] * op.shape_of("self")[dim]


@rule("flip", "roll")
def flip(op: Op) -> Labels:
    """Reordered dimensions may not change size; the others pass."""
    labels = op.labels("self")
    dims = {int(dim) % len(op.shape) for dim in (op["dims"] or range(len(op.shape)))}
    for dim in dims:
        op.fix(labels.get(dim), "reordered dimension")
    return {dim: channels for dim, channels in labels.items() if dim not in dims}
