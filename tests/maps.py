"""The elements' pkg-map and svc-map, as they declare it. Run as a script (`make elements`), it writes them."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from repository import ELEMENTS

from imagegen.model.releases import element_names, package_map, service_map


def render_maps() -> dict[Path, str]:
    """Path -> text of every map of the committed elements."""
    texts = {}
    for name in element_names():
        texts[ELEMENTS / name / "pkg-map"] = json.dumps(package_map(name), indent=2, sort_keys=True) + "\n"
        if services := service_map(name):
            texts[ELEMENTS / name / "svc-map"] = yaml.safe_dump(services, sort_keys=True)
    return {path: text for path, text in texts.items() if path.parent.is_dir()}


def find_stale_maps() -> list[Path]:
    """Maps of elements that declare nothing for them (any more)."""
    return sorted({*ELEMENTS.glob("*/pkg-map"), *ELEMENTS.glob("*/svc-map")} - render_maps().keys())


if __name__ == "__main__":
    for path, text in render_maps().items():
        path.write_text(text)
    for path in find_stale_maps():
        path.unlink()
