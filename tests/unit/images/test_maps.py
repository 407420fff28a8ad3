"""The committed pkg-map and svc-map files say what the declarations say."""

from __future__ import annotations

from maps import find_stale_maps, render_maps
from repository import ELEMENTS

from imagegen.model.releases import element_names


def test_every_map_is_as_releases_has_it() -> None:
    """`make elements` would change nothing."""
    maps = render_maps()
    assert len(maps) > 10
    stale = [
        str(path.relative_to(ELEMENTS)) for path, text in maps.items() if not path.is_file() or path.read_text() != text
    ]
    assert stale == [], "run `make elements`"
    assert find_stale_maps() == []


def test_every_element_of_releases_exists() -> None:
    """A renamed element leaves no packages behind."""
    assert [name for name in element_names() if not (ELEMENTS / name).is_dir()] == []
