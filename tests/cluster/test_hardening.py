"""What the nodes' services may do: as docs/hardening.md says, in the kernel's own words, and without a denial."""

from __future__ import annotations

import re

from deployment import Deployment, RunningNode
from repository import ROOT

from imagegen.model.roles import find_role

PAGE = ROOT / "docs/hardening.md"
DAEMONS = (
    *("keystone", "placement-api", "nova-api", "nova-api-metadata", "nova-conductor", "nova-conductor@oost"),
    *("nova-scheduler", "nova-novncproxy", "nova-novncproxy@oost", "glance-api", "neutron-api", "neutron-rpc-server"),
    *("neutron-periodic-workers", "neutron-ovn-maintenance-worker"),
)
MOST = 5.0  # what `systemd-analyze security` may say of a daemon of OpenStack on a controller

# What a denied call is called by libc, by Python, by systemd when a process was killed for it.
DENIED = re.compile(r"Operation not permitted|Read-only file system|Address family not supported|status=31/SYS|SIGSYS")
# A container may not change the kernel's settings or lock memory, which these try.
DENIED_TO_CONTAINERS = re.compile(r"(systemd(-networkd)?|libvirtd|ovs-ctl|ovs-vswitchd)\[\d+\]: ")


def read_table(page: str) -> dict[tuple[str, str], str]:
    """(role, unit) -> exposure, from the rows `| role | unit | exposure |...` of the page."""
    return {
        (role, unit): exposure
        for role, unit, exposure in re.findall(r"^\| (\w+) \| `(\S+)` \| (\d+\.\d) \|", page, re.MULTILINE)
    }


def read_exposures(node: RunningNode) -> dict[str, str]:
    """Unit -> exposure, of every service that is loaded, by the node's own systemd."""
    rows = node.ask_json("systemd-analyze", "security", "--no-pager", "--json=short")
    return {row["unit"].removesuffix(".service"): row["exposure"] for row in rows}


def test_exposures_are_as_the_page_says(deployment: Deployment) -> None:
    """Every row of the table is what systemd says on a node, and every daemon of ours has a row."""
    table = read_table(PAGE.read_text())
    nodes = {find_role("controller"): deployment.controller, find_role("compute"): deployment.computes[0]}
    for role, node in nodes.items():
        found = read_exposures(node)
        wanted = {unit: exposure for (own, unit), exposure in table.items() if own == role.name}
        assert wanted, role
        # An instance counts as its template.
        found = {re.sub("@.+", "@", unit): exposure for unit, exposure in found.items()}
        assert {unit: found.get(unit) for unit in wanted} == wanted, node.name
    for daemon in DAEMONS:
        assert float(table["controller", re.sub("@.+", "@", daemon)]) < MOST
    assert {("controller", "imagegen-node"), ("compute", "imagegen-node"), ("compute", "nova-compute")} <= set(table)


def test_daemons_have_no_privilege(deployment: Deployment) -> None:
    """In the kernel's words: no capability, none to be had, a filter of system calls, a root that is read-only."""
    node = deployment.controller
    for unit in DAEMONS:
        pid = node.ask("systemctl", "show", "--property=MainPID", "--value", unit).strip()
        status = dict(re.findall(r"^(\w+):\s+(.*)$", node.read(f"/proc/{pid}/status"), re.MULTILINE))
        assert {status[name].strip("0") for name in ("CapBnd", "CapEff", "CapPrm", "CapAmb")} == {""}, unit
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), unit
        root = re.search(r"^\d+ \d+ \S+ \S+ / (\S+) ", node.read(f"/proc/{pid}/mountinfo"), re.MULTILINE)
        assert root is not None and "ro" in root[1].split(","), unit


def test_nothing_was_denied(deployment: Deployment) -> None:
    """Neither a daemon nor the agent was refused a system call, a file or a socket since the node booted."""
    for node in deployment.nodes.values():
        said = node.ask("journalctl", "--boot", "--no-pager", "--output=short").splitlines()
        logs = " ".join(f"/var/log/{name}/*.log" for name in ("glance", "keystone", "neutron", "nova", "placement"))
        said += node.ask("sh", "-c", f"cat {logs} 2>/dev/null || true").splitlines()
        denied = [line for line in said if DENIED.search(line) and not DENIED_TO_CONTAINERS.search(line)]
        assert denied == [], node.name


def test_the_privileged_half_of_a_compute_starts(deployment: Deployment) -> None:
    """Within the limits of its unit, nova-compute's privsep does root's work by sudo and rootwrap."""
    node = deployment.computes[0]
    limits = node.ask("systemctl", "show", "--property=CapabilityBoundingSet", "nova-compute").strip()
    assert "cap_sys_admin" in limits and "cap_sys_module" not in limits
    planted = "/var/lib/nova/instances/planted"
    node.ask("touch", planted)
    program = (
        "import os, shlex, nova.privsep.path\n"
        "from nova import config, utils\n"
        "from oslo_privsep import priv_context\n"
        "config.parse_args(['nova-compute', '--config-dir=/etc/nova/nova.conf.d'])\n"
        "priv_context.init(root_helper=shlex.split(utils.get_root_helper()))\n"
        f"nova.privsep.path.chown({planted!r}, uid=os.getuid())\n"
    )
    run = ("systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--property=User=nova", f"--property={limits}")
    node.ask(*run, "python3", "-", input=program, timeout=180)
    assert node.file_facts(planted)[planted].startswith("nova:root ")
    node.ask("rm", planted)
