"""Reading a table from a bundle, or from a file that was copied out of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.core.elastic.table import Table
from secateur.core.errors import BundleError

if TYPE_CHECKING:
    from secateur.core.bundle import Bundle

TABLE = "elastic.json"


def is_elastic(bundle: Bundle) -> bool:
    """Whether a bundle holds an elastic model."""
    return TABLE in bundle.manifest.files


def read_table(bundle: Bundle) -> Table:
    """The table of an elastic bundle.

    Raises:
        BundleError: the bundle is static, or the table damaged.
    """
    if not is_elastic(bundle):
        count = len(bundle.manifest.points)
        raise BundleError(
            f"{bundle.path} is static; choose among its {count} point{'s' * (count > 1)}",
            f"secateur select {bundle.path} --budget ...; an elastic bundle is made by compress --method slimmable",
        )
    return load_table(bundle.checked_file(TABLE))


def load_table(path: Path) -> Table:
    """A table from its file.

    Raises:
        BundleError: missing or damaged.
    """
    try:
        return Table.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}", "copy the bundle again") from error
