"""Where things are kept that can be made again: renderings, calibrations, tuning, compiled runners, leases."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """`$SECATEUR_CACHE`, or the user's own cache folder; it need not exist yet."""
    return Path(os.environ.get("SECATEUR_CACHE") or user_cache_path("secateur", appauthor=False))
