"""Slimmable widths: one elastic multi-task model whose encoder stages and decoders each run at several widths."""

from secateur.compress.slimmable.result import Elastic, load_elastic, static_point
from secateur.compress.slimmable.settings import Settings
from secateur.compress.slimmable.slim import slim

__all__ = ["Elastic", "Settings", "load_elastic", "slim", "static_point"]
