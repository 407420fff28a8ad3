"""The files for a machine's network boot: iPXE scripts, the images' files, and configurations for dnsmasq and nginx.

Nothing here is secret, and imagegen need not run: any web server and any TFTP server can serve it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote, urlsplit

from imagegen.base.errors import BadUsage
from imagegen.base.handles import read_file
from imagegen.base.templates import render_template
from imagegen.base.tree import Tree, text
from imagegen.images.current import RoleImage, find_current
from imagegen.images.disk import KERNEL_WORDS
from imagegen.images.manifest import checksums
from imagegen.inputs.device_hints import hint_text
from imagegen.model.cluster import Cluster, Node
from imagegen.model.roles import Role, hosted_services

PORT = 8080
MOST_COMMAND_LINE = 2000  # bytes; Linux on x86 cuts off everything beyond 2,047 (COMMAND_LINE_SIZE)
MOST_CONFIG_LINE = 1000  # bytes; dnsmasq reads a longer line as two (MAXDNAME)
MOST_SPARE = 200  # addresses for machines that boot from an interface that is not in the cluster file
LOADERS = ("undionly.kpxe", "ipxe.efi", "snponly.efi", "ipxe-arm64.efi")
"""iPXE's own files, for other firmware; the last is not in every distro's package."""

SUFFIXES = {"deploy": ("raw", "vmlinuz", "initrd", "raw.zst"), "live": ("raw", "vmlinuz", "initrd", "squashfs")}
"""Mode of a node -> the built files that the tree needs for its role. The raw image is for Ironic and Metal3; the last
fills the disk or the memory."""


def choose_url(cluster: Cluster) -> str:
    """The tree's URL, without a trailing slash. Raises BadUsage if the cluster file does not say."""
    if cluster.pxe_url:
        return cluster.pxe_url
    if cluster.network.gateway is None:
        raise BadUsage(
            "the cluster file does not say where the nodes find their boot files",
            "add `pxe: {url: http://ADDRESS:8080}`, with this machine's address in the nodes' network",
        )
    return f"http://{cluster.network.gateway}:{PORT}"


def find_images(cluster: Cluster, out: Path, suffixes: Mapping[str, Iterable[str]] = SUFFIXES) -> dict[Role, RoleImage]:
    """The current image of each role, with the files (`suffixes`) that its nodes' modes need.

    Raises BadUsage, whose hint is `build`, for missing ones.
    """
    found, missing = {}, []
    for role in cluster.roles:
        image = find_current(out, role) or RoleImage(role.name, out / "images" / role.name, {})
        modes = {node.deploy.mode for node in cluster.nodes if node.role == role}
        wanted = {suffix for mode in modes for suffix in suffixes[mode]}
        if lacking := sorted(suffix for suffix in wanted if not image.has(suffix)):
            missing.append(f"{role} ({', '.join(lacking)})")
        found[role] = image
    if missing:
        raise BadUsage(f"{out / 'images'} lacks images: {'; '.join(missing)}", "run imagegen build")
    return found


def read_image(root: Path, node: str) -> str:
    """The content id that the node's script names; empty when there is no script."""
    try:
        found = re.search(r" imagegen\.id=([0-9a-f]{12})\b", read_file(root / f"nodes/{node}.ipxe").decode())
    except (OSError, BadUsage):
        return ""
    return found[1] if found else ""


def link_files(images: Iterable[RoleImage]) -> dict[str, Path]:
    """Path in the tree -> built file for it."""
    suffixes = sorted({suffix for group in SUFFIXES.values() for suffix in group})
    return {
        f"images/{image.file_name(suffix)}": image.directory / image.file_name(suffix)
        for image in images
        for suffix in suffixes
        if image.file_name(suffix) in image.files
    }


def pxe_tree(cluster: Cluster, images: Mapping[Role, RoleImage], root: Path) -> Tree:
    """Every text of the tree that lies at `root`, by path. Same input, same bytes. Raises BadUsage."""
    base = choose_url(cluster)
    if "$" in str(root) or not str(root).isprintable():
        raise BadUsage(
            f"{root} holds a dollar sign or a control character, which nginx and dnsmasq misread",
            "choose another directory with -o",
        )
    url = urlsplit(base)
    network = cluster.network
    values: dict[str, object] = {
        "cluster": cluster.name,
        "base": base,
        "root": root,
        "host": url.hostname,
        "port": url.port or 80,
        "network": network.cidr.network_address,
        "netmask": network.cidr.netmask,
        "gateway": network.gateway,
        "dns": network.dns,
        "nodes": cluster.nodes,
        "spare": find_spare(cluster) if any(node.serial for node in cluster.nodes) else None,
    }
    names = ("boot.ipxe", "dnsmasq.conf", "dnsmasq-proxy.conf", "nginx.conf")
    tree = {name: text(render_template(f"{name}.j2", values)) for name in names}
    if any(len(line) > MOST_CONFIG_LINE for file in tree.values() for line in file.data.splitlines()):
        raise BadUsage(f"the name of {root} is too long for dnsmasq's configuration", "choose a shorter one with -o")
    for node in cluster.nodes:
        chain = text(render_template("chain.ipxe.j2", {"base": base, "node": node.name}))
        tree[f"mac/{node.mac.replace(':', '-')}.ipxe"] = chain
        if node.serial:
            tree[f"serial/{node.serial}.ipxe"] = chain  # a slash makes a directory: servers decode iPXE's %2F
        tree[f"nodes/{node.name}.ipxe"] = text(node_script(cluster, node, images[node.role]))
    files = {path.name: image.files[path.name] for image in images.values() for path in link_files([image]).values()}
    tree["images/SHA256SUMS"] = text(checksums(files))
    return dict(sorted(tree.items()))


def node_script(cluster: Cluster, node: Node, image: RoleImage) -> str:
    """The iPXE script of one node. Raises BadUsage if its kernel command line is too long."""
    base = choose_url(cluster)
    if fault := _explain_length(cluster, node, image):
        raise BadUsage(fault)
    values = {"base": base, "node": node.name, "role": node.role.name, "mode": node.deploy.mode, "image": image.name}
    return render_template("node.ipxe.j2", {**values, "arguments": kernel_arguments(cluster, node, image)})


def find_spare(cluster: Cluster) -> tuple[IPv4Address, IPv4Address] | None:
    """First and last of the longest run of addresses that are not in the cluster file; of a long run, only the end."""
    cidr, places = cluster.network.cidr, map(cluster.services.place, hosted_services())
    urls = (choose_url(cluster), cluster.status_url, cluster.services.image_endpoint)
    named = [*(place.host for place in places if place), *(urlsplit(url or "").hostname or "" for url in urls)]
    addresses = (*(node.address for node in cluster.nodes), cluster.network.gateway, *cluster.network.dns)
    named += [*map(str, addresses), *cluster.network.ntp]
    inside = {int(address) for address in map(_address, named) if address and address in cidr}
    taken = sorted(inside | {int(cidr.network_address), int(cidr.broadcast_address)})
    free, last = max((after - before - 1, after - 1) for before, after in pairwise(taken))
    return (IPv4Address(last - min(free, MOST_SPARE) + 1), IPv4Address(last)) if free else None


def _address(host: str) -> IPv4Address | None:
    try:
        return IPv4Address(host)
    except ValueError:
        return None


def find_long_lines(cluster: Cluster) -> list[tuple[str, str]]:
    """(path, message) for each node whose kernel command line would be too long, before any image exists."""
    if cluster.pxe_url is None and cluster.network.gateway is None:
        return []  # not to be booted over the network
    found = []
    for i, node in enumerate(cluster.nodes):
        name = f"{node.role}-{'0' * 12}"
        facts = {"sha256": "0" * 64, "size": 10**12}
        image = RoleImage(name, Path(), {f"{name}.{suffix}": facts for suffix in SUFFIXES[node.deploy.mode]})
        if fault := _explain_length(cluster, node, image):
            found.append((f"nodes[{i}].root_device" if node.root_device else f"nodes[{i}]", fault))
    return found


def _explain_length(cluster: Cluster, node: Node, image: RoleImage) -> str:
    """What is wrong with the kernel command line's length, including what `imagegen serve` adds; empty: nothing."""
    base = choose_url(cluster)
    served = [f"imagegen.seed=https://{urlsplit(base).hostname}:65535/seed/{node.name}/{'0' * 32}"]
    served += [f"imagegen.ca={'0' * 64}", *([] if cluster.status_url else [f"imagegen.status={base}/status"])]
    length = len(" ".join([kernel_arguments(cluster, node, image), *served]))
    if length <= MOST_COMMAND_LINE:
        return ""
    return (
        f"the kernel command line of {node.name} would have {length} bytes, but {MOST_COMMAND_LINE} is the limit;"
        " shorten the node's root_device hints, or status.url"
    )


def kernel_arguments(cluster: Cluster, node: Node, image: RoleImage) -> str:
    """The kernel's command line, as the initramfs of the image reads it (elements/imagegen-deploy)."""
    base = choose_url(cluster)
    name = image.file_name(SUFFIXES[node.deploy.mode][-1])
    given = {
        "mode": node.deploy.mode,
        "node": node.name,
        "role": node.role.name,
        "mac": node.mac,
        "address": f"{node.address}/{cluster.network.cidr.prefixlen}",
        "gateway": cluster.network.gateway,
        "url": base,
        "image": f"{base}/images/{name}",
        "sha256": image.files[name]["sha256"],
        "size": image.files[image.file_name("raw")]["size"],
        "id": image.id,
        **{f"root_device.{hint}": hint_text(value) for hint, value in sorted(node.root_device.items())},
        "wipe": "1" if node.deploy.wipe else None,
        "status": cluster.status_url,
    }
    words = [f"imagegen.{key}={quote(str(value), safe=_SAFE)}" for key, value in given.items() if value is not None]
    return " ".join(["initrd=initrd.img", "boot=imagegen", KERNEL_WORDS, *words])


_SAFE = "/:.,_-+@"  # neither blanks, which end a word, nor what iPXE or the kernel would take for its own
