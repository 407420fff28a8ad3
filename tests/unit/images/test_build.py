"""What a build does around dib: mirrors, environment, log, cache, links, and what it asks of the machine."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.builder import FORMATS, STATUS, FakeMachine
from hypothesis import given
from hypothesis import strategies as st

from imagegen.base import machine
from imagegen.base.errors import BadUsage, CommandFailed, MachineLacks
from imagegen.images import build, cache, dib, disk, elements, mirrors, network_formats
from imagegen.images.build import ImagePlan, Progress, build_images, plan_image
from imagegen.images.dib import DibBuild, DibLog
from imagegen.images.manifest import checksums, digest_files, intact_files, read_manifest, read_packages
from imagegen.images.mirrors import Mirrors, choose_mirrors, find_mirrors, read_apt_sources
from imagegen.inputs.cluster_file import load_cluster
from imagegen.model.releases import Distro
from imagegen.model.roles import find_role

MAIN, SECURITY = "http://mirror.example/debian", "http://mirror.example/debian-security"
DEB822 = f"""\
Types: deb deb-src
# a comment in the middle
URIs: {MAIN}
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: {SECURITY}
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = f"""\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/x.gpg] {MAIN} bookworm main contrib  # trailing
deb-src {MAIN} bookworm main
deb {SECURITY} bookworm/updates main
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A Debian 12 machine's root with an empty sources.list.d."""
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    return tmp_path


def test_mirrors_come_from_deb822_sources(host: Path) -> None:
    """Main, updates and security are told apart by suite; disabled stanzas do not count."""
    (host / "etc/apt/sources.list.d/debian.sources").write_text(DEB822)
    assert find_mirrors(Distro(), host) == Mirrors(MAIN, SECURITY, updates=True)


def test_mirrors_come_from_one_line_sources(host: Path) -> None:
    """Options, comments and deb-src lines are no mirrors; `bookworm/updates` is the old name of security."""
    (host / "etc/apt/sources.list").write_text(ONE_LINE)
    assert next(read_apt_sources(host / "etc/apt")) == (MAIN, "bookworm", ("main", "contrib"))
    assert find_mirrors(Distro(), host) == Mirrors(MAIN, SECURITY, updates=False)


def test_a_third_party_archive_is_not_taken_for_the_distro_s(host: Path) -> None:
    """An archive of the same suite and component loses against one that has the distro's name, in either order."""
    other = "deb http://vendor.example/tool bookworm main\n"
    for content in (other + ONE_LINE, ONE_LINE + other):
        (host / "etc/apt/sources.list").write_text(content)
        assert find_mirrors(Distro(), host).main == MAIN


def test_a_machine_of_another_distro_asks_for_a_mirror(host: Path) -> None:
    """Its own sources are of no use; the variables are."""
    (host / "etc/os-release").write_text("ID=ubuntu\nVERSION_CODENAME=noble\n")
    (host / "etc/apt/sources.list").write_text("deb http://mirror.example/ubuntu noble main\n")
    with pytest.raises(MachineLacks, match="no archive of debian") as caught:
        choose_mirrors(Distro(), {}, host)
    assert "IMAGEGEN_MIRROR" in caught.value.hint
    chosen = choose_mirrors(Distro(), {"IMAGEGEN_MIRROR": MAIN, "IMAGEGEN_SECURITY_MIRROR": SECURITY}, host)
    assert chosen == Mirrors(MAIN, SECURITY)


def test_a_named_mirror_keeps_this_machine_s_security_archive(host: Path) -> None:
    """Naming one mirror must not cost the image its security updates."""
    (host / "etc/apt/sources.list").write_text(ONE_LINE)
    chosen = choose_mirrors(Distro(), {"IMAGEGEN_MIRROR": "http://near.example/debian"}, host)
    assert chosen == Mirrors("http://near.example/debian", SECURITY)


def test_sources_are_rewritten_for_the_image_s_suite() -> None:
    """dib gets one line a source, in its own `NAME:LINE` form."""
    assert Mirrors(MAIN, SECURITY).sources(Distro()).splitlines() == [
        f"default:deb {MAIN} trixie main",
        f"updates:deb {MAIN} trixie-updates main",
        f"security:deb {SECURITY} trixie-security main",
    ]
    assert Mirrors(MAIN, None, updates=False).sources(Distro()) == f"default:deb {MAIN} trixie main\n"


@pytest.mark.parametrize(
    ("found", "proxies"),
    [
        (Mirrors("http://me:secret@mirror.example/debian"), {}),
        (Mirrors(MAIN, "https://me:secret@mirror.example/s"), {}),
        (Mirrors(MAIN), {"http_proxy": "http://me:secret@proxy.example:3128"}),
    ],
)
def test_a_url_with_a_password_is_refused_without_showing_it(found: Mirrors, proxies: dict[str, str]) -> None:
    """dib would print it into its log and its commands' arguments."""
    with pytest.raises(BadUsage) as caught:
        mirrors.check_urls(found, proxies)
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


def make_dib_build(work: Path) -> DibBuild:
    """A run of dib below `work`."""
    return DibBuild(
        find_role("controller"),
        Distro(),
        "controller-1",
        work / "elements",
        work,
        work / "cache",
        Mirrors(MAIN, SECURITY),
    )


def test_nothing_of_the_caller_s_environment_reaches_dib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is built: neither secrets nor DIB_ variables of the caller are in it, dib's switches are."""
    monkeypatch.setenv("DIB_CANARY", "canary")
    monkeypatch.setenv("OS_PASSWORD", "canary")
    environment = make_dib_build(tmp_path).environment()
    assert "canary" not in environment.values()
    assert environment["DIB_RELEASE"] == "trixie"
    assert environment["ELEMENTS_PATH"] == f"{tmp_path}/elements"
    assert environment["TMP_DIR"] == str(tmp_path)


def test_the_tar_holds_nothing_of_this_machine_s_dev(tmp_path: Path) -> None:
    """dib makes it while /dev is mounted in the tree, with all that lies in /dev/shm."""
    assert "--one-file-system" in make_dib_build(tmp_path).environment()["TAR_OPTIONS"].split()


def test_dib_runs_in_namespaces_that_end_with_imagegen(tmp_path: Path) -> None:
    """Own mounts, own processes, killed with their parent; the base element is left out."""
    argv = make_dib_build(tmp_path).argv()
    assert argv[:3] == ["setpriv", "--pdeathsig", "KILL"]
    assert {"--mount", "--pid", "--kill-child", "--mount-proc"} <= set(argv)
    assert argv[argv.index("--propagation") + 1] == "private"
    assert argv[-2:] == ["debian-minimal", "imagegen-role-controller"]
    assert "-n" in argv
    assert argv[argv.index("-t") + 1] == "tar"


def identify() -> str:
    """The content id of the default cluster's role, as this installation has it."""
    return plan_image(load_cluster(None), find_role("controller"), Path("out"), [], Path("cache")).content_id


def change_environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    before = DibBuild.environment
    monkeypatch.setattr(DibBuild, "environment", lambda self: {**before(self), **variables})


def change_arguments(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    before = DibBuild.argv
    monkeypatch.setattr(DibBuild, "argv", lambda self: [*before(self), *words])


CHANGES: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "a variable of the elements": lambda patch: change_environment(patch, DIB_NEW="1"),
    "another value of one": lambda patch: change_environment(patch, DIB_PYTHON_VERSION="2"),
    "one of tar's": lambda patch: change_environment(patch, TAR_OPTIONS=""),
    "an element": lambda patch: change_arguments(patch, "vm"),
    "a flag": lambda patch: change_arguments(patch, "--no-tmpfs"),
    "what starts dib": lambda patch: patch.setattr(dib, "DISK_IMAGE_CREATE", "import other"),
    "what waits for it": lambda patch: patch.setattr(dib, "INIT", "exec"),
    "a program before this machine's": lambda patch: patch.setitem(dib.PROGRAMS, "sync", "#!/bin/sh\nexit 1\n"),
    "the environment of all commands": lambda patch: patch.setattr(dib.commands, "PATH", "/bin"),
    "the root element": lambda patch: patch.setitem(elements.ROOT_ELEMENTS, "debian", "debian"),  # type: ignore[arg-type]
    "dib, with its own elements": lambda patch: patch.setattr("importlib.metadata.version", lambda name: "9.9"),
    "the assembler": lambda patch: patch.setattr(build, "ASSEMBLER", build.ASSEMBLER + 1),
    "a format": lambda patch: patch.setitem(build.FORMATS, "tar", {"owners": "names"}),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_dib_and_the_assembler_are_told_is_in_the_content_id(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same id never means two contents; each input is varied alone."""
    before = identify()
    CHANGES[change](monkeypatch)
    assert identify() != before


def test_the_content_id_is_of_what_is_told_in_earnest(tmp_path: Path, machine: FakeMachine) -> None:
    """A build cannot tell dib what the id does not know: both are one object's argv() and environment()."""
    plan, _, _ = start(tmp_path)
    (job,) = machine.jobs
    told = build.describe_inputs(find_role("controller"), plan.release)["dib"]
    assert job.inputs() == told
    words = [word for word in job.argv() if str(tmp_path) not in word and word != sys.executable]
    assert [word for word in words if word not in told["argv"]] == []
    assert job.environment().keys() - told["environment"].keys() <= {"DIB_DEBIAN_USE_DEBOOTSTRAP_CACHE"}


def test_the_content_id_knows_neither_place_nor_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One id on every machine, from every mirror, through every proxy."""
    before, build_of = identify(), make_dib_build(tmp_path)
    monkeypatch.setattr("sys.executable", "/opt/python")
    monkeypatch.setenv("HOME", "/srv/alice")
    monkeypatch.chdir(tmp_path)
    assert identify() == before
    elsewhere = replace(build_of, mirrors=Mirrors("http://other.example"), proxies={"http_proxy": "http://p"}, name="x")
    assert elsewhere.inputs() == replace(build_of, reuse_base=True).inputs()


def test_the_manifest_names_the_inputs(tmp_path: Path, machine: FakeMachine) -> None:
    """dib's version stands for its own elements, and the root element is named."""
    start(tmp_path)
    inputs = read_manifest(tmp_path / "out/images/controller")["inputs"]
    assert inputs["root element"] == "debian-minimal"
    assert inputs["diskimage-builder"] == importlib.metadata.version("diskimage-builder")
    assert inputs["assembler"] == build.ASSEMBLER
    assert inputs["dib"]["environment"]["DIB_RELEASE"] == "trixie"
    assert str(tmp_path) not in json.dumps(inputs)


def normalise(node: object) -> object:
    """A syntax tree as JSON, without docstrings, comments and what differs between Python's versions."""
    if isinstance(node, list):
        return [
            normalise(one) for one in node if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        ]
    if isinstance(node, ast.AST):
        fields = {name: normalise(value) for name, value in ast.iter_fields(node)}
        return [type(node).__name__, {name: value for name, value in fields.items() if value not in (None, [])}]
    return repr(node)


def digest_assembler() -> str:
    """The digest of the source that makes an image's bytes from what dib is told: without it, what the id is not of."""
    own = ("fill_stage", "build_tree", "read_from_tar", "unpack")
    functions = {node.name: node for node in ast.parse(Path(build.__file__).read_text()).body if hasattr(node, "name")}
    nodes = [functions[name] for name in own]
    modules = [ast.parse(Path(module.__file__).read_text()) for module in (disk, network_formats)]
    return hashlib.sha256(json.dumps([normalise(node) for node in (*nodes, *modules)]).encode()).hexdigest()[:16]


def test_a_change_of_the_assembler_asks_for_its_version() -> None:
    """If images become other bytes by your change, raise build.ASSEMBLER. In any case write the new digest here."""
    assert (build.ASSEMBLER, digest_assembler()) == (1, "d57ceb399041458b")


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("def f():\n    return 1", "def f():\n    'words'\n    return 1  # more", True),
        ("x = 1", "x = 2", False),
        ("def f(a, b=1): pass", "def f(a, b=2): pass", False),
    ],
)
def test_words_are_no_change_of_the_assembler(before: str, after: str, same: bool) -> None:
    assert (normalise(ast.parse(before)) == normalise(ast.parse(after))) is same


LOG = """\
2026-01-01 10:00:00.000 | Building elements: debian-minimal imagegen-role-controller
2026-01-01 10:00:01.000 | Running hooks from /c/work/dib_build.x/hooks/root.d
2026-01-01 10:00:02.000 | dib-run-parts Running /c/work/dib_build.x/hooks/root.d/08-debootstrap
2026-01-01 10:00:03.000 | W: root.d warns
2026-01-01 10:00:04.000 | Running hooks from /c/work/dib_build.x/hooks/extra-data.d
2026-01-01 10:00:05.000 | dib-run-parts Running /tmp/in_target.d/install.d/01-package-installs
2026-01-01 10:00:06.000 | > 0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
2026-01-01 10:00:07.000 | > Setting up one (1.0) ...
2026-01-01 10:00:08.000 | > Setting up two (1.0) ...
2026-01-01 10:00:09.000 | > E: Unable to locate package no-such-package
2026-01-01 10:00:10.000 | subprocess.CalledProcessError: Command 'install-packages' returned non-zero exit status 100.
2026-01-01 10:00:11.000 | Unmount /c/work/dib_build.x/mnt/sys
2026-01-01 10:00:12.000 | INFO diskimage_builder.block_device.blockdevice [-] State already cleaned
"""


def follow(lines: list[str]) -> tuple[DibLog, list[tuple[str, str]]]:
    """A log fed with lines, one second apart, and what it reported."""
    reports: list[tuple[str, str]] = []
    ticks: Iterator[int] = iter(range(1000))
    log = DibLog(lambda phase, detail: reports.append((phase, detail)), clock=lambda: float(next(ticks)))
    for line in lines:
        log.feed(line)
    log.end()
    return log, reports


def test_the_log_tells_phases_and_packages() -> None:
    """Hooks outside and inside the tree both name their phase; packages are counted."""
    log, reports = follow(LOG.splitlines())
    assert log.phase == "install"
    assert list(log.seconds) == ["root", "extra-data", "install"]
    assert ("root", "08-debootstrap") in reports
    assert ("install", "2 of 2 packages set up") in reports


def test_the_tar_counts_as_a_phase_of_its_own() -> None:
    """dib prints nothing when it starts it: the profile of its last hooks is the mark."""
    log, _ = follow(["dib-run-parts Running /b/hooks/cleanup.d/01-x", "dib-run-parts Target: cleanup.d"])
    assert log.phase == "tar"


def test_a_failure_shows_the_lines_that_matter() -> None:
    """The complaint of the phase that failed, nothing of phases before it, nothing of dib's clean-up after it."""
    log, _ = follow(LOG.splitlines())
    matters = "\n".join(log.matters())
    assert "Unable to locate package no-such-package" in matters
    assert "exit status 100" in matters
    assert "root.d warns" not in matters
    assert "Unmount" not in matters
    assert "cleaned" not in matters


@given(st.lists(st.text(), max_size=30))
def test_no_line_of_a_log_breaks_the_follower(lines: list[str]) -> None:
    """dib's log holds whatever packages print."""
    log, _ = follow(lines)
    assert len(log.matters()) <= 22


def test_the_manifest_lists_what_is_installed() -> None:
    """Removed packages whose configuration stays are not in the image."""
    assert read_packages(STATUS) == {"nova-api": "2:31.0.0-6"}


def test_sums_are_in_sha256sum_s_format(tmp_path: Path) -> None:
    """`HEX  FILE`, by name."""
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "a").write_bytes(b"a")
    files = digest_files([tmp_path / "b", tmp_path / "a"])
    assert checksums(files) == (
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  a\n"
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b\n"
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 seconds"), (59, "59 seconds"), (60, "1 minute"), (7300, "2 hours"), (86400 * 12, "12 days")],
)
def test_ages_are_told_in_words(seconds: float, words: str) -> None:
    """The largest unit that fits."""
    assert cache.describe_age(seconds) == words


def start(tmp_path: Path, *, name: str = "out", **options: Any) -> tuple[ImagePlan, list[Progress], list[build.Image]]:
    """Builds the default cluster's controller; returns its plan, what was reported and the images."""
    cluster, reports = load_cluster(None), []
    out, cache = tmp_path / name, tmp_path / "cache"
    images = build_images(
        cluster, [find_role("controller")], out, mirrors=Mirrors(MAIN), cache=cache, report=reports.append, **options
    )
    return plan_image(cluster, find_role("controller"), out, ["raw"], cache), reports, images


def test_a_build_leaves_images_sums_manifest_and_current(tmp_path: Path, machine: FakeMachine) -> None:
    """Everything of the contract is in OUT/images/ROLE, and nothing else."""
    plan, _, images = start(tmp_path)
    place = tmp_path / "out/images/controller"
    names = [f"controller-{plan.id}.{format}" for format in FORMATS]
    assert sorted(path.name for path in place.iterdir()) == sorted([*names, "SHA256SUMS", "manifest.json", "current"])
    assert (place / "current").read_text() == f"{plan.id}\n"
    assert [(image.format, image.path.name, image.id) for image in images] == [
        (format, name, plan.id) for format, name in zip(FORMATS, names, strict=True)
    ]
    manifest = read_manifest(place)
    assert manifest["content_id"] == plan.content_id
    assert manifest["packages"] == {"nova-api": "2:31.0.0-6"}
    assert manifest["seconds"].keys() == {"root", "unpack", "squashfs", "disk", "qcow2", "raw.zst", "checksums"}
    assert "imagegen-role-controller" in manifest["inputs"]["elements"]
    assert "mirror.example" not in json.dumps(manifest)
    assert (place / "SHA256SUMS").read_text() == checksums(manifest["files"])
    assert not (tmp_path / "cache/work").exists()


def test_a_second_build_is_a_no_op_that_says_so(tmp_path: Path, machine: FakeMachine) -> None:
    """The same content id: nothing runs, and the image's age is told."""
    start(tmp_path)
    machine.ran.clear()
    _, reports, images = start(tmp_path)
    assert machine.ran == []
    assert [report.phase for report in reports] == ["reused"]
    assert "ago" in reports[0].detail
    assert len(images) == len(FORMATS)


def test_what_another_build_made_meanwhile_is_reused(
    tmp_path: Path, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two builds at once, as of two checkouts: the one that waited for the lock says that nothing was left to do."""
    free = build.hold_cache

    @contextmanager
    def hold_cache(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
        monkeypatch.setattr(build, "hold_cache", free)
        waiting("another imagegen")
        start(tmp_path, name="other")
        machine.ran.clear()
        with free(path, waiting):
            yield

    monkeypatch.setattr(build, "hold_cache", hold_cache)
    _, reports, images = start(tmp_path)
    assert machine.ran == []
    assert [report.phase for report in reports] == ["waiting", "reused"]
    assert len(images) == len(FORMATS)


def test_refresh_builds_again(tmp_path: Path, machine: FakeMachine) -> None:
    """The archive moved on, which no content id can tell."""
    start(tmp_path)
    before = (tmp_path / "out/images/controller/SHA256SUMS").read_text()
    start(tmp_path, refresh=True)
    assert machine.ran.count("dib") == 2
    assert (tmp_path / "out/images/controller/SHA256SUMS").read_text() != before


def test_another_out_gets_links_to_the_same_files(tmp_path: Path, machine: FakeMachine) -> None:
    """A built image costs its space once."""
    plan, _, images = start(tmp_path)
    (image, *_) = build_images(
        load_cluster(None), [find_role("controller")], tmp_path / "two", cache=tmp_path / "cache"
    )
    assert machine.ran.count("dib") == 1
    assert image.path.samefile(images[0].path)
    assert image.path.samefile(plan.entry / image.path.name)


def test_a_missing_format_is_made_from_the_cached_tar(tmp_path: Path, machine: FakeMachine) -> None:
    """dib runs once for an image, whichever formats are asked for later."""
    _, _, images = start(tmp_path, formats=["tar"])
    assert [image.format for image in images] == ["tar"]
    assert machine.ran == ["dib"]
    _, _, images = start(tmp_path)
    assert machine.ran == ["dib", "unpack", "squashfs", "disk", "qcow2", "raw.zst"]
    assert [image.format for image in images] == list(FORMATS)
    _, _, images = start(tmp_path, formats=["vmlinuz"], name="kernel")
    assert [image.format for image in images] == ["tar", "vmlinuz"]


def test_an_image_that_was_written_to_is_not_reused(tmp_path: Path, machine: FakeMachine) -> None:
    """Somebody booted the raw file, through the hard link in OUT: it is made anew from the tar, which is untouched."""
    plan, _, _ = start(tmp_path)
    raw = tmp_path / "out/images/controller" / f"{plan.name}.raw"
    raw.write_text("booted")
    os.utime(raw, ns=(0, (plan.entry / "manifest.json").stat().st_mtime_ns + 1))
    assert raw.name not in intact_files(plan.entry)
    start(tmp_path)
    assert machine.ran.count("dib") == 1
    assert machine.ran.count("disk") == 2
    assert raw.read_text() == "raw"


def test_a_changed_tar_takes_the_other_formats_with_it(tmp_path: Path, machine: FakeMachine) -> None:
    """All formats of an image hold the same tree."""
    plan, _, _ = start(tmp_path)
    (plan.entry / f"{plan.name}.tar").write_text("longer than it was")
    start(tmp_path)
    assert [machine.ran.count(step) for step in ("dib", "disk", "qcow2")] == [2, 2, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CommandFailed("dib failed")])
def test_a_build_that_ends_early_leaves_nothing(
    tmp_path: Path, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Neither a work directory, nor a cache entry, nor half an image; the next build succeeds."""

    def fail(raw: Path, target: Path) -> None:
        target.write_text("half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(build, "convert_qcow2", fail)
        with pytest.raises(type(error)):
            start(tmp_path)
    assert list((tmp_path / "cache").rglob("*.qcow2")) == []
    assert not (tmp_path / "cache/work").exists()
    assert [path.name for path in (tmp_path / "out/images").iterdir()] == [".imagegen"]
    assert len(start(tmp_path)[2]) == len(FORMATS)


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path, machine: FakeMachine) -> None:
    """SIGKILL leaves a work directory; only the holder of the lock removes it."""
    left = tmp_path / "cache/work/controller-0/dib_build.x/mnt/etc"
    left.mkdir(parents=True)
    start(tmp_path)
    assert not (tmp_path / "cache/work").exists()


def test_nothing_is_removed_through_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount below the work directory could be this machine's /dev."""
    monkeypatch.setattr(cache, "mount_points", lambda: [f"{tmp_path}/work/a/mnt/dev"])
    (tmp_path / "work/a").mkdir(parents=True)
    with pytest.raises(CommandFailed, match="mounted below"):
        cache.remove_work(tmp_path)
    assert (tmp_path / "work/a").is_dir()


def test_the_cache_keeps_the_newest_images_of_a_role(tmp_path: Path) -> None:
    """Three of each; the other role's are not counted."""
    for number in range(5):
        entry = tmp_path / f"controller-{number}"
        entry.mkdir()
        (entry / "manifest.json").write_text(json.dumps({"built": f"2026-01-0{number + 1}T00:00:00+00:00"}))
    (tmp_path / "compute-9").mkdir()
    cache.forget_images(tmp_path, "controller", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compute-9",
        "controller-2",
        "controller-3",
        "controller-4",
    ]


def test_everything_that_the_machine_lacks_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, tools with their packages, disk and memory: one line each, before anything starts."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(cache.commands, "missing_tools", lambda tools: ["sfdisk is missing: install the package fdisk"])
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=cache.GIB))
    monkeypatch.setattr(machine, "available_memory", lambda: cache.GIB // 2)
    with pytest.raises(MachineLacks) as caught:
        cache.check_machine(tmp_path / "out", tmp_path / "cache", 2)
    lines = caught.value.message.splitlines()
    assert ["root" in lines[0], "fdisk" in lines[1], "of memory" in lines[2], "on the disk of" in lines[3]] == [
        True
    ] * 4


def test_a_bootstrapped_base_is_used_for_a_day_and_only_when_whole(tmp_path: Path) -> None:
    """The mark comes after a build that ended well; without it, or too old, the base goes."""
    base, mark = tmp_path / "debootstrap-debian-trixie-amd64.tar.gz", tmp_path / "bootstrapped"
    base.touch()
    mark.touch()
    assert build.keep_fresh_base(tmp_path)
    os.utime(base, (0, 0))
    assert not build.keep_fresh_base(tmp_path)
    assert not base.exists()
    base.touch()
    assert not build.keep_fresh_base(tmp_path)
    assert not base.exists()


def test_dib_s_helpers_are_commands_that_a_shell_can_run() -> None:
    """The stand-ins for sudo and sync start with an interpreter and end with the command's own return code."""
    assert dib.SUDO.startswith("#!/bin/sh\n")
    assert 'exec "$@"' in dib.SUDO
    assert dib.SYNC.endswith("exit 0\n")


@pytest.mark.parametrize(
    ("tool", "package"), [("mksquashfs", "squashfs-tools"), ("zstd", "zstd"), ("mcopy", "mtools"), ("sfdisk", "fdisk")]
)
def test_a_missing_tool_is_told_before_the_build_begins(
    tool: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the package that has it; not after minutes of diskimage-builder's work."""
    monkeypatch.setattr(
        "imagegen.base.commands.shutil.which", lambda name, path: None if name == tool else f"/usr/bin/{name}"
    )
    with pytest.raises(MachineLacks, match=f"{tool} is missing: install the package {package}"):
        cache.check_machine(tmp_path, tmp_path, 1)
