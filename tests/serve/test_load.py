"""A thousand nodes report at once: nothing is lost, and who watches sees each of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from conftest import MakeSite

from imagegen.server.fleet import node_rows

NODES = 1000
DOCUMENTS = 10
SECONDS = 600.0


def test_a_thousand_nodes_are_heard(make_site: MakeSite) -> None:
    """Every post is taken while the page asks once a second, and the last word of each node is what is shown."""
    site = make_site(NODES - 1)
    with site.serve() as at_work:
        load = Path(__file__).with_name("load.py")
        words = [sys.executable, str(load), at_work.url, str(NODES), str(DOCUMENTS)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=True)
        told = at_work.ledger.read()
    result = json.loads(done.stdout)
    print(result)
    assert result["answers"] == {"HTTP/1.1 204 No Content": NODES * DOCUMENTS} and result["polls"]
    rows = node_rows(told, site.place / "out")
    assert len(rows) == NODES and {row["state"] for row in rows} == {"ready"}
    assert {len(node["timeline"]) for node in told["nodes"]} == {DOCUMENTS}
    assert told["reports"] == []
