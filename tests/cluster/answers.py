"""What the real clients and the daemons' own configuration code answer about the running cluster, each asked once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deployment import Deployment, RunningNode

from imagegen.local.verify import parse_table

PLACEMENT = {
    "versions": ("placement", "/"),
    "providers": ("placement", "/resource_providers"),
    "candidates": ("placement", "/allocation_candidates?resources=VCPU:1"),
}
CONTROLLER_DAEMONS = ["nova-api", "nova-api-metadata", "nova-conductor", "nova-scheduler", "nova-novncproxy"]

# Starts a program with the environment that stdin names: a password is in no argument, not even of env(1).
WITH_ENVIRONMENT = "import json, os, sys; os.execvpe(sys.argv[1], sys.argv[1:], {**os.environ, **json.load(sys.stdin)})"


@dataclass(frozen=True)
class Answers:
    """What the slow commands said. A name waits for its command, and fails as it failed."""

    futures: dict[str, Future[Any]]

    def __getitem__(self, name: str) -> Any:
        return self.futures[name].result()


def ask_openstack(deployment: Deployment, *words: str) -> Any:
    """The JSON answer of the `openstack` client on the controller, as the administrator."""
    environment = {
        "OS_AUTH_URL": deployment.cluster.services.auth_url,
        "OS_USERNAME": "admin",
        "OS_PASSWORD": deployment.secrets["identity_admin"],
        "OS_PROJECT_NAME": "admin",
        "OS_USER_DOMAIN_NAME": "Default",
        "OS_PROJECT_DOMAIN_NAME": "Default",
        "OS_REGION_NAME": deployment.cluster.region,
        "OS_IDENTITY_API_VERSION": "3",
    }
    argv = ("python3", "-c", WITH_ENVIRONMENT, "openstack", *words, "-f", "json")
    return deployment.controller.ask_json(*argv, input=json.dumps(environment))


def list_questions(deployment: Deployment) -> dict[str, Callable[[], Any]]:
    """Every question by its name."""
    control = deployment.controller

    def manage(*words: str) -> Callable[[], str]:
        return lambda: control.ask_as("nova", "nova-manage", *words)

    def table(*words: str) -> Callable[[], list[dict[str, Any]]]:
        return lambda: parse_table(manage("cell_v2", *words)())

    def client(*words: str) -> Callable[[], Any]:
        return lambda: ask_openstack(deployment, *words)

    def options(node: RunningNode, project: str, units: list[str]) -> Callable[[], Any]:
        return lambda: node.probe("options", project, read_environments(node, units), user=project)

    return {
        "cells": table("list_cells", "--verbose"),
        "hosts": table("list_hosts"),
        "api version": manage("api_db", "version"),
        "main version": manage("db", "version"),
        "compute services": client("compute", "service", "list"),
        "hypervisors": client("hypervisor", "list", "--long"),
        "services": client("service", "list"),
        "endpoints": client("endpoint", "list"),
        "placement": lambda: deployment.ask_apis(PLACEMENT),
        "database": lambda: control.probe("database"),
        "schemas": lambda: control.probe("schemas", user="nova"),
        "options of nova": options(control, "nova", CONTROLLER_DAEMONS),
        "options of oost": options(control, "nova", ["nova-conductor@oost", "nova-novncproxy@oost"]),
        "options of keystone": options(control, "keystone", ["keystone"]),
        "options of placement": options(control, "placement", ["placement-api"]),
        **{f"options on {node.name}": options(node, "nova", ["nova-compute"]) for node in deployment.computes},
    }


def read_environments(node: RunningNode, units: list[str]) -> dict[str, str]:
    """Unit -> the environment of its main process, as the kernel gives it to root: NAME=VALUE, each ended by a NUL."""
    read = 'cat "/proc/$(systemctl show "$1" --property=MainPID --value)/environ"'
    return {unit: node.ask("sh", "-c", read, "sh", unit) for unit in units}


@contextmanager
def ask_everything(deployment: Deployment) -> Iterator[Answers]:
    """Asks two at a time, from now on."""
    with ThreadPoolExecutor(2) as pool:
        try:
            yield Answers({name: pool.submit(ask) for name, ask in list_questions(deployment).items()})
        finally:
            pool.shutdown(cancel_futures=True)
