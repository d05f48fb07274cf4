"""Whose run on a device is whose: one lease is held for a user, and another user's run is left alone."""

from __future__ import annotations

import getpass

import pytest

from secateur.core import machine
from secateur.targets.farm.device_run import _owner
from secateur.targets.farm.file import FarmDevice, ReachEntry


def test_two_users_of_a_machine_are_two_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FarmDevice.model_construct(name="phone", reach=ReachEntry.model_construct())
    owners = []
    for name in ("ada", "bob", "ada"):
        monkeypatch.setattr(getpass, "getuser", lambda name=name: name)
        owners.append(_owner(device))
    assert owners[0] == owners[2] != owners[1]


def test_a_user_without_a_name_is_known_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert machine.user().isdigit()
