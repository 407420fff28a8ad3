"""Images of roles: built once by dib and the disk assembler, kept by content id, linked into OUT/images."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, time
from typing import Any

from imagegen import __version__
from imagegen.base import commands
from imagegen.base.handles import link_into, open_directory
from imagegen.base.outdir import remove_leftovers, work_in
from imagegen.base.resources import data_directory
from imagegen.base.signals import end_on_signals
from imagegen.base.tree import Tree, read_tree, text, write_file, write_tree
from imagegen.images.cache import (
    built_at,
    cache_directory,
    check_machine,
    describe_age,
    find_cache,
    forget_images,
    hold_cache,
    remove_work,
)
from imagegen.images.dib import DibBuild, DibLog, run_dib
from imagegen.images.disk import assemble_disk, convert_qcow2
from imagegen.images.elements import content_id, elements_tree, in_house_elements, role_element, root_element
from imagegen.images.manifest import checksums, digest_files, intact_files, read_manifest, read_packages, write_json
from imagegen.images.mirrors import Mirrors, check_urls, choose_mirrors, find_proxies
from imagegen.images.network_formats import compress_raw, copy_kernel, pack_squashfs
from imagegen.model.cluster import Cluster
from imagegen.model.releases import Release
from imagegen.model.roles import Role

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "tar": {"owners": "numeric"},
    "raw": {"table": "gpt", "root": "ext4", "firmware": ["bios", "uefi"]},
    "qcow2": {"compression": "zstd"},
    "raw.zst": {"table": "gpt"},
    "squashfs": {"compression": "zstd"},
    "vmlinuz": {},
    "initrd": {"boot": "imagegen"},
}
"""An image's formats in the order in which they are made, and the settings that are part of its content id."""

ASSEMBLER = 1
"""The version of the code that makes the formats from dib's tree (here, disk.py, network_formats.py). Raise it for each
change of the bytes: it is part of the content id, the source is not."""

BASE_SECONDS = 86400  # a bootstrapped base is reused for a day; dib always upgrades it first
KEPT_IMAGES = 3  # of each role in the cache


@dataclass(frozen=True)
class Progress:
    """What a build is doing: a phase of dib or of imagegen, then `built`; or `reused` if there was nothing to do."""

    role: Role
    phase: str
    detail: str = ""


Listener = Callable[[Progress], None]


@dataclass(frozen=True)
class Image:
    """One file of a built image."""

    role: Role
    id: str  # first 12 hex digits of the content id
    format: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class ImagePlan:
    """The inputs of one role's image, and where it goes."""

    role: Role
    release: Release
    elements: Tree
    content_id: str
    formats: tuple[str, ...]
    out: Path
    cache: Path

    @property
    def id(self) -> str:
        return self.content_id[:12]

    @property
    def name(self) -> str:
        return f"{self.role}-{self.id}"

    @property
    def entry(self) -> Path:
        """The image's directory in the cache."""
        return self.cache / "images" / self.name

    @property
    def log(self) -> Path:
        return self.out / "logs" / f"{self.name}.log"

    def file_name(self, format: str) -> str:
        return f"{self.name}.{format}"


def plan_image(cluster: Cluster, role: Role, out: Path, formats: Iterable[str], cache: Path) -> ImagePlan:
    """The plan for one role's image, with its content id. Raises releases.UnknownRelease."""
    release = cluster.release
    static = read_tree(data_directory("elements"))
    whole = image_content_id(role, release, static)
    tree = elements_tree(static, [role], release, {role: whole})
    wanted = tuple(one for one in FORMATS if one in {*formats, "tar"})
    return ImagePlan(role, release, tree, whole, wanted, out, cache)


def image_content_id(role: Role, release: Release, static: Tree) -> str:
    """The content id of the image that this installation of imagegen would build."""
    return content_id(role, release, static, describe_inputs(role, release))


def describe_inputs(role: Role, release: Release) -> dict[str, Any]:
    """All input to dib and the assembler besides the elements, as the manifest records it.

    dib's version stands for its own elements, including the root element.
    """
    anywhere = DibBuild(role, release.distro, "", Path(), Path(), Path(), Mirrors(""))
    return {
        "assembler": ASSEMBLER,
        "dib": anywhere.inputs(),
        "diskimage-builder": importlib.metadata.version("diskimage-builder"),
        "formats": FORMATS,
        "root element": root_element(release.distro),
    }


def build_images(
    cluster: Cluster,
    roles: Sequence[Role],
    out: Path,
    *,
    formats: Iterable[str] = tuple(FORMATS),
    refresh: bool = False,
    mirrors: Mirrors | None = None,
    cache: Path | None = None,
    report: Listener = lambda progress: None,
) -> list[Image]:
    """Makes OUT/images/ROLE for each role and returns its files, from the cache if it has that content id.

    `mirrors` defaults to choose_mirrors(). Raises MachineLacks before anything starts, CommandFailed with the log's
    path, KeyboardInterrupt for SIGINT, SIGTERM and SIGHUP; none leaves a process, a mount or half an image behind.
    """
    cache = find_cache(cache or cache_directory())
    plans = [plan_image(cluster, role, out, formats, cache) for role in roles]
    due = [plan for plan in plans if refresh or missing_formats(plan)]
    proxies: dict[str, str] = {}
    if due:
        check_machine(out, cache, len(due))
        mirrors, proxies = mirrors or choose_mirrors(cluster.release.distro, os.environ), find_proxies(os.environ)
        check_urls(mirrors, proxies)
    images: list[Image] = []
    with end_on_signals():
        with work_in(out, ["images", "logs"], "build", lambda line: report(Progress(plans[0].role, "waiting", line))):
            pass  # dib takes long: let others work here meanwhile
        for plan in plans:
            if mirrors is None or plan not in due or not make_image(plan, mirrors, proxies, refresh, report):
                age = describe_age(time() - built_at(plan.entry))
                report(Progress(plan.role, "reused", f"image {plan.id} was built {age} ago; --refresh rebuilds it"))
            images += publish_image(plan, report)
    return images


def missing_formats(plan: ImagePlan) -> list[str]:
    """The wanted formats that are not in the cache, or were modified there."""
    there = intact_files(plan.entry)
    return [format for format in plan.formats if plan.file_name(format) not in there]


def make_image(plan: ImagePlan, mirrors: Mirrors, proxies: Mapping[str, str], refresh: bool, report: Listener) -> bool:
    """Builds the missing formats of an image and puts the whole into the cache with one rename.

    Returns False if another build has made them meanwhile.
    One build at a time per cache: two dibs cannot share a package cache, and the second may have nothing left to do.
    """

    def waiting(holder: str) -> None:
        report(Progress(plan.role, "waiting", f"{holder} is building in {plan.cache}; waiting for it"))

    with hold_cache(plan.cache, waiting):
        remove_work(plan.cache)
        if not refresh and not missing_formats(plan):
            return False
        work = plan.cache / "work" / plan.name
        stage = work / "image"
        stage.mkdir(parents=True)
        try:
            kept = {} if refresh else intact_files(plan.entry)
            if plan.file_name("tar") not in kept:
                kept = {}  # the other formats are from a tar that is gone
            for name in kept:
                os.link(plan.entry / name, stage / name)
            old = read_manifest(plan.entry) if kept else {}
            fill_stage(plan, work, old, mirrors, proxies, report)
            if plan.entry.exists():
                plan.entry.rename(work / "replaced")
            plan.entry.parent.mkdir(exist_ok=True)
            stage.rename(plan.entry)
        finally:
            remove_work(plan.cache)
        forget_images(plan.cache / "images", plan.role.name, KEPT_IMAGES)
    return True


def fill_stage(
    plan: ImagePlan,
    work: Path,
    old: Mapping[str, Any],
    mirrors: Mirrors,
    proxies: Mapping[str, str],
    report: Listener,
) -> None:
    """Makes the formats that work/image lacks, each from the one before, and writes the manifest."""
    stage, seconds = work / "image", dict(old.get("seconds", {}))

    def tell(phase: str, detail: str = "") -> None:
        report(Progress(plan.role, phase, detail))

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        tell(name)
        begun = monotonic()
        yield
        seconds[name] = round(monotonic() - begun, 1)

    files = {format: stage / plan.file_name(format) for format in FORMATS}
    built = old.get("built") or datetime.now(UTC).isoformat(timespec="seconds")
    if not files["tar"].is_file():
        seconds |= build_tree(plan, work, mirrors, proxies, tell).seconds
    packages = old.get("packages")
    due = {format for format in plan.formats if not files[format].is_file()}
    needs_raw = not files["raw"].is_file() and due & {"raw", "qcow2", "raw.zst"}
    tree = work / "tree"
    if packages is None:
        packages = read_packages(read_from_tar(files["tar"], "./var/lib/dpkg/status"))
    if needs_raw or due & {"squashfs", "vmlinuz", "initrd"}:
        with phase("unpack"):
            unpack(files["tar"], tree)
    if "squashfs" in due:
        with phase("squashfs"):
            pack_squashfs(tree, files["squashfs"])
    if due & {"vmlinuz", "initrd"}:
        copy_kernel(tree, files["vmlinuz"], files["initrd"])
    if needs_raw:
        with phase("disk"):
            assemble_disk(tree, files["raw"], content_id=plan.content_id, report=lambda detail: tell("disk", detail))
    commands.run(["rm", "-rf", "--one-file-system", tree])
    if "qcow2" in due:
        with phase("qcow2"):
            convert_qcow2(files["raw"], files["qcow2"])
    if "raw.zst" in due:
        with phase("raw.zst"):
            compress_raw(files["raw"], files["raw.zst"])
    with phase("checksums"):
        digests = digest_files(sorted(path for path in files.values() if path.is_file()))
    manifest = {**describe_image(plan), "built": built, "files": digests, "packages": packages, "seconds": seconds}
    write_file(stage / "manifest.json", text(write_json(manifest)))
    tell("built", f"image {plan.id}, {sum(seconds.values()):.0f} seconds")


def build_tree(
    plan: ImagePlan, work: Path, mirrors: Mirrors, proxies: Mapping[str, str], tell: Callable[[str, str], None]
) -> DibLog:
    """Runs dib for the role and puts its tar into work/image. Returns what was found in its log."""
    write_tree(plan.elements, work / "elements")
    base = base_cache(plan, mirrors)
    build = DibBuild(
        role=plan.role,
        distro=plan.release.distro,
        name=plan.name,
        elements=work / "elements",
        work=work,
        cache=base,
        mirrors=mirrors,
        proxies=proxies,
        reuse_base=keep_fresh_base(base),
    )
    follow = DibLog(tell)
    tell("dib", f"its log is {plan.log}")
    run_dib(build, plan.log, follow)
    (base / "bootstrapped").touch()
    # dib leaves out both directories, and without them nothing can be mounted there.
    for name in ("proc", "sys"):
        (work / "empty" / name).mkdir(parents=True, mode=0o555)
    commands.run(["tar", "--append", "--numeric-owner", "-f", build.tar, "-C", work / "empty", "./proc", "./sys"])
    build.tar.rename(work / "image" / build.tar.name)
    return follow


def base_cache(plan: ImagePlan, mirrors: Mirrors) -> Path:
    """dib's cache for that distro from those mirrors, because dib's own name for a base has neither."""
    facts = [plan.release.distro.arch, mirrors.sources(plan.release.distro)]
    return plan.cache / "dib" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def keep_fresh_base(base: Path) -> bool:
    """Whether the bootstrapped base in dib's cache is complete and less than a day old; if not, it is removed.

    A successful build leaves the mark `bootstrapped`, newer than the base; an interrupted one may leave half a base.
    """
    mark = base / "bootstrapped"
    tars = list(base.glob("debootstrap-*.tar.gz"))
    fresh = mark.is_file() and all(time() - BASE_SECONDS < tar.stat().st_mtime <= mark.stat().st_mtime for tar in tars)
    if tars and fresh:
        return True
    for path in (*tars, mark):
        path.unlink(missing_ok=True)
    return False


def read_from_tar(tar: Path, name: str) -> str:
    """The text of one file of an OS tree."""
    return commands.run(["tar", "-xOf", tar, "--occurrence", name]).stdout.decode(errors="replace")


def unpack(tar: Path, tree: Path) -> None:
    """Unpacks an OS tree unchanged: owners by number, extended attributes, all mode bits."""
    tree.mkdir()
    options = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"]
    commands.run(["setpriv", "--pdeathsig", "KILL", "tar", *options, tar, "-C", tree])


def describe_image(plan: ImagePlan) -> dict[str, Any]:
    """An image's inputs, for its manifest; nothing about the machine that built it."""
    distro = plan.release.distro
    return {
        "version": 1,
        "role": str(plan.role),
        "id": plan.id,
        "content_id": plan.content_id,
        "inputs": {
            "release": plan.release.id,
            "distro": {"name": distro.name, "suite": distro.suite, "arch": distro.arch},
            "elements": list(in_house_elements(role_element(plan.role), plan.elements)),
            "imagegen": __version__,
            **describe_inputs(plan.role, plan.release),
        },
    }


def publish_image(plan: ImagePlan, report: Listener) -> list[Image]:
    """Links the image's files from the cache to OUT/images/ROLE, next to manifest, sums and `current`."""
    target = plan.out / "images" / plan.role.name
    manifest = read_manifest(plan.entry)
    wanted = {plan.file_name(format): format for format in plan.formats}
    files = {name: facts for name, facts in manifest["files"].items() if name in wanted}

    def waiting(line: str) -> None:
        report(Progress(plan.role, "waiting", line))

    with work_in(plan.out, ["images"], "build", waiting), open_directory(target, make=True) as directory:
        remove_leftovers(target)
        for name in files:
            link_into(plan.entry / name, directory, name, target / name)
        write_file(target / "manifest.json", text(write_json({**manifest, "files": files})))
        write_file(target / "SHA256SUMS", text(checksums(files)))
        write_file(target / "current", text(f"{plan.id}\n"))
    return [Image(plan.role, plan.id, format, target / name, files[name]["sha256"]) for name, format in wanted.items()]
