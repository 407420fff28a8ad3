"""The elements of a role: dib's grammar around the static elements, and the content id of what they make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from imagegen.base.tree import File, Tree, text
from imagegen.images.services_json import services_document
from imagegen.model.releases import Distro, Release, package_installs, package_map
from imagegen.model.roles import Role

IMAGE_JSON = "static/etc/imagegen/image.json"
SERVICES_JSON = "static/usr/lib/imagegen-node/services.json"

# What elements hold for imagegen itself: what they declare, and templates of their seed's files. No image needs it.
FOR_THIS_MACHINE = ("declaration.yaml", "seed")

# dib's root element for each distro that imagegen bakes; dib ships them.
ROOT_ELEMENTS = {"debian": "debian-minimal", "ubuntu": "ubuntu-minimal", "centos": "centos-minimal"}

README = """\
{title}
{name}
{title}

The {role} role of OpenStack {release} on {distro} {suite}. `imagegen generate`
writes this element; what it installs and configures is in the elements that
``element-deps`` names. ``/etc/imagegen/image.json`` tells a node which roles
its image has, ``/usr/lib/imagegen-node/services.json`` tells the first-boot
agent what runs there.

The image names no package mirror: apt's sources of the build stay behind. Nodes
that are to install packages get theirs from the operator, as a file in
``/etc/apt/sources.list.d``.

Environment variables
---------------------

DIB_IMAGEGEN_PACKAGE_CACHE
  A directory that keeps downloaded packages between builds. Default: none.
"""

PACKAGE_CACHE = """\
#!/bin/bash

if [ "${DIB_DEBUG_TRACE:-0}" -gt 0 ]; then
    set -x
fi
set -eu
set -o pipefail

# Mounted only now: debian-minimal runs `apt-get clean` in root.d/75, which empties a cache mounted before it.
if [ -n "${DIB_IMAGEGEN_PACKAGE_CACHE:-}" ]; then
    sudo mount --bind "$DIB_IMAGEGEN_PACKAGE_CACHE" "$TARGET_ROOT/var/cache/apt/archives"
fi
"""


BLOCK_DEVICE_STATE = """\
#!/bin/bash

if [ "${DIB_DEBUG_TRACE:-0}" -gt 0 ]; then
    set -x
fi
set -eu
set -o pipefail

# imagegen-base made no block device. dib 3.43 still asks for one at its end and fails without
# an answer: here is the state that it reads, and an empty pickled list of what to unmount.
if [ "${DIB_IMAGEGEN_TREE_ONLY:-0}" = 1 ]; then
    states=$TMP_BUILD_DIR/states/block-device
    mkdir -p "$states"
    echo '{"blockdev": {"image0": {"image": "none", "device": "none"}}}' > "$states/state.json"
    printf '].' > "$states/nodes.pickle"
fi
"""


def top_elements(role: Role) -> tuple[str, ...]:
    """What a role's generated element depends on: the network boot, and all that its nodes run or host."""
    return "imagegen-deploy", *role.services, *role.hosts


def role_element(role: Role) -> str:
    """The name of the role's generated element."""
    return f"imagegen-role-{role}"


def root_element(distro: Distro) -> str:
    """dib's element that makes the distro's first tree. Raises KeyError for a distro that dib has none for here."""
    return ROOT_ELEMENTS[distro.name]


def generate_role_element(role: Role, release: Release, static: Tree, image_id: str = "") -> Tree:
    """The files of imagegen-role-ROLE, by path inside it. `static` holds the in-house elements, by ELEMENT/PATH."""
    name, distro = role_element(role), release.distro
    title = "=" * len(name)
    readme = README.format(
        title=title, name=name, role=role, release=release.id, distro=distro.name, suite=distro.suite
    )
    image = {
        "version": 1,
        "roles": [str(role)],
        "release": release.id,
        "distro": {"name": distro.name, "suite": distro.suite, "arch": distro.arch},
        "content_id": image_id,
    }
    deps = sorted({*top_elements(role), "install-static", "package-installs", "pkg-map"})
    tree = {
        "README.rst": text(readme),
        "element-deps": text("".join(f"{dep}\n" for dep in deps)),
        IMAGE_JSON: text(_json(image)),
        SERVICES_JSON: text(json.dumps(services_document(role, release), indent=2) + "\n"),
        f"block-device.d/94-{name}-state": text(BLOCK_DEVICE_STATE, 0o755),
        f"root.d/76-{name}-package-cache": text(PACKAGE_CACHE, 0o755),
    }
    names, mapped = _release_packages(role, release, static)
    if names:
        tree["package-installs.yaml"] = text("".join(f"{one}:\n" for one in names))
        tree["pkg-map"] = text(_json(mapped))
    return tree


def elements_tree(static: Tree, roles: Iterable[Role], release: Release, image_ids: Mapping[Role, str]) -> Tree:
    """Every in-house element, ready for ELEMENTS_PATH: the static ones and one generated element per role.

    Modes are 0755 for what is executable and 0644 for the rest, whatever umask the checkout had.
    """
    tree = {
        path: File(file.data, 0o755 if file.mode & 0o111 else 0o644)
        for path, file in static.items()
        if path.split("/")[1] not in FOR_THIS_MACHINE
    }
    for role in roles:
        generated = generate_role_element(role, release, static, image_ids.get(role, ""))
        tree.update({f"{role_element(role)}/{path}": file for path, file in generated.items()})
    return dict(sorted(tree.items()))


def in_house_elements(name: str, elements: Tree) -> tuple[str, ...]:
    """The element and its dependencies in `elements`, sorted; dib's own are left out."""
    known = {path.partition("/")[0] for path in elements}
    found: set[str] = set()
    todo = [name]
    while todo:
        one = todo.pop()
        if one in known and one not in found:
            found.add(one)
            deps = elements.get(f"{one}/element-deps")
            todo += deps.data.decode().split() if deps else []
    return tuple(sorted(found))


def content_id(role: Role, release: Release, static: Tree, told: Mapping[str, Any]) -> str:
    """The sha256, in hex, of everything that decides what the role's image holds: same id, same image.

    `told` is all other input to dib and the assembler, as JSON. Neither a mirror nor the state of its archive is part
    of it.
    """
    elements = elements_tree(static, [role], release, {})
    names = in_house_elements(role_element(role), elements)
    generated = f"{role_element(role)}/{IMAGE_JSON}"
    files = [
        [path, f"{file.mode:04o}", hashlib.sha256(file.data).hexdigest()]
        for path, file in sorted(elements.items())
        if path.partition("/")[0] in names and path != generated
    ]
    distro = release.distro
    facts = {
        "role": str(role),
        "files": files,
        "release": release.id,
        "distro": distro.name,
        "suite": distro.suite,
        "arch": distro.arch,
        "packages": sorted({package for name in names for package in release.packages.get(name, ())}),
        "told": told,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def dib_elements(role: Role, distro: Distro) -> tuple[str, ...]:
    """The elements to name on disk-image-create's command line."""
    return (root_element(distro), role_element(role))


def dib_environment(distro: Distro) -> dict[str, str]:
    """The variables of the elements that decide what is built, without those that say where from."""
    return {
        "DIB_RELEASE": distro.suite,
        # dib 3.43 asks for Python 2 on Debian unless told otherwise.
        "DIB_PYTHON_VERSION": "3",
        # A tmpfs of half the memory fills up in the middle of a build, and the page cache is as good.
        "DIB_NO_TMPFS": "1",
    }


def images_yaml(roles: Sequence[Role], distro: Distro) -> File:
    """The same images in the YAML format of the command `diskimage-builder`."""
    entries = [
        {
            "imagename": f"imagegen-{role}",
            "arch": distro.arch,
            "types": ["tar"],
            "skip-base": True,
            "environment": dib_environment(distro),
            "elements": list(dib_elements(role, distro)),
        }
        for role in roles
    ]
    head = "# Built with: ELEMENTS_PATH=elements diskimage-builder images.yaml\n"
    return text(head + yaml.safe_dump(entries, sort_keys=False))


def _release_packages(role: Role, release: Release, static: Tree) -> tuple[list[str], dict[str, Any]]:
    """What this release needs beyond the static package-installs.yaml files: names, and their pkg-map."""
    elements = {name for start in top_elements(role) for name in in_house_elements(start, static)}
    present: set[str] = set()
    for element in elements:
        if file := static.get(f"{element}/package-installs.yaml"):
            present |= set(yaml.safe_load(file.data) or {})
    names: set[str] = set()
    mapped: dict[str, Any] = {"default": {}, "distro": {}}
    for element in sorted(elements):
        extra = set(package_installs(element, release)) - present
        names |= extra
        source = package_map(element)
        mapped["default"].update({name: source["default"][name] for name in extra})
        for distro, row in source.get("distro", {}).items():
            if chosen := {name: row[name] for name in extra if name in row}:
                mapped["distro"].setdefault(distro, {}).update(chosen)
    return sorted(names), mapped


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
