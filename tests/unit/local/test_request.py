"""request.py: which image a node boots from."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagegen.base.errors import BadUsage
from imagegen.local.request import find_image
from imagegen.model.roles import find_role


@pytest.mark.parametrize(("backend", "suffix"), [("nspawn", "tar"), ("qemu", "qcow2")])
def test_the_current_image_is_found(tmp_path: Path, backend: str, suffix: str) -> None:
    """`current` holds the content id that the files' names have."""
    directory = tmp_path / "images" / "controller"
    directory.mkdir(parents=True)
    image = directory / f"controller-0123456789ab.{suffix}"
    image.touch()
    (directory / "current").write_text("0123456789ab\n")
    assert find_image(tmp_path, find_role("controller"), backend) == image
    image.unlink()
    with pytest.raises(BadUsage, match="is missing") as raised:
        find_image(tmp_path, find_role("controller"), backend)
    assert "imagegen build --role controller" in raised.value.hint


def test_a_role_never_built_names_the_command(tmp_path: Path) -> None:
    """Build comes before boot."""
    with pytest.raises(BadUsage, match="no image for the role compute") as raised:
        find_image(tmp_path, find_role("compute"), "qemu")
    assert "imagegen build --role compute" in raised.value.hint
