"""PAGCP: performance-aware approximation of global channel pruning for multi-task CNNs."""

from secateur.compress.pagcp.prune import prune
from secateur.compress.pagcp.saliency import saliency
from secateur.compress.pagcp.settings import Settings

__all__ = ["Settings", "prune", "saliency"]
