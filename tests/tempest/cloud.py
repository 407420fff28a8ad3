"""A cluster of one controller and two computes for strangers' tests, and what Tempest wants to find in it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from imagegen.base.templates import quote_oslo

CHECKOUT = Path(__file__).parents[2]
ENVIRONMENT = CHECKOUT / ".venv-tempest"
FLAVORS = {"tempest-small": ("128", "1"), "tempest-large": ("192", "1")}  # MiB, GiB
CLUSTER = """\
name: strangers
network: {cidr: 10.45.0.0/24, gateway: 10.45.0.1}
nodes:
  - {name: controller, role: controller, mac: "52:54:00:45:00:11", address: 10.45.0.11}
  - {name: compute-1, role: compute, mac: "52:54:00:45:00:21", address: 10.45.0.21}
  - {name: compute-2, role: compute, mac: "52:54:00:45:00:22", address: 10.45.0.22}
"""


@dataclass(frozen=True)
class Found:
    """The ids that a configuration names."""

    image: str
    image_alt: str
    flavor: str
    flavor_alt: str
    network: str
    extensions: list[str]  # of Neutron's API


def read_network(boot: Path) -> str:
    """The network namespace from which a kept cluster is reached."""
    return json.loads((boot / "nspawn.json").read_text())["run"] + "-hub"


@dataclass(frozen=True)
class Client:
    """`openstack` in the network of the cluster, as its administrator by out/clouds.yaml."""

    namespace: str
    clouds: Path
    cloud: str

    def command(self, words: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *words]

    def ask(self, *words: str) -> Any:
        """What the client prints as JSON; None when it prints nothing."""
        argv = self.command([str(ENVIRONMENT / "bin/openstack"), "--os-cloud", self.cloud, *words])
        environment = {**os.environ, "OS_CLIENT_CONFIG_FILE": str(self.clouds)}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"openstack {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def make(self, kind: str, *words: str) -> str:
        """Makes one and returns its id."""
        return str(self.ask(*kind.split(), "create", "-f", "json", *words)["id"])


def prepare(client: Client, kernel: Path, ramdisk: Path, disk: Path) -> Found:
    """Images, flavors and an external network, as an administrator would make them."""
    parts = {}
    for name, form, path in (("kernel", "aki", kernel), ("ramdisk", "ari", ramdisk)):
        words = ("--disk-format", form, "--container-format", form, "--file", str(path), "--public", f"guest-{name}")
        parts[name] = client.make("image", *words)
    boots = ("--property", f"kernel_id={parts['kernel']}", "--property", f"ramdisk_id={parts['ramdisk']}")
    boots += ("--property", "os_command_line=console=ttyS0 rdinit=/init quiet")
    images = [
        client.make("image", "--disk-format", "raw", "--file", str(disk), "--public", *boots, name)
        for name in ("guest", "guest-alt")
    ]
    flavors = [
        client.make("flavor", "--ram", ram, "--disk", disk_gib, "--vcpus", "1", name)
        for name, (ram, disk_gib) in FLAVORS.items()
    ]
    flat = ("--provider-network-type", "flat", "--provider-physical-network", "public")
    network = client.make("network", "--external", *flat, "public")
    client.make("subnet", "--network", network, "--subnet-range", "172.24.4.0/24", "--no-dhcp", "public")
    extensions = [row["Alias"] for row in client.ask("extension", "list", "--network", "-f", "json")]
    return Found(images[0], images[1], flavors[0], flavors[1], network, extensions)


def make_users(client: Client, clouds: str) -> str:
    """clouds.yaml with the names that openstacksdk's functional tests use (DevStack's), for users that this makes."""
    document = yaml.safe_load(clouds)
    admin = document["clouds"][client.cloud]
    named = {"devstack-admin": admin, "devstack-system-admin": {**admin, "auth": {**admin["auth"]}}}
    system = named["devstack-system-admin"]["auth"]
    del system["project_name"], system["project_domain_name"]
    system["system_scope"] = "all"
    for cloud, name in (("devstack", "demo"), ("devstack-alt", "alt_demo")):
        password = secrets.token_hex(12)  # of a user who lives as long as these containers
        client.make("project", name)
        client.make("user", "--project", name, "--password", password, name)
        client.ask("role", "add", "--project", name, "--user", name, "member")
        auth = {**admin["auth"], "username": name, "project_name": name, "password": password}
        named[cloud] = {**admin, "auth": auth}
    return yaml.safe_dump({"clouds": document["clouds"] | named})


def tempest_conf(found: Found, auth_url: str, region: str, password: str, microversion: str, state: Path) -> str:
    """tempest.conf. Guests take no login, so nothing inside them is validated."""
    sections: Mapping[str, Mapping[str, object]] = {
        "DEFAULT": {"state_path": state, "log_file": state / "tempest.log"},
        "oslo_concurrency": {"lock_path": state / "locks"},
        "auth": {
            "admin_username": "admin",
            "admin_password": quote_oslo(password),
            "admin_project_name": "admin",
            "admin_domain_name": "Default",
            "use_dynamic_credentials": True,
            "create_isolated_networks": True,
            "tempest_roles": "member",
        },
        "identity": {"uri_v3": auth_url, "auth_version": "v3", "region": region},
        "compute": {
            "image_ref": found.image,
            "image_ref_alt": found.image_alt,
            "flavor_ref": found.flavor,
            "flavor_ref_alt": found.flavor_alt,
            "region": region,
            "min_compute_nodes": 2,
            "max_microversion": microversion,
            "build_timeout": 600,
        },
        "compute-feature-enabled": {
            "resize": True,
            "cold_migration": True,
            "live_migration": True,
            "block_migration_for_live_migration": True,
            "live_migrate_back_and_forth": True,
            "volume_backed_live_migration": False,
            "vnc_console": True,
            "serial_console": False,
            "spice_console": False,
            "change_password": False,
            "swap_volume": False,
            "attach_encrypted_volume": False,
            "personality": False,
        },
        "network": {
            "public_network_id": found.network,
            "floating_network_name": "public",
            "project_network_cidr": "10.100.0.0/16",
            "region": region,
        },
        "network-feature-enabled": {"ipv6": True, "api_extensions": ",".join(found.extensions)},
        "image": {"region": region},
        "validation": {"run_validation": False},
        "service_available": {
            "cinder": False,
            "glance": True,
            "horizon": False,
            "neutron": True,
            "nova": True,
            "swift": False,
        },
    }
    parser = ConfigParser(interpolation=None, default_section="no section is the default of others")
    for name, options in sections.items():
        parser[name] = {option: str(value) for option, value in options.items()}
    text = StringIO()
    parser.write(text)
    return text.getvalue()
