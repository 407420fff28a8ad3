"""What validate says of a cluster file that is valid and still deserves a second look."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import yaml

from imagegen.base.errors import ExitCode
from imagegen.cli.run import run_command
from imagegen.inputs.cluster_file import default_text, read_cluster
from imagegen.inputs.warnings import find_warnings, untested_release

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvbyBiYXIgYmF6IHF1eCBxdXV4IGNvcmdlIGdyYXVs me"
QUIET = f"""\
name: demo
network: {{cidr: 192.168.56.0/24, gateway: 192.168.56.1}}
services: {{image: {{endpoint: "http://10.0.0.7:9292"}}}}
ssh_authorized_keys: [{KEY}]
nodes:
  - {{name: ctl-1, role: controller, mac: "52:54:00:56:00:11", address: 192.168.56.11}}
  - {{name: cpt-1, role: compute, mac: "52:54:00:56:00:12", address: 192.168.56.12}}
"""
SECOND = '  - {name: ctl-2, role: controller, mac: "52:54:00:56:00:13", address: 192.168.56.13}\n'


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")


def warn(text: str) -> list[str]:
    """The warnings about that text, without the file's name."""
    Path("c.yaml").write_text(text)
    return [str(warning).removeprefix("c.yaml:") for warning in find_warnings(*read_cluster(Path("c.yaml")))]


def test_a_plain_cluster_has_none() -> None:
    """One controller, a key, Glance elsewhere."""
    assert warn(QUIET) == []


def change(**values: object) -> str:
    return yaml.safe_dump({**yaml.safe_load(QUIET), **values}, sort_keys=False)


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        (QUIET.replace(KEY, ""), "ssh_authorized_keys", "nobody can log in to the nodes, not even on their consoles"),
        (change(distro={"name": "debian", "suite": "bookworm"}), "release", "OpenStack zed on debian bookworm yet"),
        (
            change(services={"image": {"endpoint": "http://192.168.56.11:9292"}}),
            "services.image",
            "192.168.56.11 is the node ctl-1, where imagegen does not start this service; write {node: NAME}",
        ),
        (
            change(services={"network": "none"}),
            "services.network",
            "is none: instances have no network, and nobody reaches them but on their consoles",
        ),
        (
            change(services={"network": {"endpoint": "http://cpt-1:9696"}}),
            "services.network",
            "cpt-1 is the node cpt-1, where imagegen does not start this service",
        ),
        (
            change(services={"cache": {"node": "ctl-1"}}),
            "services.cache",
            "is not needed: every controller has its own",
        ),
        (change(services={"cache": "embedded"}), "services.cache", "is not needed"),
        (
            change(services={"cache": {"host": "10.0.0.9"}}),
            "services.cache",
            "no authentication: whoever reaches it can forge tok",
        ),
        (change(services={"cache": {"host": "192.168.56.12"}}), "services.cache", "192.168.56.12 is the node cpt-1"),
        (
            change(services={"database": {"host": "192.168.56.11"}}),
            "services.database",
            "does not start this service; write {nod",
        ),
        (change(services={"messaging": {"host": "ctl-1"}}), "services.messaging", "ctl-1 is the node ctl-1"),
        (change(services={"database": {"host": "localhost"}}), "services.database", "localhost means each node itself"),
        (
            change(services={"identity": {"auth_url": "http://127.0.0.1:5000/v3"}}),
            "services.identity",
            "127.0.0.1 means each node itself",
        ),
        (change(status={"url": "http://192.168.56.12/s"}), "status.url", "192.168.56.12 is the node cpt-1"),
        (change(pxe={"url": "http://192.168.56.11:80"}), "pxe.url", "which cannot serve its own first boot"),
        (
            change(network={"cidr": "192.168.56.0/24", "gateway": "192.168.56.1"}, pxe={"url": "http://10.0.0.1:8080"}),
            "pxe.url",
            "nodes need a DHCP relay to reach dnsmasq there",
        ),
        (
            change(network={"cidr": "192.168.56.0/24", "gateway": "192.168.56.1", "dns": ["169.254.1.1"]}),
            "network.dns[0]",
            "169.254.1.1 is a link-local address: no router leads there",
        ),
        (
            change(network={"cidr": "192.168.56.0/24", "dns": ["192.168.56.12"], "gateway": "192.168.56.1"}),
            "network.dns[0]",
            "192.168.56.12 is the node cpt-1, which does not answer DNS",
        ),
        (
            change(network={"cidr": "192.168.56.0/24", "ntp": ["192.168.56.11", "ntp.example"]}),
            "network.ntp[0]",
            "follow the first controller's time anyway",
        ),
        (
            change(network={"cidr": "192.168.56.0/24", "dns": ["10.0.0.1"]}),
            "network.dns[0]",
            "10.0.0.1 is outside the network 192.168.56.0/24, and without a gateway no node reaches it",
        ),
    ],
)
def test_each_doubt_is_said(text: str, path: str, said: str) -> None:
    """With the line of what it is about, or of the nearest thing around it."""
    (found,) = [line for line in warn(text) if f" {path}: " in line and said in line]
    assert found.partition(":")[0].isdecimal()


def test_several_controllers_are_no_high_availability() -> None:
    """What is lost is said for each thing that one of them alone has."""
    told = warn(QUIET + SECOND)
    assert [line.split(": ")[1] for line in told] == [
        "services.database",
        "services.identity",
        "services.messaging",
        "services.network",
        "nodes",
    ]
    assert all("ctl-1 is down" in line for line in told)
    elsewhere = QUIET.replace("services: {", "services: {database: {host: 10.0.0.5}, messaging: {node: ctl-2}, ")
    told = warn(elsewhere + SECOND)
    rest = ["services.identity", "services.messaging", "services.network", "nodes"]
    assert [line.split(": ")[1] for line in told] == rest
    assert "while ctl-2 is down, no instance can be created" in told[1]


def test_a_release_that_was_booted_is_not_doubted() -> None:
    """By releases.yaml's own mark."""
    Path("c.yaml").write_text(QUIET)
    cluster, _ = read_cluster(Path("c.yaml"))
    assert cluster.release.booted and untested_release(cluster) == ""


def test_warnings_are_said_and_strict_takes_none(capsys: pytest.CaptureFixture[str]) -> None:
    """FILE:LINE: PATH: warning: MESSAGE on stderr; exit code 0, with --strict 2."""
    Path("cluster.yaml").write_text(default_text())
    assert run_command(["validate"]) == ExitCode.DONE
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("cluster.yaml:21: ssh_authorized_keys: warning: without an ssh key nobody")
    assert lines[-1] == "cluster.yaml: no problems, 2 node(s)"
    assert run_command(["validate", "--strict"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err.endswith("Error: cluster.yaml has 1 warning(s), and --strict allows none\n")
    Path("cluster.yaml").write_text(QUIET)
    assert run_command(["validate", "--strict"]) == ExitCode.DONE


def test_build_refuses_what_nobody_has_booted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything starts, unless it is asked for."""
    built: list[str] = []
    monkeypatch.setattr(
        "imagegen.cli.build.build_images", lambda cluster, *_, **__: built.append(cluster.release.id) or []
    )
    Path("cluster.yaml").write_text(change(distro={"name": "debian", "suite": "bookworm"}))
    assert run_command(["build"]) == ExitCode.BAD_INPUT
    assert "nobody has built and booted OpenStack zed on debian bookworm yet" in capsys.readouterr().err
    assert built == []
    assert run_command(["build", "--untested"]) == ExitCode.DONE
    assert built == ["zed"]


def test_a_long_command_line_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    """With the line of the node."""
    hints = yaml.safe_dump(
        {key: "%" * 255 for key in ("model", "vendor", "serial")}, default_flow_style=True, width=9999
    )
    text = QUIET.replace("address: 192.168.56.12", f"address: 192.168.56.12, root_device: {hints.strip()}")
    Path("cluster.yaml").write_text(text)
    assert run_command(["validate"]) == ExitCode.BAD_INPUT
    assert "cluster.yaml:7: nodes[1].root_device: the kernel command line of cpt-1 would" in capsys.readouterr().err


def test_standard_input_is_a_cluster_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`-c -`: what a program makes needs no file; secrets lie in this directory."""
    assert run_command(["init", "-q"]) == ExitCode.DONE
    for text, argv, code, said in (
        (QUIET, ["validate"], ExitCode.DONE, "standard input: no problems, 2 node(s)"),
        ("name: demo\n", ["validate"], ExitCode.BAD_INPUT, "standard input:1: the key `network` is missing"),
        ("", ["validate"], ExitCode.BAD_INPUT, "standard input: the file is empty"),
        (QUIET, ["seed", "ctl-1"], ExitCode.DONE, ""),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert run_command([*argv, "-c", "-"]) == code
        assert said in capsys.readouterr().err
