"""Train the network of a built-in workload and write its weights with their metrics:

python -m secateur.workloads.train scenes [--epochs N] [--seed S]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from secateur.core import machine
from secateur.core.errors import SecateurError
from secateur.core.predict import evaluate
from secateur.core.progress import say
from secateur.core.seeds import seed_everything
from secateur.workloads import built_in, checkpoint, names
from secateur.workloads.training import Recipe, train

SMALL = 64
"""Samples of the test split whose metrics are recorded too, so that a quick check can reproduce them."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in options.workload:
        recipe: Recipe = built_in(name).recipe()
        try:
            metrics = run(recipe, options)["metrics"]
        except SecateurError as error:
            say(f"error: {error.message}\n{error.hint}")
            return error.exit_code
        say(f"{name}: " + ", ".join(f"{task} {value:.4f}" for task, value in metrics.items()))
    return 0


def run(recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Train, judge on the test split, write both files; returns what was written about the weights."""
    epochs = options.epochs or recipe.epochs
    seed_everything(options.seed)
    started = time.monotonic()
    model = train(recipe, epochs, options.bfloat16)
    seconds = time.monotonic() - started
    model.load_state_dict(checkpoint.as_shipped(model))  # what is judged is what will be loaded
    test = recipe.loader("test")
    description = {
        "workload": recipe.name,
        "metrics": evaluate(model, test, recipe.tasks, "test"),
        "small": {"samples": SMALL, "metrics": evaluate(model, test.first(SMALL), recipe.tasks)},
        "figures": recipe.figures(model) if recipe.figures else {},
        "better": {task.name: task.better for task in recipe.tasks},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "command": f"python -m secateur.workloads.train {recipe.name} --epochs {epochs} --seed {options.seed}"
        + (" --bfloat16" if options.bfloat16 else ""),
        "epochs": epochs,
        "seed": options.seed,
        "seconds": round(seconds),
        "machine": machine.describe(),
        "versions": machine.versions(),
    }
    checkpoint.save(model, recipe.name, description, options.output)
    return description


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m secateur.workloads.train", description=__doc__)
    parser.add_argument("workload", nargs="+", choices=names())
    parser.add_argument("--epochs", type=_positive, help="passes over the training split (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=_positive, default=2)
    parser.add_argument("--bfloat16", action="store_true", help="faster on processors with bfloat16 arithmetic")
    parser.add_argument("--output", type=Path, default=checkpoint.FOLDER, help="folder of the two files")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above zero")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
