"""Elastic models as plain data: stages and their widths, what every configuration costs and yields, and how to choose.

Needs numpy only, so that a device can choose without torch.
"""

from secateur.core.elastic.choose import Choice, Chooser, Wish
from secateur.core.elastic.table import Figures, LatencyTable, Original, Stage, Table

__all__ = ["Choice", "Chooser", "Figures", "LatencyTable", "Original", "Stage", "Table", "Wish"]
