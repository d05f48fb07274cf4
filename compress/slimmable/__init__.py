"""Slimmable widths: one elastic multi-task model whose encoder stages and decoders each run at several widths."""

from secateur.compress.slimmable.result import Elastic, judged_point, load_elastic, static_model
from secateur.compress.slimmable.settings import Settings
from secateur.compress.slimmable.slim import slim

__all__ = ["Elastic", "Settings", "judged_point", "load_elastic", "slim", "static_model"]
