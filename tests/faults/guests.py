"""Boots a guest on each of the hosts, waits until each has reached the next one, and leaves them running; or does what
only a client of the cloud can do. Prints one JSON document.

usage: guests.py boot | upload | state <{"auth_url", "region", "password", "hosts", ...} as JSON
"""

from __future__ import annotations

import json
import sys
from typing import Any

from api import instance

instance.say = lambda *_: None


def boot(test: Any) -> dict[str, str]:
    """Host -> the id of the guest that runs there; what was there before is removed."""
    test.take_project()
    image, ports, flavor = test.upload_images(), test.make_network(), test.make_flavor()
    addresses = [port["fixed_ips"][0]["ip_address"] for port in ports]
    peers = [*addresses[1:], addresses[0]]
    servers = {
        host: test.boot(host, image, flavor, port, peer)
        for host, port, peer in zip(test.hosts, ports, peers, strict=True)
    }
    for server in servers.values():
        test.wait("ACTIVE", lambda server=server: test.see_active(server))
    for server in servers.values():
        test.hear(server, "reached")
    return servers


def upload(test: Any) -> str:
    """What Glance says to an image of so many MiB; empty: it took it. The image is removed again."""
    body = {"name": "filling", "disk_format": "raw", "container_format": "bare"}
    image = test.admin.ask("POST", "image", "/images", body)["id"]
    try:
        data = bytes(test.request["mib"] << 20)
        test.admin.ask("PUT", "image", f"/images/{image}/file", data, "application/octet-stream")
    except instance.Failed as error:
        return str(error)
    finally:
        test.admin.ask("DELETE", "image", f"/images/{image}")
    return ""


def state(test: Any) -> dict[str, str]:
    """Guest -> its state."""
    found = test.admin.ask("GET", "compute", "/servers/detail?all_tenants=1")["servers"]
    return {server["id"]: server["status"] for server in found}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    try:
        print(json.dumps(globals()[sys.argv[1]](instance.Test(given))))
    except instance.Failed as error:
        sys.exit(str(error))
