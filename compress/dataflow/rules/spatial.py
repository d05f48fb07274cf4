"""Ops over the space behind the channels: pooling, interpolation, padding, pixel shuffles."""

from __future__ import annotations

import numpy as np

from secateur.compress.dataflow.rules.registry import Labels, Op, rule


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool2d_with_indices", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d",
    "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "upsample_nearest_exact2d",
    "_upsample_nearest_exact2d", "reflection_pad2d", "replication_pad2d",
)  # fmt: skip
def spatial(op: Op) -> Labels | list[Labels]:
    """Input [N, C, *]: batch and channels pass, the rest is resized."""
    labels = op.labels(op.tensors[0])
    for dim, channels in labels.items():
        if dim > 1:
            op.fix(channels, "resized dimension")
    result = {dim: channels for dim, channels in labels.items() if dim <= 1}
    return [result] * op.returns if op.returns > 1 else result


@rule("grid_sampler", "grid_sample")
def grid_sample(op: Op) -> Labels:
    """Input [N, C, H, W], grid [N, H', W', 2] → [N, C, H', W']."""
    image, grid = op.tensors[:2]
    for channels in op.labels(grid).values():
        op.fix(channels, "sampling grid")
    return {dim: channels for dim, channels in op.labels(image).items() if dim <= 1}


@rule("pad", "constant_pad_nd")
def pad(op: Op) -> Labels:
    """Padding pairs count from the last dimension; channels that padding adds are fixed."""
    result = dict(op.labels("self"))
    pairs = list(op["pad"])
    ndim = len(op.shape_of("self"))
    for position in range(len(pairs) // 2):
        before, after = pairs[2 * position : 2 * position + 2]
        dim = ndim - 1 - position
        if dim not in result or (before, after) == (0, 0):
            continue
        if before < 0 or after < 0:
            op.fix(result.pop(dim), "cropped dimension")
            continue
        parts = (op.space.fixed(before, op.where), result[dim], op.space.fixed(after, op.where))
        result[dim] = np.concatenate(parts)
    return result


@rule("pixel_shuffle")
def pixel_shuffle(op: Op) -> Labels:
    """[N, C·r², H, W] → [N, C, r·H, r·W]: the r² channels of one pixel block live together."""
    labels = op.labels("self")
    if 1 not in labels:
        return {}
    blocks = labels[1].reshape(-1, int(op["upscale_factor"]) ** 2)
    op.space.tie(blocks[:, :1], blocks)
    return {1: blocks[:, 0]}


@rule("pixel_unshuffle")
def pixel_unshuffle(op: Op) -> Labels:
    """[N, C, r·H, r·W] → [N, C·r², H, W]."""
    labels = op.labels("self")
    return {1: np.repeat(labels[1], int(op["downscale_factor"]) ** 2)} if 1 in labels else {}


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(op: Op) -> Labels:
    """[N, g·C, *]: channel c of every group stands together afterwards; every group keeps as many."""
    labels = dict(op.labels("self"))
    if 1 in labels:
        groups = int(op["groups"])
        op.space.tie_rows(labels[1], groups)
        labels[1] = labels[1].reshape(groups, -1).T.ravel()
    return labels
