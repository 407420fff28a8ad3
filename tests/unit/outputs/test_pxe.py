"""The tree of the network boot: scripts find their node, the initramfs reads back what they say, nothing is secret."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, unquote
from uuid import UUID

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from imagegen_deploy.plan import parse_plan
from netboot_images import make_images, make_loaders

from imagegen.base import access
from imagegen.base.errors import BadInput, BadUsage, ExitCode
from imagegen.base.tree import Tree
from imagegen.cli.run import run_command
from imagegen.images.current import RoleImage
from imagegen.images.disk import KERNEL_WORDS, grub_config
from imagegen.inputs.cluster_file import load_cluster
from imagegen.model.cluster import Cluster, Deploy
from imagegen.outputs import pxe
from imagegen.server.app import add_arguments

ROOT = Path("/srv/pxe")
CLUSTER = """\
name: demo
network: {cidr: 192.168.56.0/24, gateway: 192.168.56.1, dns: [192.168.56.1]}
status: {url: "http://192.168.56.1:8080/status"}
nodes:
  - {name: ctl-1, role: controller, mac: "52:54:00:56:00:11", address: 192.168.56.11, serial: "S 1/2"}
  - name: cpt-1
    role: compute
    mac: "52:54:00:56:00:12"
    address: 192.168.56.12
    root_device: {serial: "<or> A 1 <or> B;$(2)", size: ">= 100", rotational: false}
    deploy: {wipe: true}
  - {name: cpt-2, role: compute, mac: "52:54:00:56:00:13", address: 192.168.56.13, deploy: {mode: live}}
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    make_images(tmp_path / "out")
    return load_cluster(path)


@pytest.fixture
def tree(cluster: Cluster, tmp_path: Path) -> Tree:
    return pxe.pxe_tree(cluster, pxe.find_images(cluster, tmp_path / "out"), ROOT)


def read(tree: Tree, path: str) -> str:
    return tree[path].data.decode()


def command_line(script: str) -> str:
    """What the kernel gets from a node's script when nobody offers a seed."""
    found = re.search(r"^kernel \S+ (.*) \$\{seed-arguments\} \|\| goto failed$", script, re.MULTILINE)
    assert found, script
    return found.group(1)


def test_every_node_is_found_by_its_mac_and_its_serial(tree: Tree) -> None:
    """boot.ipxe asks for these names: dashes in a MAC address, a serial number as a web server decodes it."""
    wanted = "#!ipxe\nchain --replace http://192.168.56.1:8080/nodes/ctl-1.ipxe\n"
    assert read(tree, "mac/52-54-00-56-00-11.ipxe") == wanted
    assert read(tree, f"serial/{unquote(quote('S 1/2', safe=''))}.ipxe") == wanted
    boot = read(tree, "boot.ipxe")
    assert "/mac/${netX/mac:hexhyp}.ipxe" in boot and "/serial/${serial:uristring}.ipxe" in boot
    assert sorted(path for path in tree if path.startswith("mac/")) == [
        f"mac/52-54-00-56-00-{n}.ipxe" for n in (11, 12, 13)
    ]


def with_serials(place: Path, *serials: str) -> Path:
    """A cluster file whose first nodes have these serial numbers."""
    document = yaml.safe_load(CLUSTER)
    for node, serial in zip(document["nodes"], serials, strict=False):
        node["serial"] = serial
    path = place / "serials.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("serial", ["A//B", "A/./B", "A/../B", "A/.B", "A.ipxe/B"])
def test_a_serial_number_that_is_no_place_in_the_tree_is_refused(serial: str, tmp_path: Path) -> None:
    """The last one's directory would be the file of the serial number A."""
    with pytest.raises(BadInput) as refused:
        load_cluster(with_serials(tmp_path, serial))
    (problem,) = refused.value.problems
    assert problem.path == "nodes[0].serial" and "without //, /. or .ipxe/" in problem.message


def test_serial_numbers_that_begin_alike_have_a_place_each(here: Path) -> None:
    """Also on a disk, where no file is a directory."""
    with_serials(here, "A", "A/B", "A/B.ipxe").replace(here / "cluster.yaml")
    assert run_command(["pxe", "-q"]) == ExitCode.DONE
    found = [path for path in sorted((here / "out/pxe/serial").rglob("*")) if path.is_file()]
    assert [str(path.relative_to(here / "out/pxe/serial")) for path in found] == [
        "A/B.ipxe", "A/B.ipxe.ipxe", "A.ipxe",
    ]  # fmt: skip


def test_a_kernel_from_the_network_is_told_what_grub_tells_it(tree: Tree) -> None:
    """How root is mounted, what systemd leaves alone, and where the consoles are."""
    network = command_line(read(tree, "nodes/cpt-1.ipxe"))
    assert KERNEL_WORDS in network and f" {KERNEL_WORDS}\n" in grub_config(UUID(int=1))


def test_the_initramfs_reads_back_what_the_script_says(tree: Tree) -> None:
    """Blanks, semicolons and dollars of a hint neither end a word nor reach iPXE's own grammar."""
    text = command_line(read(tree, "nodes/cpt-1.ipxe"))
    plan = parse_plan(text)
    assert plan.root_device == {"serial": "<or> A 1 <or> B;$(2)", "size": ">= 100", "rotational": "false"}
    assert (plan.mode, plan.node, plan.role, plan.wipe, plan.seed) == ("deploy", "cpt-1", "compute", True, "")
    assert (plan.mac, plan.address, plan.gateway) == ("52:54:00:56:00:12", "192.168.56.12/24", "192.168.56.1")
    assert plan.image == "http://192.168.56.1:8080/images/compute-222222222222.raw.zst"
    assert (plan.id, plan.size, len(plan.sha256)) == ("222222222222", len("compute raw"), 64)
    assert plan.status == "http://192.168.56.1:8080/status"
    assert {"initrd=initrd.img", "boot=imagegen", "ro"} <= set(text.split())
    assert len(text) < 2048  # the kernel cuts off what is longer


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255))
def test_any_hint_survives(value: str) -> None:
    """As the cluster file's schema allows them."""
    node = replace(load_cluster(None).nodes[1], root_device={"model": value})
    facts = {"raw": {"size": 1, "sha256": ""}, "raw.zst": {"size": 1, "sha256": "0" * 64}}
    image = RoleImage("compute-1", Path(), {f"compute-1.{suffix}": fact for suffix, fact in facts.items()})
    text = pxe.kernel_arguments(load_cluster(None), node, image)
    assert parse_plan(text).root_device == {"model": value}
    assert not set("$;&|{}()<>") & set(text)


def test_a_live_node_gets_the_squashfs(tree: Tree) -> None:
    plan = parse_plan(command_line(read(tree, "nodes/cpt-2.ipxe")))
    assert (plan.mode, plan.wipe) == ("live", False)
    assert plan.image.endswith("/compute-222222222222.squashfs")


def test_the_sums_are_those_of_the_files(tree: Tree, cluster: Cluster, tmp_path: Path) -> None:
    """As sha256sum(1) checks them, for every file that is linked into the tree."""
    links = pxe.link_files(pxe.find_images(cluster, tmp_path / "out").values())
    lines = read(tree, "images/SHA256SUMS").splitlines()
    assert sorted(line.split("  ")[1] for line in lines) == sorted(path.partition("/")[2] for path in links)
    assert all(re.fullmatch(r"[0-9a-f]{64}  \S+", line) for line in lines)


def test_dnsmasq_knows_the_nodes_and_the_firmwares(tree: Tree) -> None:
    """A full server gives addresses to nodes only; beside another server it gives none."""
    full, proxy = read(tree, "dnsmasq.conf"), read(tree, "dnsmasq-proxy.conf")
    assert 'dhcp-host=52:54:00:56:00:12,192.168.56.12,"cpt-1"\n' in full
    assert "dhcp-range=192.168.56.0,static,255.255.255.0,12h\n" in full
    assert "dhcp-host" not in proxy and "dhcp-range=192.168.56.0,proxy,255.255.255.0\n" in proxy
    for text in (full, proxy):
        assert "listen-address=192.168.56.1\n" in text and "port=0\n" in text
        assert "dhcp-boot=tag:ipxe,http://192.168.56.1:8080/boot.ipxe\n" in text
        assert all(
            name in text for name in ("undionly.kpxe", "ipxe.efi", "ipxe-arm64.efi", 'tftp-root="/srv/pxe/ipxe"')
        )


def try_dnsmasq(path: Path, text: str) -> str:
    """What `dnsmasq --test` has against a configuration, else nothing. Skips the test without dnsmasq."""
    program = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("dnsmasq is missing: it comes with the Debian package dnsmasq-base, `make unit` installs it")
    path.write_text(text)
    done = subprocess.run([program, "--test", f"--conf-file={path}"], capture_output=True, text=True)
    return done.stderr if done.returncode else ""


@pytest.mark.allow_process("dnsmasq")
@pytest.mark.parametrize("name", ["dnsmasq.conf", "dnsmasq-proxy.conf"])
def test_dnsmasq_itself_takes_its_configuration(name: str, tree: Tree, tmp_path: Path) -> None:
    """A planted word is not taken."""
    assert try_dnsmasq(tmp_path / name, read(tree, name)) == ""
    assert "bad option" in try_dnsmasq(tmp_path / name, read(tree, name) + "dhcp-rnage=x\n")


@pytest.mark.allow_process("dnsmasq")
@pytest.mark.parametrize("place", ["/a #b", '/a"b', "/a\\b", "/a, b;{}", "/it's", "/tag:x", "/é", "/trailing "])
def test_a_path_means_itself_to_dnsmasq(place: str, cluster: Cluster, tmp_path: Path) -> None:
    """Comments, quotes, separators and blanks; that files come from such a place is in tests/cluster."""
    root = Path(f"{tmp_path}{place}/pxe")
    tree = pxe.pxe_tree(cluster, pxe.find_images(cluster, tmp_path / "out"), root)
    for name in ("dnsmasq.conf", "dnsmasq-proxy.conf"):
        assert try_dnsmasq(tmp_path / name, read(tree, name)) == ""
        assert read(tree, name).splitlines()[1] == f"# dnsmasq --conf-file={shlex.quote(f'{root}/{name}')}"


@pytest.mark.parametrize("place", ["/a$b", "/a\nport=53", "/a\x9b", f"/{'long' * 300}", f"/{'q' * 480}{chr(34) * 480}"])
def test_a_path_that_no_configuration_can_hold_is_refused(place: str, cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(BadUsage) as refused:
        pxe.pxe_tree(cluster, pxe.find_images(cluster, tmp_path / "out"), Path(place))
    assert "with -o" in refused.value.hint


def name_nodes(cluster: Cluster, *names: str) -> Cluster:
    nodes = [replace(node, name=name) for node, name in zip(cluster.nodes, names, strict=False)]
    return replace(cluster, nodes=(*nodes, *cluster.nodes[len(nodes) :]))


@pytest.mark.allow_process("dnsmasq")
def test_a_node_may_have_the_name_of_a_word_of_dnsmasq(cluster: Cluster, tmp_path: Path) -> None:
    """In quotes `ignore`, `infinite` and `45m` are names: that each gets its address is in tests/cluster."""
    named = name_nodes(cluster, "ignore", "infinite", "45m")
    tree = pxe.pxe_tree(named, pxe.find_images(named, tmp_path / "out"), ROOT)
    assert [line.rpartition(",")[2] for line in read(tree, "dnsmasq.conf").splitlines() if "dhcp-host=" in line] == [
        '"ignore"', '"infinite"', '"45m"',
    ]  # fmt: skip
    assert try_dnsmasq(tmp_path / "dnsmasq.conf", read(tree, "dnsmasq.conf")) == ""


def test_unknown_interfaces_get_an_address_only_where_a_node_has_a_serial_number(
    cluster: Cluster, tmp_path: Path
) -> None:
    """From a run of addresses that nothing has, for as long as a boot takes, and only for what boots."""
    images = pxe.find_images(cluster, tmp_path / "out")
    text = read(pxe.pxe_tree(cluster, images, ROOT), "dnsmasq.conf")
    assert "dhcp-range=tag:netboot,192.168.56.55,192.168.56.254,255.255.255.0,10m\n" in text
    plain = replace(cluster, nodes=tuple(replace(node, serial=None) for node in cluster.nodes))
    assert "netboot" not in read(pxe.pxe_tree(plain, images, ROOT), "dnsmasq.conf")


@given(st.integers(8, 30), st.lists(st.integers(0, 2**24), min_size=1, max_size=20))
def test_spare_addresses_are_nobodys(prefix: int, places: list[int]) -> None:
    """Whatever stands in the file; no range when all are taken."""
    network = IPv4Network(f"10.0.0.0/{prefix}")
    hosts = [network[1 + place % (network.num_addresses - 2)] for place in places]
    default = load_cluster(None)
    nodes = tuple(replace(default.nodes[0], address=host) for host in hosts[1:] or hosts)
    cluster = replace(default, nodes=nodes, network=replace(default.network, cidr=network, gateway=hosts[0], dns=()))
    if spare := pxe.find_spare(cluster):
        first, last = spare
        assert network.network_address < first <= last < network.broadcast_address
        assert int(last) - int(first) < pxe.MOST_SPARE
        assert not [host for host in hosts if first <= host <= last]
    else:
        assert len(set(hosts)) == network.num_addresses - 2


LONG = {key: "%" * 255 for key in ("model", "vendor", "serial", "wwn")}


def test_a_command_line_that_the_kernel_would_cut_off_names_its_node(cluster: Cluster, tmp_path: Path) -> None:
    """`validate` knows it before there is an image, and `imagegen serve`'s own words count."""
    assert pxe.find_long_lines(cluster) == []
    nodes = (cluster.nodes[0], replace(cluster.nodes[1], root_device=LONG), cluster.nodes[2])
    long = replace(cluster, nodes=nodes)
    ((path, message),) = pxe.find_long_lines(long)
    assert path == "nodes[1].root_device" and "command line of cpt-1 would have 3" in message
    with pytest.raises(BadUsage, match="command line of cpt-1"):
        pxe.pxe_tree(long, pxe.find_images(long, tmp_path / "out"), ROOT)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(1, 63))
def test_the_bound_is_that_of_the_whole_line(first: int, second: int, name: int) -> None:
    """What is let through has 2,000 bytes at most, with the longest words that a server adds."""
    default = load_cluster(None)
    hints = {"model": "%" * first or "x", "vendor": "%" * second or "x"}
    node = replace(default.nodes[1], name="n" * name, root_device=hints)
    facts = {"raw": {"size": 10**12, "sha256": "0" * 64}, "raw.zst": {"size": 1, "sha256": "0" * 64}}
    image = RoleImage(
        f"compute-{'0' * 12}", Path(), {f"compute-{'0' * 12}.{suffix}": fact for suffix, fact in facts.items()}
    )
    authority = SimpleNamespace(sha256="0" * 64, token_key=b"k" * 32)
    ledger = SimpleNamespace(find_boot=lambda name: 2**31)
    site = SimpleNamespace(
        status_url="http://192.168.56.1:8080/status", make_seed=True, ledger=ledger, authority=authority,
        seed_url="https://192.168.56.1:65535",
    )  # fmt: skip
    fault = bool(pxe.find_long_lines(replace(default, nodes=(default.nodes[0], node))))
    try:
        script = add_arguments(site, node, pxe.node_script(default, node, image))  # type: ignore[arg-type]
    except BadUsage:
        assert fault
        return
    assert not fault
    words = re.search(r"^set seed-arguments (.*)$", script, re.MULTILINE)
    assert words
    assert len(command_line(script)) + 1 + len(words[1]) <= 2000


def test_the_same_input_gives_the_same_bytes(cluster: Cluster, tree: Tree, tmp_path: Path) -> None:
    assert pxe.pxe_tree(cluster, pxe.find_images(cluster, tmp_path / "out"), ROOT) == tree


@pytest.mark.parametrize(
    ("network", "extra", "url"),
    [
        ({"cidr": "10.0.0.0/24", "gateway": "10.0.0.254"}, {}, "http://10.0.0.254:8080"),
        ({"cidr": "10.0.0.0/24"}, {"pxe": {"url": "http://10.0.0.9/"}}, "http://10.0.0.9"),
    ],
)
def test_the_url_is_the_gateways_unless_the_file_says(
    network: dict[str, str], extra: dict[str, object], url: str, tmp_path: Path
) -> None:
    node = {"name": "c", "role": "controller", "mac": "52:54:00:56:00:11", "address": "10.0.0.1"}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "network": network, "nodes": [node], **extra}))
    assert pxe.choose_url(load_cluster(path)) == url


def test_a_cluster_without_gateway_must_say_where(cluster: Cluster) -> None:
    lost = replace(cluster, network=replace(cluster.network, gateway=None))
    with pytest.raises(BadUsage, match="does not say where the nodes find") as refused:
        pxe.choose_url(lost)
    assert "pxe: {url:" in refused.value.hint


def test_missing_images_name_build(cluster: Cluster, tmp_path: Path) -> None:
    """And which files of which role; those that no node boots are not asked for."""
    (tmp_path / "out/images/compute/compute-222222222222.squashfs").unlink()
    (tmp_path / "out/images/controller/controller-111111111111.squashfs").unlink()
    with pytest.raises(BadUsage, match=r"compute \(squashfs\)$") as refused:
        pxe.find_images(cluster, tmp_path / "out")
    assert refused.value.hint == "run imagegen build"


def test_the_caller_says_which_files_it_needs(cluster: Cluster, tmp_path: Path) -> None:
    """By the modes of the nodes; only those are asked for."""
    for path in (tmp_path / "out/images").glob("*/*.squashfs"):
        path.unlink()
    found = pxe.find_images(cluster, tmp_path / "out", {"deploy": ("raw",), "live": ("raw",)})
    assert sorted(map(str, found)) == ["compute", "controller"]
    with pytest.raises(BadUsage, match=r"compute \(squashfs\)$"):
        pxe.find_images(cluster, tmp_path / "out", {"deploy": (), "live": ("squashfs",)})


# the command


@pytest.fixture
def here(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("imagegen.cli.pxe.IPXE", make_loaders(tmp_path / "ipxe"))
    return tmp_path


def test_the_command_links_what_was_built(here: Path) -> None:
    """The tree is whole, images cost their space once, and no secrets file is needed or read."""
    assert run_command(["pxe", "-q"]) == ExitCode.DONE
    place = here / "out/pxe"
    image = here / "out/images/compute/compute-222222222222.raw.zst"
    assert (place / "images" / image.name).samefile(image)
    assert (place / "ipxe/undionly.kpxe").read_text() == "undionly.kpxe"
    assert (place / "nodes/cpt-1.ipxe").is_file()
    assert f'root "{place}";' in (place / "nginx.conf").read_text()


def test_old_nodes_and_images_leave_the_tree(here: Path) -> None:
    """What the cluster file no longer has is not given out any more."""
    run_command(["pxe", "-q"])
    text = CLUSTER.replace("cpt-2", "cpt-9").replace("192.168.56.13", "192.168.56.19")
    (here / "cluster.yaml").write_text(text)
    assert run_command(["pxe", "-q"]) == ExitCode.DONE
    assert not (here / "out/pxe/nodes/cpt-2.ipxe").exists()
    assert (here / "out/pxe/nodes/cpt-9.ipxe").is_file()


def test_an_interrupted_command_leaves_the_tree_before(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines may be booting from it."""
    run_command(["pxe", "-q"])
    before = sorted((here / "out/pxe").rglob("*"))

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("imagegen.base.tree.link_into", interrupt)
        assert run_command(["pxe", "-q"]) == ExitCode.INTERRUPTED
    assert sorted((here / "out/pxe").rglob("*")) == before
    assert run_command(["pxe", "-q"]) == ExitCode.DONE
    assert sorted(path.name for path in (here / "out").iterdir()) == [".imagegen", "images", "pxe"]


def test_a_machine_without_ipxe_is_told(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imagegen.cli.pxe.IPXE", here / "nowhere")
    assert run_command(["pxe"]) == ExitCode.MACHINE_LACKS
    assert "install the package ipxe" in capsys.readouterr().err
    assert not (here / "out/pxe").exists()


def test_defaults_are_a_deployment_without_wipe() -> None:
    """Nobody loses a disk by leaving a key out."""
    assert load_cluster(None).nodes[0].deploy == Deploy("deploy", wipe=False)
    assert IPv4Address("192.168.56.11") == load_cluster(None).nodes[0].address


def test_a_directory_that_dnsmasq_cannot_enter_is_a_warning(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tree is written all the same; every directory that is closed is named, with its cure."""
    closed = here / "it's closed"
    closed.mkdir(mode=0o700)
    (here / "out").rename(closed / "out")
    assert run_command(["pxe", "-q", "-o", str(closed / "out")]) == ExitCode.DONE
    said = capsys.readouterr().err
    assert re.match(r"Warning: dnsmasq serves .* as the user (dnsmasq|nobody), which cannot enter ", said)
    assert re.search(rf"run `chmod a\+x (\S+ )*{re.escape(shlex.quote(str(closed)))}`, or choose", said)


@pytest.mark.parametrize(
    ("mode", "owner", "member", "enters"),
    [
        (0o711, False, False, True),
        (0o750, False, False, False),
        (0o750, False, True, True),
        (0o701, False, True, False),
        (0o100, True, True, True),
        (0o055, True, True, False),
    ],
)
def test_who_may_enter_is_asked_as_the_kernel_asks(
    mode: int, owner: bool, member: bool, enters: bool, tmp_path: Path
) -> None:
    """The owner's bit for the owner, the group's for its members, else the others'; of every directory above."""
    inner = tmp_path / "a/b"
    inner.mkdir(parents=True)
    status = inner.parent.stat()
    inner.parent.chmod(mode)
    found = access.find_closed(inner, status.st_uid if owner else -1, {status.st_gid} if member else set())
    inner.parent.chmod(0o755)
    assert (inner.parent not in found) is enters
