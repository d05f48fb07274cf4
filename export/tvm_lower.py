"""From an ONNX file to tensor programs that are ready to be compiled: import, NHWC, our kernels, fusion, schedule.

What TVM cannot say well was said differently in ONNX before (tvm_onnx.py). Constants are moved about in numpy: TVM
would compile and run a program for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from secateur.export import tvm_kernels as kernels
from secateur.export import tvm_products as products
from secateur.export.runtime import Array
from secateur.export.tvm_kernels import Geometry, Tile, Vectors
from secateur.export.tvm_products import Choose, Product
from secateur.export.tvm_schedule import schedule_module


def lower(module: Any, target: Any, cpu: Vectors, choose: Choose | None = None) -> Any:
    """A relax module from the ONNX importer, as fused tensor programs, scheduled.

    Args:
        choose: how the tiles of products are chosen; by the rule when None.
    """
    import tvm
    from tvm import relax

    legalise = _legalisations(cpu, choose or products.by_rule(cpu))
    first = [relax.transform.DecomposeOpsForInference(), relax.transform.CanonicalizeBindings()]
    passes = [
        relax.transform.Normalize(),
        _fold_constants(),
        relax.transform.LegalizeOps(legalise),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
    with target, tvm.transform.PassContext(opt_level=3):
        module = tvm.transform.Sequential(passes)(_channels_last(tvm.transform.Sequential(first)(module)))
        return schedule_module(module, cpu)


def _channels_last(module: Any) -> Any:
    """Convolutions and what surrounds them in NHWC. TVM 0.27 fails at this on some vision transformers (bad_alloc):
    there each convolution is turned around by itself."""
    from tvm import relax

    try:
        return relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "HWIO"]})(module)
    except RuntimeError:
        return module


def _fold_constants() -> Any:
    """A pass that computes, in numpy, what only moves constants about."""
    import tvm
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Folder(PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = super().visit_call_(call)
            name = getattr(call.op, "name", "")
            if name not in _MOVES or not call.args:
                return call
            value = self._constant(call.args[0])
            return call if value is None else relax.const(np.ascontiguousarray(_MOVES[name](value, call)))

        def _constant(self, value: Any) -> Array | None:
            return _value(self.lookup_binding(value) if isinstance(value, relax.Var) else value)

    @tvm.transform.module_pass(opt_level=0, name="FoldMovedConstants")
    class Fold:
        def transform_module(self, module: Any, _: Any) -> Any:
            folder = Folder(module)
            for variable, function in module.functions_items():
                if isinstance(function, relax.Function):
                    folder.builder_.update_func(variable, folder.visit_expr(function))
            return folder.builder_.get()

    return Fold()


def _permuted(value: Array, call: Any) -> Array:
    axes = call.attrs.axes
    return value.transpose([int(axis) for axis in axes] if axes is not None else None)


_MOVES: Mapping[str, Callable[[Array, Any], Array]] = {
    "relax.permute_dims": _permuted,
    "relax.reshape": lambda value, call: value.reshape([int(size) for size in call.ty.shape]),
    "relax.expand_dims": lambda value, call: value.reshape([int(size) for size in call.ty.shape]),
    "relax.squeeze": lambda value, call: value.reshape([int(size) for size in call.ty.shape]),
}


def _legalisations(cpu: Vectors, choose: Choose) -> dict[str, Any]:
    """For each operation that has a kernel of ours, how a call of it becomes a call of that kernel."""
    from tvm import relax, topi

    def conv2d(builder: Any, call: Any) -> Any:
        attrs, weight, x = call.attrs, _array(builder, call.args[1]), call.args[0]
        layouts = (attrs.data_layout, attrs.kernel_layout)
        if weight is None or layouts not in (("NHWC", "HWIO"), ("NCHW", "OIHW")):
            return _default("relax.nn.conv2d", builder, call)
        geometry = Geometry(_ints(attrs.strides), _ints(attrs.padding), _ints(attrs.dilation))
        shape, out, groups = _ints(x.ty.shape), _ints(call.ty.shape), int(attrs.groups)
        if layouts[0] == "NHWC":
            product = products.convolution(shape, out, weight, geometry, groups, cpu)
            return _call(builder, call.ty, product, choose, x)
        shape, out = (tuple(each[axis] for axis in (0, 2, 3, 1)) for each in (shape, out))
        product = products.convolution(shape, out, weight.transpose(2, 3, 1, 0), geometry, groups, cpu)
        turned = builder.emit(builder.call_te(topi.transpose, x, [0, 2, 3, 1]))
        result = builder.emit(_call(builder, relax.TensorType(out, "float32"), product, choose, turned))
        return builder.call_te(topi.transpose, result, [0, 3, 1, 2])

    def matmul(builder: Any, call: Any) -> Any:
        a, b = call.args
        weight, shapes = _array(builder, b), [_ints(each.ty.shape) for each in call.args]
        if weight is not None and weight.ndim == 2 and len(shapes[0]) > 1:
            return _call(builder, call.ty, products.matrix(shapes[0], weight, cpu), choose, a)
        if len(shapes[0]) == len(shapes[1]) > 1:
            return _call(builder, call.ty, products.batched(shapes[0], shapes[1], cpu), choose, a, b)
        return _default("relax.matmul", builder, call)

    def softmax(builder: Any, call: Any) -> Any:
        rank = len(call.ty.shape)
        if int(call.attrs.axis) % rank != rank - 1 or rank < 2:
            return _default("relax.nn.softmax", builder, call)
        return builder.call_te(lambda x: kernels.softmax(x, cpu.width), call.args[0], primfunc_name_hint="softmax")

    def layer_norm(builder: Any, call: Any) -> Any:
        rank, axes = len(call.ty.shape), [int(axis) for axis in call.attrs.axes]
        if rank < 2 or axes not in ([-1], [rank - 1]):
            return _default("relax.nn.layer_norm", builder, call)
        epsilon = float(call.attrs.epsilon)
        norm = lambda x, gamma, beta: kernels.layer_norm(x, gamma, beta, epsilon, cpu.width)  # noqa: E731
        return builder.call_te(norm, *call.args, primfunc_name_hint="layer_norm")

    def pointwise(kernel: Callable[[Any], Any]) -> Any:
        return lambda builder, call: builder.call_te(kernel, call.args[0], primfunc_name_hint=kernel.__name__)

    return {
        "relax.nn.conv2d": conv2d,
        "relax.matmul": matmul,
        "relax.nn.softmax": softmax,
        "relax.nn.layer_norm": layer_norm,
        "relax.nn.gelu": pointwise(kernels.gelu),
        "relax.sigmoid": pointwise(kernels.sigmoid),
        "relax.exp": pointwise(topi.fast_exp),
        "relax.tanh": pointwise(topi.fast_tanh),
        "relax.erf": pointwise(topi.fast_erf),
    }


def _call(builder: Any, type_: Any, product: Product, choose: Choose, *args: Any) -> Any:
    """A call of a tile product, marked as something that pointwise steps may be fused to."""
    from tvm import relax

    function, weights = define(product, choose(product))
    variable = builder.add_func(function.without_attr("global_symbol").with_attr("op_pattern", 4), product.name)
    constants = [] if weights is None else [relax.const(weights)]
    return relax.call_tir(variable, [*args, *constants], type_)


def define(product: Product, tile: Tile) -> tuple[Any, Array | None]:
    """The tensor program of a product with a tile, and the weights that it takes as its last argument, if any."""
    from tvm import te, tirx

    kernel, weights = product.program(tile)
    shapes = [*product.inputs, *([] if weights is None else [weights.shape])]
    placeholders = [
        te.placeholder([tirx.IntImm("int64", size) for size in shape], "float32", name=f"p{index}")
        for index, shape in enumerate(shapes)
    ]
    return te.create_prim_func([*placeholders, kernel(*placeholders)]), weights


def _array(builder: Any, value: Any) -> Array | None:
    from tvm import relax

    return _value(builder.lookup_binding(value) if isinstance(value, relax.Var) else value)


def _value(value: Any) -> Array | None:
    """A constant as an array; None for whatever is not known yet."""
    from tvm.ir import GenericConst

    return value.value.numpy() if isinstance(value, GenericConst) else None


def _ints(values: Any) -> Any:
    return tuple(int(value) for value in values)


def _default(name: str, builder: Any, call: Any) -> Any:
    import tvm

    return tvm.ir.Op.get(name).get_attr("FLegalize")(builder, call)
