"""What all tests share: one seed, repeatable examples in CI, and a plain word for every group that cannot run."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest
import torch
from hypothesis import settings

from secateur.core.seeds import seed_everything

settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, why in (("browser", _no_browser), ("gpu", _no_gpu), ("zoo", _no_zoo)):
            if item.get_closest_marker(marker) and (reason := why()):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    seed_everything(0)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium, for tests that are marked `browser`."""
    return next(path for name in BROWSERS if (path := shutil.which(name)))


def _no_browser() -> str | None:
    return None if any(map(shutil.which, BROWSERS)) else "no Chromium is installed"


def _no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "no NVIDIA GPU"


def _no_zoo() -> str | None:
    missing = [name for name in ("torchvision", "timm") if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed (the extra [zoo])" if missing else None
