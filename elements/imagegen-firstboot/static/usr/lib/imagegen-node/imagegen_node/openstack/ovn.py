"""OVN and Open vSwitch on this node: where the databases answer, and how the chassis takes part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imagegen_node.engine.errors import Waiting
from imagegen_node.engine.files import read_text
from imagegen_node.engine.system import run

# Database's tool -> the port of the database, ovn-ctl's defaults, and what get-connection prints before each place.
TOOLS = {"ovn-nbctl": (6641, ""), "ovn-sbctl": (6642, 'read-write role="" ')}
# os-vif plugs instances by it ([os_vif_ovs] ovsdb_connection): nova-compute may not use the socket, which is root's.
MANAGER = "ptcp:6640:127.0.0.1"
SECONDS = 30.0  # until a tool must have answered
# What `imagegen boot` puts into containers whose kernel cannot switch packets; never on a real node.
DATAPATH = Path("/etc/imagegen/datapath.json")
TUNNEL_BRIDGE = "br-tunnel"
# Private key, certificate and authority, for an OVN outside the cluster that is asked by ssl.
KEYS = tuple(Path(f"/etc/openvswitch/ovn-{name}.pem") for name in ("key", "cert", "ca"))


def listen(address: str) -> str:
    """OVN's databases answering there, and nowhere else."""
    changed = []
    for tool, (port, rights) in TOOLS.items():
        wanted = f"ptcp:{port}:{address}"
        if run([tool, "get-connection"], timeout=SECONDS).splitlines() != [rights + wanted]:
            run([tool, "set-connection", wanted], timeout=SECONDS)
            changed.append(wanted)
    return "now at " + ", ".join(changed) if changed else ""


def configure_chassis(node: dict[str, Any]) -> str:
    """What ovn-controller reads in Open vSwitch's database; says what had to change."""
    chassis, asked = node["chassis"], json.loads(read_text(DATAPATH) or "{}")
    wanted = {
        "hostname": node["node"],
        "ovn-encap-ip": make_tunnel_bridge(asked) if asked else node["address"],
        "ovn-encap-type": "geneve",
        "ovn-remote": chassis["southbound"],
        "system-id": chassis["name"],
    }
    if asked:
        wanted["ovn-bridge-datapath-type"] = asked["datapath"]
    there = read_external_ids()
    stale = {key: value for key, value in wanted.items() if there.get(key) != value}
    if stale:
        ids = [f"external_ids:{key}={json.dumps(value)}" for key, value in stale.items()]
        run(["ovs-vsctl", "--no-wait", "set", "Open_vSwitch", ".", *ids], timeout=SECONDS)
    if chassis["southbound"].startswith("ssl:") and use_keys():
        stale["ssl"] = str(KEYS[0])
    if run(["ovs-vsctl", "get-manager"], timeout=SECONDS).split() != [MANAGER]:
        run(["ovs-vsctl", "--no-wait", "set-manager", MANAGER], timeout=SECONDS)
        stale["manager"] = MANAGER
    return "set " + ", ".join(sorted(stale)) if stale else ""


def use_keys() -> bool:
    """Open vSwitch's database naming the keys for an OVN that asks for them; whether it had to change.

    Raises Waiting for keys that the site has not brought yet.
    """
    for path in KEYS:
        if not path.exists():
            raise Waiting(f"{path}, with which the site's OVN knows this compute: you bring it")
    said = run(["ovs-vsctl", "get-ssl"], timeout=SECONDS)
    if all(str(path) in said for path in KEYS):
        return False
    run(["ovs-vsctl", "--no-wait", "set-ssl", *map(str, KEYS)], timeout=SECONDS)
    return True


def make_tunnel_bridge(asked: dict[str, str]) -> str:
    """A bridge of Open vSwitch's program, with an interface for tunnels; returns the address that it is given."""
    bridge, interface = TUNNEL_BRIDGE, asked["interface"]
    kind = ["set", "bridge", bridge, "datapath_type={datapath}".format(**asked)]
    port = ["--may-exist", "add-port", bridge, interface]
    run(["ovs-vsctl", "--may-exist", "add-br", bridge, "--", *kind, "--", *port], timeout=SECONDS)
    return asked["address"]


def read_external_ids() -> dict[str, str]:
    """What Open vSwitch's database says of this machine."""
    argv = ["ovs-vsctl", "--format=json", "--columns=external_ids", "list", "Open_vSwitch", "."]
    ((_, pairs),) = json.loads(run(argv, timeout=SECONDS))["data"][0]
    return dict(pairs)


def check_connected() -> str:
    """Raises Waiting until ovn-controller is connected to OVN's southbound database."""
    said = run(["ovn-appctl", "--target=ovn-controller", "connection-status"], timeout=SECONDS).strip()
    if said != "connected":
        raise Waiting(f"ovn-controller to reach OVN's southbound database; it is {said}")
    return said
