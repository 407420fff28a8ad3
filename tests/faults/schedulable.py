"""Watches one host come up, from the cluster's network; prints the seconds from its service's first report until a
server could be placed there: Nova lists its hypervisor, and Placement has its processors.

usage: schedulable.py HOST <{"auth_url", "address", "password"} as JSON
"""

from __future__ import annotations

import json
import sys
import time
from urllib.error import HTTPError

from api import observe

POLL = 0.2  # seconds
PATIENCE = 600.0  # seconds


def main(host: str) -> None:
    given = json.load(sys.stdin)
    token = observe.get_token(given["auth_url"], "admin", given["password"], "admin")
    compute, placement = (f"http://{given['address']}:{port}" for port in ("8774/v2.1", "8778"))

    def is_up() -> bool:
        path = f"{compute}/os-services?binary=nova-compute&host={host}"
        return any(item["updated_at"] for item in observe.fetch_list(path, "services", token))

    def is_schedulable() -> bool:
        listed = observe.fetch_list(f"{compute}/os-hypervisors/detail", "hypervisors", token)
        if host not in [item["service"]["host"] for item in listed]:
            return False
        (provider,) = observe.fetch_list(f"{placement}/resource_providers?name={host}", "resource_providers", token)
        inventory = observe.fetch(f"{placement}/resource_providers/{provider['uuid']}/inventories", token)[1]
        return "VCPU" in inventory["inventories"]

    deadline = time.monotonic() + PATIENCE
    moments = []
    for look in (is_up, is_schedulable):
        while True:
            try:
                if look():
                    break
            except (HTTPError, ValueError):  # nothing there yet
                pass
            if time.monotonic() > deadline:
                sys.exit(f"{host} was not there after {PATIENCE:.0f} s")
            time.sleep(POLL)
        moments.append(time.monotonic())
    print(moments[1] - moments[0])


if __name__ == "__main__":
    main(sys.argv[1])
