"""The status page in a real browser: what it shows, in what order, and that nothing a node says becomes markup."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeSite
from test_serving import SECONDS, fetch, plan_of

from imagegen.evidence import Reason
from imagegen.provisioning import Provisioning

# Without the rest it tries to reach its maker's hosts, or has no use here.
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
WAIT = 4000  # milliseconds of the page's own time: the first answer, and the polls after it

Browse = Callable[..., str]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """The page's document after a few polls, as the browser has it."""

    def look(url: str, *options: str) -> str:
        profile = tmp_path / "profile"
        argv = ["chromium", *OPTIONS, f"--user-data-dir={profile}", f"--virtual-time-budget={WAIT}", *options, url]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=4 * SECONDS)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return look


def post(at_work: Provisioning, name: str, state: str, step: str, detail: str = "") -> None:
    document = {
        "version": 1, "node": name, "role": "controller" if name == "ctl" else "compute", "state": state,
        "step": step, "detail": detail, "since": "2026-01-01T00:00:00Z", "steps": [],
    }  # fmt: skip
    assert fetch(f"{at_work.url}/status", json.dumps(document).encode())[0] == 204


def read_rows(page: str) -> list[tuple[str, str, str]]:
    """(node, state, text) of each row, from the top."""
    rows = re.findall(r"<tr\b([^>]*\bdata-node=[^>]*)>(.*?)</tr>", page, re.S)
    found = []
    for attributes, inner in rows:
        words = dict(re.findall(r'data-(node|state)="([^"]*)"', attributes))
        found.append((words["node"], words["state"], html.unescape(re.sub(r"<[^>]*>", " ", inner))))
    return found


def test_the_page_shows_every_node_failed_ones_first(make_site: MakeSite, browse: Browse, tmp_path: Path) -> None:
    """With reasons, what is waited for, a timeline, and what was refused; and markup of a node is text."""
    site = make_site(5)
    with site.serve() as at_work:
        plan_of(at_work, "c-5")
        post(at_work, "c-5", "working", "image", "120 of 462 MiB (25 %)")
        post(at_work, "ctl", "waiting", "database", "for mariadb.service to be up")
        post(at_work, "c-1", "ready", "", "")
        post(at_work, "c-2", "failed", "disk", "there are 2 disks: /dev/sda, /dev/sdb. Name one of them")
        post(at_work, "c-3", "failed", "role", MARKUP)
        at_work.ledger.refuse("c-1", Reason.GIVEN, "10.77.1.9", "a second claim of the seed of c-1 <b>bold</b>")
        page = browse(f"{at_work.url}/", "--dump-dom")
        browse(f"{at_work.url}/", f"--screenshot={tmp_path / 'page.png'}", "--window-size=1280,800")
    rows = read_rows(page)
    assert [(node, state) for node, state, _ in rows] == [
        ("c-2", "failed"), ("c-3", "failed"), ("ctl", "waiting"), ("c-5", "working"), ("c-4", ""), ("c-1", "ready"),
    ]  # fmt: skip
    text = {node: words for node, _, words in rows}
    assert "there are 2 disks: /dev/sda, /dev/sdb" in text["c-2"] and "disk" in text["c-2"]
    assert "for mariadb.service to be up" in text["ctl"] and "222222222222" in text["c-5"]
    assert "120 of 462 MiB" in text["c-5"]
    assert MARKUP in text["c-3"] and "<title>owned" not in page and "<img src" not in page
    assert "a second claim of the seed of c-1 <b>bold</b>" in html.unescape(page) and "<b>bold" not in page
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_the_page_follows_what_happens(make_site: MakeSite, browse: Browse) -> None:
    """A page that was open before a node reported shows it: the revision in the document is a later one."""
    site = make_site(1)
    with site.serve() as at_work:
        before = at_work.ledger.read()["revision"]
        page = browse(f"{at_work.url}/", "--dump-dom")
        shown = re.search(r'data-revision="(\d+)"', page)
        assert shown and int(shown[1]) == before
        post(at_work, "c-1", "ready", "")
        page = browse(f"{at_work.url}/", "--dump-dom")
    assert [row[:2] for row in read_rows(page)] == [("ctl", ""), ("c-1", "ready")]
