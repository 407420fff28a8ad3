"""cloud-init did all that the seed said, and found nothing to complain about."""

from __future__ import annotations

import json
import re
import subprocess

import yaml
from deployment import Deployment

from imagegen.seeds.seed import seed_tree
from imagegen.seeds.service_files import node_files

SEED = "/var/lib/cloud/seed/nocloud"

# Lines of /var/log/cloud-init.log of level WARNING or above that are no fault. None is known.
IGNORED: tuple[str, ...] = ()


def test_status_is_done_without_a_word(deployment: Deployment) -> None:
    """`cloud-init status`: done, from the NoCloud seed, no error and no recoverable error in any stage."""
    for node in deployment.nodes.values():
        said = node.ask_json("cloud-init", "status", "--format=json")
        assert (said["status"], said["extended_status"]) == ("done", "done"), node.name
        assert said["errors"] == [] and said["recoverable_errors"] == {}, node.name
        stages = {name: said[name] for name in ("init-local", "init", "modules-config", "modules-final")}
        assert all(stage["errors"] == [] for stage in stages.values()), stages
        assert all(stage["recoverable_errors"] == {} for stage in stages.values()), stages
        assert "DataSourceNoCloud" in said["detail"], node.name


def test_the_log_holds_no_warning(deployment: Deployment) -> None:
    """No line of level WARNING or above, and no traceback."""
    for node in deployment.nodes.values():
        log = node.read("/var/log/cloud-init.log")
        assert "DataSourceNoCloud" in log, node.name
        lines = [line for line in log.splitlines() if re.search(r"\[(WARNING|ERROR|CRITICAL)\]|Traceback", line)]
        assert [line for line in lines if not any(known in line for known in IGNORED)] == [], node.name


def test_the_seed_passes_the_targets_own_schema(deployment: Deployment) -> None:
    """user-data and network-config, by the cloud-init of the image; a fault that we plant is refused."""
    for node in (deployment.controller, deployment.computes[0]):
        for name, kind in (("user-data", "cloud-config"), ("network-config", "network-config")):
            said = node.ask("cloud-init", "schema", "--config-file", f"{SEED}/{name}", "--schema-type", kind)
            assert said.startswith("Valid schema"), node.name
    node = deployment.controller
    plant = f"""
sed -e 's/^write_files:/write_file:/' -e '/^ *owner:/d' {SEED}/user-data >/root/planted &&
    sed 's/macaddress/mac/' {SEED}/network-config >/root/planted-network"""
    node.ask("sh", "-c", plant)
    for path, kind in (("/root/planted", "cloud-config"), ("/root/planted-network", "network-config")):
        assert node.execute(["cloud-init", "schema", "-c", path, "-t", kind]).returncode != 0, path
        node.ask("rm", path)


def test_boot_used_the_seed_that_generate_wrote(deployment: Deployment) -> None:
    """One seed: what is in the node is what `generate` wrote, byte for byte, and what seed_tree() renders."""
    for node in deployment.nodes.values():
        rendered = seed_tree(deployment.cluster, node.node, deployment.secrets)
        for name, file in rendered.items():
            assert (deployment.out / "seeds" / node.name / name).read_bytes() == file.data
            assert node.execute(["cat", f"{SEED}/{name}"]).stdout == file.data, f"{node.name}: {name}"


def test_every_file_of_the_seed_is_in_place(deployment: Deployment) -> None:
    """Owner, mode and content of each file, as the seed has them."""
    for node in deployment.nodes.values():
        files = node_files(deployment.cluster, node.node, deployment.secrets)
        facts = node.file_facts(*(file.path for file in files))
        assert facts == {file.path: f"{file.owner} {file.permissions}" for file in files}, node.name
        for file in files:
            assert node.execute(["cat", file.path]).stdout.decode() == file.content, f"{node.name}: {file.path}"


def test_instance_data_names_the_role(deployment: Deployment) -> None:
    """The public facts are in instance data, where the agent looks for them."""
    for node in deployment.nodes.values():
        facts = json.loads(node.ask("cloud-init", "query", "--format", "{{ds.meta_data.imagegen | tojson}}"))
        told = yaml.safe_load(node.read(f"{SEED}/meta-data"))
        assert facts == told["imagegen"], node.name
        assert (facts["version"], facts["role"], facts["cluster"]) == (1, node.node.role.name, "polder")
        assert facts["release"] == deployment.cluster.release.id
        assert node.ask("cloud-init", "query", "instance_id").strip() == told["instance-id"]


def test_the_interface_is_the_seeds(deployment: Deployment) -> None:
    """net0 has the node's MAC and address, the default route goes to the gateway; there is one renderer."""
    for node in deployment.nodes.values():
        (link,) = node.ask_json("ip", "-json", "address", "show", "dev", "net0")
        assert link["address"] == node.node.mac, node.name
        addresses = [(one["local"], one["prefixlen"]) for one in link["addr_info"] if one["family"] == "inet"]
        assert addresses == [(str(node.node.address), 26)], node.name
        routes = node.ask_json("ip", "-json", "route", "show", "default")
        assert [route["gateway"] for route in routes] == [str(deployment.cluster.network.gateway)], node.name
        node.ask("ls", "/etc/systemd/network/10-cloud-init-net0.network")
        assert node.execute(["ls", "/etc/netplan", "/etc/network/interfaces.d"]).stdout == b"", node.name
        chrony = node.read("/etc/chrony/sources.d/imagegen.sources")
        first = "" if node is deployment.controller else "server 10.73.8.100 iburst\n"
        assert chrony == f"server 10.73.8.65 iburst\n{first}", node.name


def test_people_can_log_in_by_their_key_only(deployment: Deployment) -> None:
    """ssh from the cluster's network with the cluster file's key is root; without it only a key is asked for."""
    common = ["nsenter", f"--net=/run/netns/{deployment.hub}", "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]
    common += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"]
    for node in deployment.nodes.values():
        target = [f"root@{node.node.address}", "hostname"]
        with_key = [*common, "-i", str(deployment.directory / "id"), *target]
        done = subprocess.run(with_key, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == node.name, done.stderr
        without = subprocess.run([*common, "-i", "/dev/null", *target], capture_output=True, text=True, timeout=60)
        assert without.returncode == 255 and "(publickey)" in without.stderr, without.stderr
