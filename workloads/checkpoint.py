"""The trained weights that ship with Secateur: NAME.safetensors, and NAME.json that says how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.core.errors import WorkloadError
from secateur.core.files import write_json, writing

FOLDER = Path(__file__).parent / "weights"
Model = TypeVar("Model", bound=nn.Module)


def load(model: Model, name: str, folder: Path = FOLDER) -> Model:
    """Fill a fresh instance with the weights of that name; returns it in evaluation mode.

    Raises:
        WorkloadError: the file is missing or damaged, or does not fit the model.
    """
    path = folder / f"{name}.safetensors"
    hint = f"install Secateur again, or train: python -m secateur.workloads.train {name}"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise WorkloadError(f"the weights of {name} cannot be read: {path}", hint) from error
    except RuntimeError as error:
        raise WorkloadError(f"the weights of {name} do not fit its network: {path}", hint) from error
    return model.eval()


def document(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """How the weights were trained, and their metrics."""
    loaded: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def as_shipped(model: nn.Module) -> dict[str, Tensor]:
    """The state as it is stored."""
    return {
        key: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for key, tensor in model.state_dict().items()
    }


def save(model: nn.Module, name: str, description: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write weights (in half precision: half the size to ship) and description; each file is whole at every moment."""
    path = folder / f"{name}.safetensors"
    with writing(path) as temporary:
        save_file(as_shipped(model), temporary)
        temporary.chmod(0o644)
    write_json(path.with_suffix(".json"), description)
    return path
