"""Boots a cluster in containers, runs Tempest against it, and says what passed, failed and was skipped, with reasons.

Usage: run_tempest.py [--part REGEX] [--document]. Ends with 1 when a test fails.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from cloud import CHECKOUT, CLUSTER, ENVIRONMENT, Client, prepare, read_network, tempest_conf

from imagegen.base.tree import write_file
from imagegen.cli.credentials import ADMINISTRATOR
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import generate_secrets, load_secrets
from imagegen.local.boot import boot_cluster, open_backend
from imagegen.local.guest import DISK, make_guest
from imagegen.local.request import Boot, find_tar
from imagegen.model.roles import find_role
from imagegen.outputs.credentials import Credentials, credentials_tree

OUT = CHECKOUT / "out"
WORK = OUT / "tempest"
# All of the compute API, and what the projects themselves call smoke tests of the two others.
WHOLE = r"^tempest\.api\.compute\.|^tempest\.api\.(network|image)\..*\[.*\bsmoke\b"
# Servers, networks, metadata, resize and live migration: for every run of CI.
FIXED = "|".join(
    rf"^tempest\.api\.compute\.{name}"
    for name in (
        r"servers\.test_create_server\.ServersTestJSON",
        r"servers\.test_server_actions\.ServerActionsTestJSON\.test_(resize_server_confirm|reboot_server_hard)\[",
        r"servers\.test_server_metadata\.",
        r"servers\.test_attach_interfaces\.AttachInterfacesTestJSON\.test_create_list_show_delete_interfaces_by_network_port",
        r"floating_ips\.test_floating_ips_actions\.FloatingIPsAssociationTestJSON",
        r"admin\.test_live_migration\.LiveMigrationTest\.test_live_block_migration\[",
        r"admin\.test_migrations\.MigrationsAdminTest\.test_cold_migration\[",
    )
)
MICROVERSION = "2.100"  # Nova's newest in 2025.1 (nova/api/openstack/api_version_request.py)


@dataclass(frozen=True)
class Result:
    """One test, or a class whose tests were skipped together."""

    name: str
    outcome: str  # passed, failed or skipped
    why: str
    seconds: float


@contextmanager
def running_cloud(work: Path) -> Iterator[tuple[Client, str]]:
    """The cluster, ready and kept until the end; and where Keystone is."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "cluster.yaml").write_text(CLUSTER)
    secrets = work / "secrets.yaml"
    secrets.touch(mode=0o600)
    secrets.write_text(generate_secrets())
    cluster = load_cluster(work / "cluster.yaml")
    loaded = load_secrets(secrets)
    images = {role: find_tar(OUT, role) for role in cluster.roles}
    boot = Boot(cluster, loaded, work, cluster.nodes, "nspawn", keep=True, images=images)
    try:
        boot_cluster(boot, lambda line: print(line, flush=True))
        password = loaded["identity_admin"]
        tree = credentials_tree(cluster, Credentials(ADMINISTRATOR, ADMINISTRATOR, password))
        write_file(work / "clouds.yaml", tree["clouds.yaml"])
        client = Client(read_network(boot.directory), work / "clouds.yaml", cluster.name)
        guest = make_guest(images[find_role("compute")])
        parts = {"vmlinuz": guest.kernel, "initrd": guest.ramdisk, "disk": DISK}
        for name, data in parts.items():
            (work / name).write_bytes(data)
        found = prepare(client, *(work / name for name in parts))
        state = work / "workspace/state"
        state.mkdir(parents=True, exist_ok=True)
        text = tempest_conf(found, cluster.services.auth_url, cluster.region, password, MICROVERSION, state)
        configuration = work / "workspace/etc/tempest.conf"
        configuration.parent.mkdir(exist_ok=True)
        configuration.touch(mode=0o600)
        configuration.write_text(text)
        yield client, cluster.services.auth_url
    finally:
        with open_backend("nspawn", cluster, boot.directory):
            pass  # it ends what was kept


def run_tests(client: Client, workspace: Path, pattern: str, workers: int) -> list[Result]:
    """Runs the tests whose names match; the results, also of those that were skipped."""
    stestr = str(ENVIRONMENT / "bin/stestr")
    (workspace / ".stestr.conf").write_text(
        "[DEFAULT]\ntest_path=./tempest/test_discover\ntop_dir=.\ngroup_regex=([^\\.]*\\.)*\n"
    )
    packages = next((ENVIRONMENT / "lib").glob("python3*/site-packages/tempest"))
    link = workspace / "tempest"
    if not link.is_symlink():
        link.symlink_to(packages)
    environment = {
        "PATH": f"{ENVIRONMENT}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(workspace),
        "TEMPEST_CONFIG_DIR": str(workspace / "etc"),
        "LANG": "C.UTF-8",
    }
    argv = client.command([stestr, "run", "--concurrency", str(workers), pattern])
    subprocess.run(argv, cwd=workspace, env=environment, check=False)
    said = [stestr, "last", "--subunit"]
    last = subprocess.run(said, cwd=workspace, env=environment, capture_output=True, check=False)
    junit = [str(ENVIRONMENT / "bin/subunit2junitxml")]
    xml = subprocess.run(junit, input=last.stdout, capture_output=True, check=False, env=environment)
    return list(read_results(xml.stdout))


def read_results(document: bytes) -> Iterator[Result]:
    """Every test of a JUnit document."""
    for case in ElementTree.fromstring(document).iter("testcase"):
        name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
        seconds = float(case.get("time") or 0)
        skipped, failed = case.find("skipped"), [*case.iter("failure"), *case.iter("error")]
        if skipped is not None:
            yield Result(name, "skipped", (skipped.text or "").strip(), seconds)
        elif failed:
            yield Result(name, "failed", (failed[0].text or "").strip(), seconds)
        else:
            yield Result(name, "passed", "", seconds)


def describe(results: list[Result], seconds: float, version: str) -> str:
    """docs/tempest.md, but for its head: counts, seconds, and each skip with its reason."""
    counts = Counter(result.outcome for result in results)
    lines = [
        f"Tempest {version}, {time.strftime('%Y-%m-%d')}: {counts['passed']} passed, {counts['failed']} failed,"
        f" {counts['skipped']} skipped, {seconds:.0f} seconds.",
        "",
        "| skipped | why |",
        "|---|---|",
    ]
    for result in sorted(results, key=lambda one: one.name):
        if result.outcome == "skipped":
            reason = " ".join(result.why.split()).replace("|", "\\|")
            lines.append(f"| `{short(result.name)}` | {reason} |")
    return "\n".join(lines) + "\n"


def short(name: str) -> str:
    """A test's name without its ids and what all names begin with."""
    return re.sub(r"\[.*\]", "", name).removeprefix("tempest.api.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", help="a regular expression; default: all")
    parser.add_argument("--fixed", action="store_true", help="the part that CI runs")
    parser.add_argument("--document", action="store_true", help="write docs/tempest.md")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    pattern = FIXED if given.fixed else given.part or WHOLE
    with running_cloud(WORK) as (client, _):
        begun = time.monotonic()
        results = run_tests(client, WORK / "workspace", pattern, given.workers)
        seconds = time.monotonic() - begun
    version = subprocess.run(
        [str(ENVIRONMENT / "bin/python"), "-c", "import importlib.metadata as m; print(m.version('tempest'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    text = describe(results, seconds, version)
    print(text)
    for result in results:
        if result.outcome == "failed":
            print(f"FAILED {result.name}\n{result.why[-2000:]}\n")
    if given.document:
        page = CHECKOUT / "docs/tempest.md"
        head = page.read_text().partition("<!-- results -->")[0]
        page.write_text(f"{head}<!-- results -->\n\n{text}")
    passed = any(result.outcome == "passed" for result in results)
    return 0 if passed and not any(result.outcome == "failed" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
