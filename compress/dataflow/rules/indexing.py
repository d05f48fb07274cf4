"""Picking by index, windows over a dimension, transforms along one: what is picked or transformed keeps its size."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from secateur.compress.dataflow.rules.registry import Labels, Op, rule


@rule("index")
def index(op: Op) -> Labels:
    """x[:, table]: the indexed dimensions give way to those of the indices, the others stay."""
    labels, picked = op.labels("self"), list(op["indices"])
    dims = [dim for dim, node in enumerate(picked) if node is not None]
    for dim in dims:
        op.fix(labels.get(dim), "picked by index")
    for node in picked:
        for channels in op.labels(node).values() if isinstance(node, Node) else ():
            op.fix(channels, "used as an index")
    ndim = max(len(op.shape_of(picked[dim])) for dim in dims)
    together = dims == list(range(dims[0], dims[-1] + 1))
    at = dims[0] if together else 0
    kept = [dim for dim in range(len(op.shape_of("self"))) if dim not in dims]
    places = [place for place in range(len(op.shape)) if not at <= place < at + ndim]
    return {place: labels[dim] for place, dim in zip(places, kept, strict=True) if dim in labels}


@rule("index_select")
def index_select(op: Op) -> Labels:
    """Rows of one dimension."""
    return _all_but(op, {op.dim("dim", "self")}, "picked by index")


@rule("gather")
def gather(op: Op) -> Labels:
    """Indices along one dimension, for every place of the others."""
    dim = op.dim("dim", "self")
    result = _all_but(op, {dim}, "picked by index")
    _tie_places(op, result, "index", dim)
    return result | ({dim: op.labels("index")[dim]} if dim in op.labels("index") else {})


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(op: Op) -> Labels:
    """Values are put where indices along one dimension say, for every place of the others."""
    dim = op.dim("dim", "self")
    result = _all_but(op, {dim}, "replaced by index")
    for name in ("index", "src"):
        op.fix(op.labels(name).get(dim), "replaced by index")
        _tie_places(op, result, name, dim)
    return result


def _tie_places(op: Op, labels: Labels, name: str, along: int) -> None:
    """Tie an operand's dimensions to those of the tensor that it goes along with, but for one."""
    other = op.labels(name)
    for dim, size in enumerate(op.shape_of(name)):
        if dim == along or op.is_spread(name, dim):
            continue
        if size == op.shape_of("self")[dim]:
            op.tie(labels.get(dim), other.get(dim))
        else:
            for channels in (labels.get(dim), other.get(dim)):
                op.fix(channels, "some of its places only")


@rule("topk", "sort", "argsort", "msort", "cummax", "cummin")
def ordered(op: Op) -> Labels | list[Labels]:
    """Values in another order, their positions, or both."""
    along = op.dim("dim", "self") if "dim" in op.args else 0
    result = _all_but(op, {along}, "positions are picked")
    return [result] * op.returns if op.returns > 1 else result


@rule("unfold")
def unfold(op: Op) -> Labels:
    """Windows over one dimension, their places in a new last one."""
    return _all_but(op, {op.dim("dimension", "self")}, "windows are cut from it")


@rule("im2col")
def im2col(op: Op) -> Labels:
    """[N, C, H, W] → [N, C·window, places]."""
    labels, window = op.labels("self"), int(np.prod(op["kernel_size"]))
    result = _all_but(op, {2, 3}, "windows are cut from it")
    return result | ({1: np.repeat(labels[1], window)} if 1 in labels else {})


@rule("col2im")
def col2im(op: Op) -> Labels:
    """[N, C·window, places] → [N, C, H, W]: the window's values of one channel live together."""
    labels, window = op.labels("self"), int(np.prod(op["kernel_size"]))
    result = _all_but(op, {2}, "windows are put back")
    if 1 in labels:
        rows = labels[1].reshape(-1, window)
        op.space.tie(rows[:, :1], rows)
        result[1] = rows[:, 0]
    return result


@rule(
    "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft", "fft_fft2", "fft_ifft2", "fft_rfft2",
    "fft_irfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_fftshift", "fft_ifftshift",
)  # fmt: skip
def transform(op: Op) -> Labels:
    """A transform mixes all of the dimensions that it runs along."""
    ndim, dims = len(op.shape), op.args.get("dim")
    listed = range(ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    return _all_but(op, {int(dim) % ndim for dim in listed}, "a transform runs along it")


@rule("view_as_complex", "view_as_real")
def complex_numbers(op: Op) -> Labels:
    """The pair (real, imaginary) is the last dimension of the real view."""
    pair = {len(op.shape_of("self")) - 1} if op.name == "view_as_complex" else set()
    return _all_but(op, pair, "real and imaginary part")


@rule("tril", "triu")
def triangle(op: Op) -> Labels:
    """Zeroes one side of the diagonal of the last two dimensions."""
    return _all_but(op, {len(op.shape) - 2, len(op.shape) - 1}, "a triangle is cut from it")


def _all_but(op: Op, dims: set[int], why: str) -> Labels:
    """The labels of the operand, those of some dimensions fixed."""
    labels = op.labels("self")
    for dim in dims:
        op.fix(labels.get(dim), why)
    return {dim: channels for dim, channels in labels.items() if dim not in dims}
