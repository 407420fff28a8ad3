"""The generated elements of the roles, and the content id of what they make."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace

import jsonschema
import pytest
import yaml
from diskimage_builder.diskimage_builder import DIB_SCHEMA

from imagegen.base.resources import data_directory
from imagegen.base.tree import File, Tree, read_tree, text
from imagegen.images.elements import (
    IMAGE_JSON,
    content_id,
    dib_elements,
    elements_tree,
    generate_role_element,
    images_yaml,
    in_house_elements,
    role_element,
)
from imagegen.model.releases import Distro, Release, find_release
from imagegen.model.roles import Role, find_role, roles

RELEASE = find_release("2025.1", Distro())
SMALL: Tree = {
    "nova-controller/element-deps": text("nova-common\nbase-things\n"),
    "nova-controller/install.d/50-x": text("#!/bin/bash\n", 0o755),
    "nova-common/element-deps": text("package-installs\nnova-controller\n"),
    "nova-common/package-installs.yaml": text("nova-common:\n"),
    "base-things/static/etc/x": text("x\n"),
    "nova-compute/element-deps": text("nova-common\n"),
}


def identify(role: str = "controller", release: Release = RELEASE, static: Tree = SMALL, **changes: object) -> str:
    """The content id of the small tree's role, with some inputs changed."""
    return content_id(find_role(role), release, static, {"formats": {"tar": {}}, **changes})


@pytest.mark.parametrize("role", roles(), ids=str)
def test_the_generated_element_has_what_dib_wants(role: Role) -> None:
    """A README, sorted dependencies, hooks that dib-run-parts runs, and the file that tells a node its roles."""
    tree = generate_role_element(role, RELEASE, read_tree(data_directory("elements")), "ab" * 32)
    deps = tree["element-deps"].data.decode().splitlines()
    assert deps == sorted(deps)
    assert f"nova-{role}" in deps
    assert role_element(role) in tree["README.rst"].data.decode()
    image = json.loads(tree[IMAGE_JSON].data)
    assert (image["version"], image["roles"], image["release"]) == (1, [role.name], "2025.1")
    assert image["content_id"] == "ab" * 32
    hooks = {path: file for path, file in tree.items() if re.match(r"[a-z-]+\.d/", path)}
    assert hooks
    for path, file in hooks.items():
        assert re.fullmatch(r"[a-z-]+\.d/\d\d-[0-9A-Za-z_-]+", path)
        assert file.mode == 0o755
        assert file.data.startswith(b"#!/bin/bash\n")


@pytest.mark.parametrize("role", roles(), ids=str)
def test_every_package_of_the_release_is_installed_by_some_element(role: Role) -> None:
    """What an element declares is in a package-installs.yaml, static or generated, and generated ones are mapped."""
    static = read_tree(data_directory("elements"))
    tree = elements_tree(static, [role], RELEASE, {})
    names = in_house_elements(role_element(role), tree)
    installed: set[str] = set()
    for name in names:
        if file := tree.get(f"{name}/package-installs.yaml"):
            installed |= set(yaml.safe_load(file.data) or {})
    generated = generate_role_element(role, RELEASE, static)
    mapping = json.loads(generated["pkg-map"].data) if "pkg-map" in generated else {"default": {}}
    extra = yaml.safe_load(generated["package-installs.yaml"].data) if "package-installs.yaml" in generated else {}
    assert set(mapping["default"]) == set(extra)
    wanted = {package for name in names for package in RELEASE.packages.get(name, ())}
    assert wanted
    assert wanted <= installed | set(mapping["default"].values())


def test_no_image_has_what_elements_hold_for_imagegen_itself() -> None:
    """Neither the trees nor the content id know declarations and the seed's templates."""
    own = {
        "nova-common/declaration.yaml": text("packages: {}\n"),
        "nova-common/seed/nova.conf.j2": text("[DEFAULT]\n"),
    }
    assert elements_tree(SMALL | own, roles(), RELEASE, {}) == elements_tree(SMALL, roles(), RELEASE, {})
    assert identify(static=SMALL | own) == identify()
    static = read_tree(data_directory("elements"))
    assert "keystone/seed/auth.j2" in static
    assert not [path for path in elements_tree(static, roles(), RELEASE, {}) if path.split("/")[1] == "seed"]


def test_a_release_gets_the_packages_that_only_it_has() -> None:
    """Queens' controller has nova-consoleauth, which no static element installs today."""
    queens = find_release("queens", Distro("ubuntu", "bionic", "amd64"))
    tree = generate_role_element(find_role("controller"), queens, SMALL)
    assert "nova-consoleauth" in yaml.safe_load(tree["package-installs.yaml"].data)
    assert json.loads(tree["pkg-map"].data)["distro"]["ubuntu"]["nova-consoleproxy"] == "nova-novncproxy"


def test_dependencies_are_followed_and_loops_end() -> None:
    """Elements in the tree count, transitively; dib's own are left out."""
    assert in_house_elements("nova-controller", SMALL) == ("base-things", "nova-common", "nova-controller")
    assert in_house_elements("debian-minimal", SMALL) == ()


def test_the_tree_has_static_and_generated_elements_with_git_s_modes() -> None:
    """Whatever umask a checkout had, a file is 0755 or 0644."""
    loose = {path: File(file.data, file.mode | 0o020) for path, file in SMALL.items()}
    tree = elements_tree(loose, roles(), RELEASE, {find_role("compute"): "cd"})
    assert {file.mode for file in tree.values()} == {0o644, 0o755}
    assert tree["nova-controller/install.d/50-x"].mode == 0o755
    assert json.loads(tree[f"imagegen-role-compute/{IMAGE_JSON}"].data)["content_id"] == "cd"
    assert list(tree) == sorted(tree)


def test_the_content_id_changes_with_everything_that_decides_the_content() -> None:
    """One changed input, another image; all ids differ from each other."""
    one_byte = {**SMALL, "base-things/static/etc/x": text("y\n")}
    one_bit = {**SMALL, "nova-common/element-deps": File(SMALL["nova-common/element-deps"].data, 0o755)}
    one_more = {**SMALL, "nova-common/static/etc/new": text("")}
    other_packages = replace(RELEASE, packages={**RELEASE.packages, "nova-common": ("other",)})
    ids = [
        identify(),
        identify("compute"),
        identify(static=one_byte),
        identify(static=one_bit),
        identify(static=one_more),
        identify(release=other_packages),
        identify(release=replace(RELEASE, id="2025.2")),
        identify(release=replace(RELEASE, distro=Distro(suite="forky"))),
        identify(release=replace(RELEASE, distro=Distro(arch="arm64"))),
        identify(formats={"tar": {"owners": "names"}}),
    ]
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in ids)
    assert len(set(ids)) == len(ids)


def test_the_content_id_ignores_what_does_not_reach_the_image() -> None:
    """Another role's elements, the checkout's group-writable bit, the order of files: the same image."""
    other = {**SMALL, "nova-compute/static/etc/nova/x": text("x\n"), "unused/element-deps": text("\n")}
    loose = {path: File(file.data, file.mode | 0o020) for path, file in reversed(SMALL.items())}
    assert identify() == identify(static=other) == identify(static=loose)


def test_images_yaml_is_diskimage_builder_s_own_format() -> None:
    """dib's schema accepts it, and it names what disk-image-create is called with."""
    definition = yaml.safe_load(images_yaml(roles(), Distro()).data)
    jsonschema.validate(definition, DIB_SCHEMA)
    assert [entry["elements"] for entry in definition] == [list(dib_elements(role, Distro())) for role in roles()]
    assert {entry["environment"]["DIB_RELEASE"] for entry in definition} == {"trixie"}


def test_the_state_for_dib_s_end_is_what_dib_reads() -> None:
    """The pickle that the hook prints is an empty list, its JSON has the keys that dib asks for."""
    tree = generate_role_element(find_role("compute"), RELEASE, SMALL)
    (hook,) = (file.data.decode() for path, file in tree.items() if path.startswith("block-device.d/"))
    printed = re.search(r"printf '([^']*)' > \"\$states/nodes.pickle\"", hook)
    state = re.search(r"echo '([^']*)' > \"\$states/state.json\"", hook)
    assert printed and state
    assert pickle.loads(printed[1].encode()) == []
    assert json.loads(state[1])["blockdev"]["image0"].keys() == {"image", "device"}
