"""Makes flavors at Nova's API, one after the other, and prints the name of each that the API acknowledged.

usage: writer.py <{"auth_url", "compute_url", "password"} as JSON     (until it is ended)
"""

from __future__ import annotations

import json
import sys
import time

from api import observe

PAUSE = 0.5  # seconds
PATIENCE = 10.0  # seconds for one request; what was not acknowledged by then counts as not made


def main() -> None:
    given = json.load(sys.stdin)
    begun, number, token = time.time_ns(), 0, ""
    while True:
        time.sleep(PAUSE)
        try:
            token = token or observe.get_token(given["auth_url"], "admin", given["password"], "admin")
            number += 1
            flavor = {"name": f"kept-{begun}-{number}", "ram": 64, "vcpus": 1, "disk": 0}
            observe.fetch(given["compute_url"] + "/flavors", token, {"flavor": flavor}, PATIENCE)
        except (OSError, ValueError):
            token = ""
        else:
            print(flavor["name"], flush=True)


if __name__ == "__main__":
    main()
