"""releases.yaml: complete, consistent, and honest about what was built."""

from __future__ import annotations

import pytest
import yaml
from repository import read_modules

from imagegen.base.resources import PACKAGE, data_directory
from imagegen.model.declarations import declarations
from imagegen.model.releases import (
    Distro,
    UnknownRelease,
    default_release,
    default_suite,
    element_names,
    find_release,
    normalise_release,
    package_installs,
    package_map,
    release_ids,
    service_map,
)

DATA = yaml.safe_load((PACKAGE / "data/releases.yaml").read_bytes())
TRIXIE = Distro()
OFFERED = [
    (release, Distro(name, suite))
    for name, row in DATA["distros"].items()
    for suite, facts in row["suites"].items()
    for release in [facts["ships"], *facts.get("releases", [])]
]


def test_releases_reach_from_queens_to_flamingo() -> None:
    """In order, none left out: they are Nova 17 to Nova 32, named from q to z and again from a to f."""
    assert release_ids()[0] == "queens" and release_ids()[-1] == "2025.2"
    assert "".join(row["name"][0] for row in DATA["releases"]) == "qrstuvwxyzabcdef"


@pytest.mark.parametrize("name", ["2025.1", "epoxy", "Epoxy", " EPOXY "])
def test_a_release_is_found_by_name_or_number(name: str) -> None:
    """In any case."""
    assert normalise_release(name) == "2025.1"


def test_only_one_release_is_said_to_be_built_and_booted() -> None:
    """2025.1 on Debian trixie."""
    booted = [(r, d.suite) for r, d in OFFERED if find_release(r, d).booted]
    assert booted == [("2025.1", "trixie")]


@pytest.mark.parametrize(("release", "distro"), OFFERED, ids=str)
def test_every_offered_release_has_its_packages(release: str, distro: Distro) -> None:
    """All elements but the distro's own have packages, and every service that starts has a unit."""
    found = find_release(release, distro)
    assert set(found.packages) == set(element_names())
    assert all(found.packages.values())
    assert {"nova-api", "nova-conductor", "nova-scheduler", "nova-novncproxy", "nova-compute"} <= set(found.services)
    assert all(package_installs(element, found) for element in element_names())


def test_words_of_the_data_are_known_words() -> None:
    """No span, distro or release is misspelt."""
    known = set(release_ids())
    spans = [*DATA["features"].values()]
    for declared in declarations().values():
        for row in (*declared["packages"].values(), *declared.get("units", {}).values()):
            assert set(row) <= {"all", *DATA["distros"], "since", "until"}
            spans.append(row)
    assert len(spans) > 40
    assert {span[word] for span in spans for word in ("since", "until") if word in span} <= known
    assert {release for release, _ in OFFERED} <= known


def test_debians_controller_is_what_the_procedure_installs() -> None:
    """Item 1, in Debian's names; item 21 for the compute."""
    packages = find_release("2025.1", TRIXIE).packages
    assert set(packages["nova-controller"]) >= {"nova-api", "nova-conductor", "nova-consoleproxy", "nova-scheduler"}
    assert packages["placement-api"][0] == "placement-api"
    assert set(packages["nova-compute"]) >= {"nova-compute", "libvirt-daemon-system", "sysfsutils"}


@pytest.mark.parametrize(
    ("release", "distro", "known", "unknown"),
    [
        ("2025.1", TRIXIE, {"compute_id", "service_user", "discover_leader"}, {"use_neutron", "nova_consoleauth"}),
        ("zed", Distro(suite="bookworm"), {"minimum_compute"}, {"compute_id", "service_user", "discover_leader"}),
        ("queens", Distro("ubuntu", "bionic"), {"use_neutron", "auth_uri", "nova_consoleauth"}, {"compute_id"}),
        ("2025.2", Distro("ubuntu", "noble"), {"discover_leader"}, {"eventlet_api"}),
    ],
)
def test_features_begin_and_end(release: str, distro: Distro, known: set[str], unknown: set[str]) -> None:
    """As the releases' notes say."""
    found = find_release(release, distro)
    assert {name for name in known | unknown if found.knows(name)} == known


def test_a_feature_that_nobody_wrote_down_is_an_error() -> None:
    """A typo does not read as `no`."""
    with pytest.raises(KeyError):
        find_release("2025.1", TRIXIE).knows("compute_ids")


@pytest.mark.parametrize(
    ("release", "distro", "key"),
    [
        ("2025.3", TRIXIE, "release"),
        ("zed", TRIXIE, "release"),
        ("2025.1", Distro("debain"), "distro.name"),
        ("2025.1", Distro(suite="sid"), "distro.suite"),
        ("2025.1", Distro(arch="s390x"), "distro.arch"),
    ],
)
def test_what_is_unknown_is_named_by_its_key(release: str, distro: Distro, key: str) -> None:
    """The key of the cluster file that has to change."""
    with pytest.raises(UnknownRelease) as caught:
        find_release(release, distro)
    assert caught.value.key == key
    assert len(caught.value.message) < 200


def test_names_differ_between_distros() -> None:
    """Debian's console proxy is a package of its own, Ubuntu's and RDO's are novncproxy."""
    names = [
        find_release(*pair).packages["nova-controller"]
        for pair in (
            ("2024.1", Distro("ubuntu", "noble")),
            ("2025.1", TRIXIE),
            ("2024.2", Distro("centos", "9-stream")),
        )
    ]
    assert ["nova-novncproxy" in names[0], "nova-consoleproxy" in names[1]] == [True, True]
    assert "openstack-nova-novncproxy" in names[2]


def test_lock_paths_are_the_distros() -> None:
    """Item 8."""
    assert find_release("2025.1", TRIXIE).lock_path == "/var/lock/nova"
    assert find_release("2024.2", Distro("centos", "9-stream")).lock_path == "/var/lib/nova/tmp"


@pytest.mark.parametrize("element", element_names())
def test_maps_name_every_package_for_every_distro(element: str) -> None:
    """pkg-map and svc-map turn each name into the same name that the release has there."""
    for release, distro in OFFERED:
        found, mapped = find_release(release, distro), package_map(element)
        names = [
            mapped.get("distro", {}).get(distro.name, {}).get(name, mapped["default"][name])
            for name in package_installs(element, found)
        ]
        assert tuple(sorted(names)) == found.packages[element]
        for service, units in service_map(element).items():
            assert found.services.get(service, units.get(distro.name, units["default"])) == units.get(
                distro.name, units["default"]
            )


def test_the_elements_install_what_is_listed_here() -> None:
    """The committed package-installs.yaml files and these lists are the same for what is built and booted."""
    release, elements = find_release("2025.1", TRIXIE), data_directory("elements")
    for element in element_names():
        installs = yaml.safe_load((elements / element / "package-installs.yaml").read_text())
        assert sorted(installs) == sorted(package_installs(element, release)), element


def test_defaults_are_offered() -> None:
    """Each distro's default suite ships a release that can be had there."""
    for name in DATA["distros"]:
        distro = Distro(name, default_suite(name))
        assert find_release(default_release(distro), distro).id == default_release(distro)


@pytest.mark.parametrize(("module", "source"), read_modules().items())
def test_no_code_asks_for_a_release_by_number(module: str, source: str) -> None:
    """Differences between releases are data."""
    numbers = [row["id"] for row in DATA["releases"] if row["id"][0].isdigit()]
    code = [line.partition("#")[0] for line in source.splitlines() if "==" in line or ">=" in line or "<" in line]
    assert [line for line in code if any(f'"{number}"' in line for number in numbers)] == []
