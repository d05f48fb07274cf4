"""Sparse task experts: from a multi-task mixture of experts, the model that one task needs."""

from secateur.compress.experts.extract import extract
from secateur.compress.experts.layers import ExpertLayer, Layout, find, register
from secateur.compress.experts.settings import Settings

__all__ = ["ExpertLayer", "Layout", "Settings", "extract", "find", "register"]
