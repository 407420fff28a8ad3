"""The images that the nodes were booted from: code and no identity, no secret, no trace of the build host."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
from deployment import Deployment

from imagegen.model.roles import Role, roles

# What a node makes for itself or gets from its seed.
ABSENT = (
    "var/lib/imagegen/*",
    "etc/ssh/ssh_host_*",
    "etc/ssh/*.pub",
    "var/lib/dbus/machine-id",
    "var/lib/nova/compute_id",
    "etc/nova/compute_id",
    "var/lib/rabbitmq/.erlang.cookie",
    "root/.erlang.cookie",
    "var/lib/rabbitmq/mnesia/*",
    "var/lib/libvirt/secrets/*",
    "var/lib/libvirt/secrets-encryption-key",
    "etc/libvirt/secrets/*",
    "etc/nvme/hostid",
    "etc/nvme/hostnqn",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/lib/urandom/*",
    "var/lib/cloud/?*",
    "run/cloud-init/*",
    "etc/hostid",
    "etc/ssl/private/*.key",
    "etc/keystone/*-keys/*",
    "*/nova/nova.conf.d/?*",
    "var/lib/nova/*.sqlite",
    "var/lib/keystone/*.db",
    "var/lib/placement/*.db",
    "*/authorized_keys",
    "*/known_hosts",
    "*/.bash_history",
    "etc/dib-manifests*",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/*.list",
    "etc/apt/sources.list.d/*.sources",
    "etc/apt/apt.conf.d/*proxy*",
    "var/lib/apt/lists/*_Packages*",
    "var/cache/apt/archives/*.deb",
    "var/lib/dhcp/*.leases",
    "var/lib/systemd/network/*",
    "etc/systemd/network/*cloud-init*",
    "etc/netplan/*",
    "etc/network/interfaces",
    "etc/udev/rules.d/70-persistent-net.rules",
    "*/.imagegen*",
    "tmp/?*",
    "var/tmp/?*",
)
EXCEPT = ("etc/ssh/ssh_host_*_config",)


@dataclass
class Image:
    """The members of an image's tar, and the content of the small ones that belong to no package as they are."""

    role: Role
    members: dict[str, tarfile.TarInfo]
    texts: dict[str, bytes]

    def read(self, path: str) -> str:
        return self.texts[path].decode(errors="replace")


def is_own(path: str) -> bool:
    """Whether a file may hold what a build left behind: all but the packages' code, documentation and data."""
    return not path.startswith(("usr/", "boot/", "var/lib/dpkg/info/", "var/lib/mysql/")) or path.startswith(
        "usr/local/"
    )


@pytest.fixture(scope="module", params=roles(), ids=str)
def image(request: pytest.FixtureRequest, deployment: Deployment) -> Iterator[Image]:
    """One pass over the tar of each role."""
    members, texts = {}, {}
    with tarfile.open(deployment.image(request.param), "r:") as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            members[path] = member
            if member.isreg() and member.size < 1 << 24 and is_own(path):
                stream = tar.extractfile(member)
                assert stream is not None
                texts[path] = stream.read()
    yield Image(request.param, members, texts)


def test_an_image_is_whole(image: Image) -> None:
    """The walk saw a whole system, with the agent in it."""
    assert len(image.members) > 20_000
    assert "usr/lib/imagegen-node/imagegen_node/__init__.py" in image.members
    assert "usr/bin/cloud-init" in image.members
    assert "etc/passwd" in image.texts


def test_an_image_has_no_identity(image: Image) -> None:
    """No key, no id, no cookie, no state of cloud-init, no seed for random numbers, no database of a service."""
    found = [
        path
        for path, member in image.members.items()
        if not member.isdir()
        and any(fnmatch(path, pattern) for pattern in ABSENT)
        and not any(fnmatch(path, pattern) for pattern in EXCEPT)
    ]
    assert found == []


def test_machine_id_says_uninitialized(image: Image) -> None:
    """systemd's first boot, and with it the presets, depends on that word."""
    assert image.read("etc/machine-id") == "uninitialized\n"


def test_hostname_and_hosts_are_nobodys(image: Image) -> None:
    """localhost, and nothing else."""
    assert image.read("etc/hostname") == "localhost\n"
    names = [line.split()[1] for line in image.read("etc/hosts").splitlines() if line.strip()]
    assert set(names) == {"localhost"}


def test_the_resolver_is_the_nodes_own(image: Image) -> None:
    """resolv.conf is a link to systemd-resolved's, not a copy of the build host's."""
    resolver = image.members["etc/resolv.conf"]
    assert resolver.issym() and resolver.linkname.endswith("run/systemd/resolve/stub-resolv.conf")
    assert "etc/resolv.conf.ORIG" not in image.members


def test_names_of_storage_are_made_on_the_node(image: Image) -> None:
    """open-iscsi, where it is installed, makes its name at its first start."""
    text = image.texts.get("etc/iscsi/initiatorname.iscsi", b"GenerateName=yes\n").decode()
    assert "GenerateName=yes" in text and "InitiatorName=" not in text


def test_nobody_can_log_in(image: Image) -> None:
    """No account has a password."""
    passwords = {line.split(":")[0]: line.split(":")[1] for line in image.read("etc/shadow").splitlines()}
    assert {name: word for name, word in passwords.items() if word.strip("!") not in ("", "*")} == {}
    assert all(passwords.values()), "an empty password lets anybody in"


def grant_root(sudoers: str) -> set[str]:
    """The users, %groups, #numbers and aliases that this text of sudoers lets do something."""
    lines = re.sub(r"\\\n", " ", sudoers).splitlines()
    rules = [line for line in lines if "=" in line and not re.match(r"\s*(#(?!\d)|@|Defaults)", line)]
    return {user for rule in rules for user in re.split(r"[,\s]+", rule.partition("=")[0].strip())[:-1]}


def test_sudo_makes_no_service_root(image: Image) -> None:
    """On a controller nobody becomes root but who is it; on a compute Nova's privileged half needs it."""
    sudoers = [path for path in image.texts if path == "etc/sudoers" or path.startswith("etc/sudoers.d/")]
    assert len(sudoers) > 2
    allowed = {"root", "%sudo"} | ({"nova"} if image.role.runs("nova-compute") else set())
    assert set().union(*(grant_root(image.read(path)) for path in sudoers)) == allowed


def test_planted_sudo_rules_are_found() -> None:
    """Users, groups, numbers and lists of them; no comments, defaults and includes."""
    plain = "# nova ALL=(root) ALL\nDefaults:nova !requiretty\nDefaults secure_path=/bin\n@includedir /etc/sudoers.d\n"
    assert grant_root(plain) == set()
    planted = "glance, heat ALL = \\\n (root) NOPASSWD: /bin/x *\n%nova h=(ALL) ALL\n#5 ALL=ALL\n"
    assert grant_root(plain + planted) == {"glance", "heat", "%nova", "#5"}


# Groups whose members are root, or can make themselves so.
MIGHTY_GROUPS = ("root", "sudo", "adm", "disk", "shadow", "kmem", "docker", "lxd", "libvirt", "kvm", "systemd-journal")


def test_no_service_is_in_a_mighty_group(image: Image) -> None:
    """But nova on a compute, whose work is with libvirt."""
    groups = [line.split(":") for line in image.read("etc/group").splitlines()]
    members = {(name, user) for name, _, _, users in groups if name in MIGHTY_GROUPS for user in users.split(",")}
    assert {pair for pair in members if pair[1]} == (
        {("libvirt", "nova")} if image.role.runs("nova-compute") else set()
    )


def test_etc_is_root_s(image: Image) -> None:
    """No service can swap its configuration: what is below /etc belongs to root, and no group can write it."""
    below = {path: member for path, member in image.members.items() if path == "etc" or path.startswith("etc/")}
    assert {path for path, member in below.items() if member.uid != 0} == set()
    assert {path for path, member in below.items() if not member.issym() and member.mode & 0o022} == set()
    numbers = {line.split(":")[0]: int(line.split(":")[2]) for line in image.read("etc/group").splitlines()}
    for path, member in below.items():
        service = path.split("/")[1] if "/" in path else ""
        if service in ("keystone", "placement", "nova", "glance", "neutron") and not member.issym():
            assert member.gid == numbers[service], path
            assert member.mode & 0o7777 == (0o750 if member.isdir() else 0o640), path


def test_nova_conf_is_minimal(image: Image) -> None:
    """Paths only: what nova-common's installation writes about the build host is gone."""
    text = image.read("etc/nova/nova.conf")
    assert "state_path = /var/lib/nova" in text
    assert not re.search(r"^\s*(my_ip|connection|transport_url|password|auth_url|host)\s*=", text, re.MULTILINE)


def host_traces() -> dict[str, bytes]:
    """What tells this machine apart: addresses, resolvers, proxies, and its name where that is not a common word."""
    links = subprocess.run(["ip", "-oneline", "address", "show", "scope", "global"], capture_output=True, text=True)
    traces = {found: "address" for found in re.findall(r"inet6? ([0-9a-f.:]+)/", links.stdout)}
    resolver = Path("/etc/resolv.conf").read_text() if Path("/etc/resolv.conf").exists() else ""
    servers = re.findall(r"^nameserver (\S+)", resolver, re.MULTILINE)
    traces |= {server: "resolver" for server in servers if not server.startswith("127.")}
    for name, value in os.environ.items():
        if name.lower() in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy") and value:
            traces[re.sub(r"^\w+://", "", value).rstrip("/")] = name
    if len(socket.gethostname()) > 6:
        traces[socket.gethostname()] = "hostname"
    return {f"{what} {trace}": trace.encode() for trace, what in traces.items()}


def find_traces(texts: dict[str, bytes], traces: dict[str, bytes]) -> dict[str, list[str]]:
    """Path -> the traces in it, where each stands as a word of its own."""
    found: dict[str, list[str]] = {}
    for what, trace in traces.items():
        pattern = re.compile(rb"(?<![\w.:-])" + re.escape(trace) + rb"(?![\w.:-]*[\w:])")
        for path, data in texts.items():
            if trace in data and pattern.search(data):
                found.setdefault(path, []).append(what)
    return found


def test_an_image_does_not_know_its_build_host(image: Image) -> None:
    """Neither an address, a resolver, a proxy nor the name of this machine stands in what packages did not bring."""
    traces = host_traces()
    assert traces
    assert find_traces(image.texts, traces) == {}


def test_a_planted_trace_is_found() -> None:
    """An address at the end of a sentence is found, a longer one that begins with it is not."""
    traces = {"address": b"192.0.2.7"}
    assert find_traces({"a": b"my_ip = 192.0.2.7\n"}, traces) == {"a": ["address"]}
    assert find_traces({"a": b"http://192.0.2.7:3142/ and 192.0.2.7."}, traces) == {"a": ["address"]}
    assert find_traces({"a": b"192.0.2.70 1192.0.2.7 192.0.2.7.1"}, traces) == {}


def test_an_image_is_the_same_for_every_cluster(image: Image) -> None:
    """image.json names what is baked; no word of a cluster file is in the image."""
    baked = json.loads(image.read("etc/imagegen/image.json"))
    assert baked["release"] == "2025.1"
    assert len(baked["roles"]) == 1
    assert find_traces(image.texts, {"cluster": b"polder", "region": b"eu-west-9", "address": b"10.73.8.100"}) == {}
