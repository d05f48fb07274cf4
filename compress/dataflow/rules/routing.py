"""Mixtures of experts: the experts are channels too, and so are their hidden widths."""

from __future__ import annotations

from secateur.compress.dataflow.rules.registry import Labels, Op, rule

_EXPERTS, _HIDDEN, _INPUTS, _OUTPUTS = "experts", "hidden", "inputs", "outputs"
_DIMENSIONS = {
    "kept": (_EXPERTS,),
    "up": (_EXPERTS, _HIDDEN, _INPUTS),
    "up_bias": (_EXPERTS, _HIDDEN),
    "glu": (_EXPERTS, _HIDDEN, _INPUTS),
    "down": (_EXPERTS, _OUTPUTS, _HIDDEN),
    "down_bias": (_EXPERTS, _OUTPUTS),
}


@rule("routed_experts", counting=True)
def routed_experts(op: Op) -> Labels:
    """Tokens [*, D], scores [*, R] and stacked weights → [*, D] (secateur.core.experts).

    `kept` names each expert's row of the router, which stays whole: an expert is removed with its entry there.
    """
    x, last = op.labels("x"), len(op.shape) - 1
    for name in ("up", "glu", "down"):
        op.weight(name, makes=[0, 1], reads=[2])
    op.fix(op.labels("scores").get(last), "the router keeps its rows")
    found = {_INPUTS: x.get(last)}
    for name, meanings in _DIMENSIONS.items():
        if op.args.get(name) is None:
            continue
        labels = op.labels(name)
        for dim, meaning in enumerate(meanings):
            if meaning in found:
                op.tie(found[meaning], labels.get(dim))
            else:
                found[meaning] = labels.get(dim)
    rest = {dim: channels for dim, channels in x.items() if dim != last}
    produced = found[_OUTPUTS]
    return rest if produced is None else rest | {last: produced}
