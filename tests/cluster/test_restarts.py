"""Done again, everything stays as it is: the agent restarted on ready nodes, then the nodes themselves.

conftest.py puts this file last.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from answers import CONTROLLER_DAEMONS, ask_openstack
from deployment import READY_SECONDS, Deployment, RunningNode, start_agent, stop_agent, wait_for, wait_ready
from watch import watch_opened

from imagegen.seeds.seed import seed_tree

# Programs that do work: on a node that is ready there is none to do.
WORKERS = (
    *("usr/bin/nova-manage", "usr/bin/nova-status", "usr/bin/keystone-manage", "usr/bin/placement-manage"),
    "usr/lib/imagegen-node/imagegen_node/openstack/cell_mappings.py",
    "usr/lib/imagegen-node/imagegen_node/openstack/identity_objects.py",
)
SEED = "/var/lib/cloud/seed/nocloud"
IDENTITY = ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub", "/var/lib/nova/compute_id", "/etc/hostname")


def main_pids(node: RunningNode) -> dict[str, str]:
    """Service -> main process of all that run, the agent left out."""
    units = node.unit_properties("MainPID", "SubState")
    kept = {name: unit["MainPID"] for name, unit in units.items() if unit["SubState"] == "running"}
    # systemd ends and starts these by itself, when somebody asks them something or nobody does.
    for name in ("imagegen-node.service", "systemd-hostnamed.service", "systemd-timedated.service", "polkit.service"):
        kept.pop(name, None)
    return kept


def list_workers(node: RunningNode) -> list[Path]:
    return [node.tree / path for path in WORKERS if (node.tree / path).exists()]


def identity(node: RunningNode) -> list[bytes]:
    return [node.execute(["cat", path]).stdout for path in IDENTITY]


def test_a_restarted_agent_finds_nothing_to_do(deployment: Deployment) -> None:
    """Ready again, by reading only: no manage command starts, no daemon restarts, no file of the seed changes."""
    for node in deployment.nodes.values():
        workers = list_workers(node)
        pids, before = main_pids(node), identity(node)
        rows = read_cells(deployment.controller)
        with watch_opened(workers) as opened:
            stop_agent(node)
            document = start_agent(node)
        assert opened == [], node.name
        assert main_pids(node) == pids, node.name
        assert identity(node) == before, node.name
        assert read_cells(deployment.controller) == rows
        assert [step["state"] for step in document["steps"]] == ["done"] * len(document["steps"])


def test_the_watch_for_commands_sees_one(deployment: Deployment) -> None:
    """The check above is not blind: a nova-manage in the node's container is noticed."""
    node = deployment.controller
    with watch_opened([node.tree / "usr/bin/nova-manage", node.tree / "usr/bin/keystone-manage"]) as opened:
        node.execute(["nova-manage", "--version"])
    assert set(opened) == {str(node.tree / "usr/bin/nova-manage")}


def test_a_planted_link_leads_the_agent_nowhere(deployment: Deployment) -> None:
    """RabbitMQ's account puts a link in the place of its cookie: the agent makes a file of its own there."""
    node, cookie, precious = deployment.controller, "/var/lib/rabbitmq/.erlang.cookie", "/root/precious"
    node.ask("sh", "-c", f"echo precious >{precious}")
    before = node.file_facts(precious)
    node.ask_as("rabbitmq", "ln", "--symbolic", "--force", precious, cookie)
    stop_agent(node)
    start_agent(node)
    assert node.file_facts(precious, cookie) == {**before, cookie: "rabbitmq:rabbitmq 0400"}
    assert (node.read(precious), node.read(cookie)) == ("precious\n", deployment.secrets["messaging_cookie"])
    node.ask("rm", precious)


LISTENER = """
import http.server, sys

class Listener(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        sys.stdout.write(self.rfile.read(int(self.headers["Content-Length"])).decode() + "\\n")
        sys.stdout.flush()
        self.send_response(204)
        self.end_headers()

http.server.HTTPServer(("", 8099), Listener).serve_forever()
"""


def test_the_status_is_posted_to_whoever_listens(deployment: Deployment, tmp_path: Path) -> None:
    """The seeds name a URL where nobody listened during the bring-up, which held up no node; now somebody does."""
    posted = tmp_path / "posted"
    with posted.open("wb") as output:
        argv = ["nsenter", f"--net=/run/netns/{deployment.hub}", sys.executable, "-c", LISTENER]
        listener = subprocess.Popen(argv, stdout=output, stderr=subprocess.DEVNULL)
    try:
        for node in deployment.nodes.values():
            stop_agent(node)
            start_agent(node)

        def all_posted() -> bool:
            documents = [json.loads(line) for line in posted.read_text().splitlines()]
            ready = {document["node"] for document in documents if document["state"] == "ready"}
            return ready == set(deployment.nodes)

        wait_for("every node's status to arrive", all_posted, READY_SECONDS)
    finally:
        listener.terminate()
        listener.wait(timeout=30)
    assert deployment.secrets["database_nova"] not in posted.read_text()


def read_cells(controller: RunningNode) -> str:
    query = "SELECT id, created_at, updated_at, uuid, name FROM nova_api.cell_mappings ORDER BY id"
    return controller.ask("mariadb", "--batch", "--skip-column-names", f"--execute={query}")


def reboot(node: RunningNode) -> int:
    """Asks the node to reboot, waits until its init is another; that init's pid."""
    before = node.leader()
    node.execute(["systemctl", "reboot", "--no-block"])

    def restarted() -> int | None:
        leader = node.leader()
        return leader if leader not in (None, before) else None

    return wait_for(f"{node.name} to reboot", restarted, READY_SECONDS)


@pytest.mark.item(18, 25)
def test_rebooted_nodes_are_ready_again(deployment: Deployment) -> None:
    """All nodes rebooted at once: services come back by themselves, each node is who it was, Nova knows no other.

    And nothing is done again: no manage command starts, which are also what would import Nova. Their seeds are gone
    meanwhile, but for one that gets a new one.
    """
    rotated = give_new_seed(deployment, deployment.computes[0])
    detached = [node for node in deployment.nodes.values() if node is not deployment.computes[0]]
    for node in detached:
        node.ask("mv", SEED, "/root/seed")
    before = {name: identity(node) for name, node in deployment.nodes.items()}
    rows = read_cells(deployment.controller)
    workers = [path for node in deployment.nodes.values() for path in list_workers(node)]
    with watch_opened(workers) as opened:
        for node in deployment.nodes.values():
            reboot(node)
        for node in deployment.nodes.values():
            wait_for(f"{node.name} to be ready after its reboot", partial(is_ready, node), READY_SECONDS)
    assert opened == []
    for node in detached:
        assert node.ask("cloud-init", "status").strip() == "status: disabled", node.name
        assert node.ask("cat", "/sys/class/net/net0/address").strip() == node.node.mac
    assert deployment.computes[0].ask_json("cat", "/etc/imagegen/node.json")["status_url"] == rotated
    for name, node in deployment.nodes.items():
        assert identity(node) == before[name], name
        assert node.execute(["systemctl", "is-system-running"]).stdout.decode().strip() == "running", name
    units = deployment.controller.unit_properties("SubState")
    for unit in (*CONTROLLER_DAEMONS, "placement-api", "keystone", "mariadb", "rabbitmq-server", "memcached"):
        assert units[f"{unit}.service"]["SubState"] == "running", unit
    for node in deployment.computes:
        units = node.unit_properties("SubState")
        assert units["libvirtd.service"]["SubState"] == units["nova-compute.service"]["SubState"] == "running"
    assert read_cells(deployment.controller) == rows
    services = sorted(
        (row["Binary"], row["Host"], row["State"]) for row in ask_openstack(deployment, "compute", "service", "list")
    )
    assert services == sorted(
        [
            *(("nova-conductor", deployment.controller.name, "up") for _ in deployment.cluster.cells),
            ("nova-scheduler", deployment.controller.name, "up"),
            *(("nova-compute", node.name, "up") for node in deployment.computes),
        ]
    )


def give_new_seed(deployment: Deployment, node: RunningNode) -> str:
    """Puts a seed with another URL for the status in the place of the node's seed; the URL."""
    url = "http://10.73.8.65:8098/status"
    seed = seed_tree(replace(deployment.cluster, status_url=url), node.node, deployment.secrets)
    for name, file in seed.items():
        node.ask("sh", "-c", f"cat >{SEED}/{name}", input=file.data.decode())
    return url


def test_another_machines_disk_is_refused(deployment: Deployment) -> None:
    """Without a seed, and with a copy that was made behind another network card: failed, and nothing is started."""
    node = deployment.computes[1]
    kept = node.read("/var/lib/imagegen/seed.json")
    assert node.node.mac in kept
    stop_agent(node)
    node.ask("sed", "--in-place", f"s/{node.node.mac}/52:54:00:00:00:99/", "/var/lib/imagegen/seed.json")
    node.ask("systemctl", "start", "imagegen-node.service")

    def refused() -> bool:
        document = node.status()
        return (
            document["state"] == "failed"
            and "was for another machine: that machine had a network" in document["detail"]
        )

    wait_for(f"{node.name} to refuse its disk", refused, READY_SECONDS)
    node.ask("sh", "-c", "cat >/var/lib/imagegen/seed.json", input=kept)
    wait_ready(node)


def is_ready(node: RunningNode) -> bool:
    """Whether the agent of this boot says ready; /run is empty when a node starts."""
    if node.leader() is None or not Path(f"/proc/{node.leader()}/root/run/imagegen/status.json").exists():
        return False
    document = node.status()
    assert document.get("state") != "failed", document
    return document.get("state") == "ready"
