"""The device file shown in docs/targets.md is one."""

from __future__ import annotations

from pathlib import Path

from secateur.targets.device import Device, get

PAGE = Path(__file__).parents[2] / "docs" / "targets.md"


def test_the_example_is_read_as_it_is_shown(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    path = tmp_path / "board.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    device = get(path)
    assert device.name == "mobile:my-board"
    assert set(device.model_dump()) == set(Device.model_fields)
    assert all(f"`{key}`" in text for key in Device.model_fields)
