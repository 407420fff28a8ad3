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

from cloud import (
    CHECKOUT,
    CLUSTER,
    ENVIRONMENT,
    FLAVORS,
    Client,
    make_users,
    prepare,
    read_network,
    tempest_conf,
)

from imagegen.base.signals import end_on_signals
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
# Servers, networks, metadata, resize and live migration.
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
SDK = r"^openstack\.tests\.functional\.compute\."
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


def run_tests(
    client: Client, workspace: Path, package: str, discover: str, pattern: str, workers: int, **environment: str
) -> list[Result]:
    """Runs a package's tests whose names match; the results, also of those that were skipped."""
    stestr = str(ENVIRONMENT / "bin/stestr")
    workspace.mkdir(parents=True, exist_ok=True)
    (workspace / ".stestr.conf").write_text(
        f"[DEFAULT]\ntest_path=./{discover}\ntop_dir=.\ngroup_regex=([^\\.]*\\.)*\n"
    )
    link = workspace / package
    if not link.is_symlink():
        link.symlink_to(next((ENVIRONMENT / "lib").glob(f"python3*/site-packages/{package}")))
    environment = {
        "PATH": f"{ENVIRONMENT}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(workspace),
        "LANG": "C.UTF-8",
        **environment,
    }
    argv = client.command([stestr, "run", "--concurrency", str(workers), pattern])
    subprocess.run(argv, cwd=workspace, env=environment, check=False)
    said = [stestr, "last", "--subunit"]
    last = subprocess.run(said, cwd=workspace, env=environment, capture_output=True, check=False)
    junit = [str(ENVIRONMENT / "bin/subunit2junitxml")]
    xml = subprocess.run(junit, input=last.stdout, capture_output=True, check=False, env=environment)
    return list(read_results(xml.stdout))


def run_tempest(client: Client, pattern: str, workers: int) -> list[Result]:
    workspace = WORK / "workspace"
    conf = {"TEMPEST_CONFIG_DIR": str(workspace / "etc")}
    return run_tests(client, workspace, "tempest", "tempest/test_discover", pattern, workers, **conf)


def run_sdk(client: Client, workers: int) -> list[Result]:
    """openstacksdk's own tests of the compute API, as users of DevStack's names."""
    workspace = WORK / "sdk"
    workspace.mkdir(exist_ok=True)
    place = workspace / "clouds.yaml"
    place.touch(mode=0o600)
    place.write_text(make_users(client, client.clouds.read_text()))
    conf = {
        "OS_CLIENT_CONFIG_FILE": str(place),
        "OS_CLOUD": "devstack-admin",
        "OPENSTACKSDK_FLAVOR": next(iter(FLAVORS)),
        "OPENSTACKSDK_IMAGE": "guest",
    }
    discover = "openstack/tests/functional/compute"
    return run_tests(client, workspace, "openstack", discover, SDK, workers, **conf)


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


def describe(suite: str, results: list[Result], seconds: float, version: str) -> str:
    """What docs/tempest.md says of one suite: counts, seconds, and each skip with its reason."""
    counts = Counter(result.outcome for result in results)
    lines = [
        f"## {suite} {version}",
        "",
        f"{time.strftime('%Y-%m-%d')}: {counts['passed']} passed, {counts['failed']} failed,"
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
    return re.sub(r"\[.*\]", "", name).removeprefix("tempest.api.").removeprefix("openstack.tests.functional.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", help="a regular expression; default: all")
    parser.add_argument("--fixed", action="store_true", help="a part that takes five minutes")
    parser.add_argument("--document", action="store_true", help="write docs/tempest.md")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    pattern = FIXED if given.fixed else given.part or WHOLE
    suites = {"Tempest": lambda client: run_tempest(client, pattern, given.workers)}
    if pattern == WHOLE:
        suites["openstacksdk"] = lambda client: run_sdk(client, given.workers)
    texts, failed = [], False
    with end_on_signals(), running_cloud(WORK) as (client, _):
        for suite, run in suites.items():
            begun = time.monotonic()
            results = run(client)
            texts.append(describe(suite, results, time.monotonic() - begun, find_version(suite.lower())))
            print(texts[-1])
            for result in results:
                if result.outcome == "failed":
                    print(f"FAILED {result.name}\n{result.why[-2000:]}\n")
            outcomes = {result.outcome for result in results}
            failed = failed or "failed" in outcomes or "passed" not in outcomes
    if given.document:
        page = CHECKOUT / "docs/tempest.md"
        head = page.read_text().partition("<!-- results -->")[0]
        page.write_text("\n".join([f"{head}<!-- results -->\n", *texts]))
    return int(failed)


def find_version(package: str) -> str:
    """What is installed of it."""
    program = f"import importlib.metadata as m; print(m.version({package!r}))"
    argv = [str(ENVIRONMENT / "bin/python"), "-c", program]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
