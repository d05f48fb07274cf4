"""Normalisations: parameters bound to the normalised channels, and groups that keep equal sizes."""

from __future__ import annotations

from secateur.compress.dataflow.rules.registry import Labels, Op, rule


@rule(
    "batch_norm", "instance_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional", counting=True,
)  # fmt: skip
def batch_norm(op: Op) -> Labels | list[Labels]:
    """Input [N, C, *] with weight, bias and running statistics [C]. Some forms return statistics next to the result."""
    labels = op.labels("self")
    for name in ("weight", "bias", "running_mean", "running_var"):
        bound = op.labels(name).get(0)
        if bound is not None:
            op.tie(bound, labels.get(1))
    return [labels, *({} for _ in range(op.returns - 1))] if op.returns > 1 else labels


@rule("group_norm", counting=True)
def group_norm(op: Op) -> Labels:
    """Input [N, C, *] in `num_groups` rows of channels: every row keeps as many, or goes, if it is a single channel."""
    labels, groups = op.labels("self"), int(op["num_groups"])
    channels = labels.get(1)
    for name in ("weight", "bias"):
        bound = op.labels(name).get(0)
        if bound is not None:
            op.tie(bound, channels)
    if channels is not None and len(channels) > groups:
        op.space.tie_rows(channels, groups)
    return labels


@rule("layer_norm", "rms_norm", counting=True)
def layer_norm(op: Op) -> Labels:
    """Input [*, normalized_shape] with weight and bias of that shape."""
    labels, ndim = op.labels("self"), len(op.shape_of("self"))
    normalised = len(op["normalized_shape"])
    for name in ("weight", "bias"):
        for dim, bound in op.labels(name).items():
            op.tie(bound, labels.get(ndim - normalised + dim))
    return labels


@rule("_weight_norm", counting=True)
def weight_norm(op: Op) -> Labels:
    """Directions [O, I, *] and lengths that are 1 but along `dim` → a weight of that shape
    (torch.nn.utils.parametrizations.weight_norm)."""
    labels = op.labels("v")
    for dim, channels in op.labels("g").items():
        op.tie(channels, labels.get(dim))
    return labels


@rule("softmax", "log_softmax", "normalize", "cumsum", "cumprod", "logcumsumexp", counting=True)
def along_a_dimension(op: Op) -> Labels:
    """The result has the shape of the input; every channel sees the others of its dimension, order included."""
    return op.labels("self")
