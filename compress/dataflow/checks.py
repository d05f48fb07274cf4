"""Models that cannot be cut as they are, each refused by one line that says what to do."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from secateur.compress.channel_map import named_tensors
from secateur.core.errors import ModelError


def check(model: nn.Module) -> None:
    """Refuse what has no parameters of its own to cut.

    Raises:
        ModelError: a wrapper of several devices, a lazy layer before its first call, a tensor without values, a
            quantised layer, an attribute that autograd computed.
    """
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        raise ModelError(f"the model is wrapped in {type(model).__name__}", "pass the module inside: model.module")
    for path, module in model.named_modules():
        if ".quantized." in type(module).__module__:
            raise ModelError(
                f'"{path}" is a quantised layer ({type(module).__name__})', "compress the model before it is quantised"
            )
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise ModelError(
                    f'"{f"{path}.{name}" if path else name}" was computed from other tensors, and cannot be copied',
                    "torch.nn.utils.weight_norm and spectral_norm do so: take those of torch.nn.utils.parametrizations",
                )
    for name, tensor in named_tensors(model).items():
        if is_lazy(tensor):
            raise ModelError(f'"{name}" is not initialised yet', "call the model once on an example input")
        if tensor.is_meta:
            raise ModelError(f'"{name}" is on the meta device and has no values', "load the weights first")
        if tensor.is_quantized:
            raise ModelError(f'"{name}" is quantised', "compress the model before it is quantised")
