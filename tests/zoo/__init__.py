"""Test models by topology: `ZOO[name]()` gives `(model, example_input)`, always with the same numbers.

`classics` holds the published architectures, the other modules one hard case each for counting, channel dataflow,
pruning and export. Models with several tasks name them in `model.tasks`.
"""

from zoo import classics, convolutions, multitask, operators, routing
from zoo.registry import ZOO

__all__ = ["ZOO", "classics", "convolutions", "multitask", "operators", "routing"]
