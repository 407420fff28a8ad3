"""The status page in a real browser: what it shows, in what order, and that nothing a node says becomes markup."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeSite
from test_serving import SECONDS, fetch, plan_of

from imagegen.server import app
from imagegen.server.evidence import Reason
from imagegen.server.ledger import READY_BEAT
from imagegen.server.provisioning import Provisioning

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


def is_shown(page: str, node: str) -> bool:
    """Whether the node's row is there for the eye."""
    found = re.search(rf'<tr\b[^>]*data-node="{node}"[^>]*>', page)
    assert found
    return not re.search(r"\bhidden\b", found[0])


def let_time_pass(at_work: Provisioning, name: str, seconds: float) -> None:
    """As if the node had said nothing for so long, to a server that listened all the time."""
    at_work.ledger._db.execute(
        "UPDATE node SET heard = heard - ?, began = began - ? WHERE name = ?", (seconds, seconds, name)
    )
    at_work.ledger._db.execute("UPDATE event SET at = at - ? WHERE node = ?", (seconds, name))
    at_work.ledger._db.execute("UPDATE listening SET since = 0")


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Has the page run a script of ours before its own, and another when it has drawn itself: a hand on the mouse."""

    def add(before: str, after: str) -> None:
        shutil.copytree(app.PAGE, tmp_path / "page")
        script = tmp_path / "page/page.js"
        script.write_text(f"{before}\n{script.read_text()}\nsetTimeout(() => {{ {after} }}, 1500);\n")
        monkeypatch.setattr(app, "PAGE", tmp_path / "page")

    return add


def test_the_page_shows_every_node_failed_ones_first(make_site: MakeSite, browse: Browse, tmp_path: Path) -> None:
    """With reasons, what is waited for, a timeline, and what was refused; and markup of a node is text."""
    site = make_site(5)
    with site.serve() as at_work:
        plan_of(at_work, "c-5")
        post(at_work, "c-5", "working", "image", "120 of 462 MiB (25 %)")
        post(at_work, "ctl", "waiting", "database", "for mariadb.service to be up")
        post(at_work, "c-1", "ready", "", "")
        post(at_work, "c-2", "failed", "disk", "there are 2 disks: /dev/sda, /dev/sdb. Select one with")
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


def test_the_page_says_lost_and_degraded(make_site: MakeSite, browse: Browse) -> None:
    """Lost: three reports did not come, whatever it did last. Degraded: ready, with the reason."""
    site = make_site(4)
    with site.serve() as at_work:
        post(at_work, "ctl", "ready", "")
        let_time_pass(at_work, "ctl", 2 * READY_BEAT)
        post(at_work, "c-1", "working", "image", "10 of 462 MiB")
        let_time_pass(at_work, "c-1", 600)
        post(at_work, "c-2", "ready", "", "degraded: nova-compute is deaf")
        post(at_work, "c-3", "failed", "disk", "no disk")
        let_time_pass(at_work, "c-3", 600)
        post(at_work, "c-4", "waiting", "wait-messaging", "the broker")
        page = browse(f"{at_work.url}/", "--dump-dom")
    rows = {node: (state, text) for node, state, text in read_rows(page)}
    assert [(node, state) for node, (state, _) in rows.items()] == [
        ("c-3", "failed"), ("c-1", "lost"), ("c-2", "degraded"), ("c-4", "waiting"), ("ctl", "ready"),
    ]  # fmt: skip
    assert "image" in rows["c-1"][1] and "10 min" in rows["c-1"][1]
    assert re.search(r"degraded\s+0:00\s+\d s\s+nova-compute is deaf", rows["c-2"][1])


def test_equal_failures_are_one_row_that_opens(
    make_site: MakeSite, browse: Browse, drive: Callable[[str, str], None]
) -> None:
    """Equal but for the node's own name; a node that failed for another reason stands for itself."""
    site = make_site(4)
    with site.serve() as at_work:
        for number in (1, 2, 3):
            post(at_work, f"c-{number}", "failed", "seed", f"the window of c-{number} is closed")
        post(at_work, "c-4", "failed", "disk", "no disk")
        page = browse(f"{at_work.url}/", "--dump-dom")
        found = browse(f"{at_work.url}/#filter=window+c-2", "--dump-dom")
        drive("", "document.querySelector('tr.group button').click()")
        opened = browse(f"{at_work.url}/", "--dump-dom")
    assert [node for node, _, _ in read_rows(page)] == ["c-1", "c-2", "c-3", "c-4", "ctl"]
    assert [is_shown(page, f"c-{number}") for number in (1, 2, 3, 4)] == [False, False, False, True]
    text = html.unescape(re.sub(r"<[^>]*>", " ", page))
    assert "3 nodes" in text and "the window of NODE is closed" in text and "c-1, c-2, c-3" in text
    assert all(is_shown(opened, f"c-{number}") for number in (1, 2, 3, 4))
    # One that alone fits the filter needs no group; the filter searches reasons.
    assert [is_shown(found, f"c-{number}") for number in (1, 2, 3, 4)] == [False, True, False, False]


def test_refusals_can_be_dismissed(make_site: MakeSite, browse: Browse, drive: Callable[[str, str], None]) -> None:
    """In this browser only, for good: the ledger keeps them. The same refusal that comes once more is news."""
    site = make_site(1)
    with site.serve() as at_work:
        at_work.ledger.refuse("c-1", Reason.CLOSED, "10.77.1.9", "an old claim")
        at_work.ledger.refuse("c-1", Reason.GIVEN, "10.77.1.9", "a claim again")
        before = json.dumps([json.dumps(report, separators=(",", ":")) for report in at_work.ledger.read()["reports"]])
        at_work.ledger.refuse("c-1", Reason.GIVEN, "10.77.1.9", "a claim again")
        look = "document.body.dataset.shown = document.querySelector('#reports ol').textContent"
        click = "document.querySelector('#dismiss').click()"
        keep = "document.body.dataset.kept = localStorage['imagegen.dismissed']"
        drive(f"localStorage['imagegen.dismissed'] = {json.dumps(before)};", f"{look}; {click}; {keep}")
        page = html.unescape(browse(f"{at_work.url}/", "--dump-dom"))
        assert len(at_work.ledger.read()["reports"]) == 2
    shown, kept = (re.search(rf'data-{name}="(.*?)"(?= data-| ?>)', page) for name in ("shown", "kept"))
    assert shown and "a claim again (2 times)" in shown[1] and "an old claim" not in shown[1]
    assert "No new refused requests" in page and "Show 2 dismissed" in page
    assert kept and "an old claim" in kept[1] and "a claim again (2 times)" in kept[1]


def test_a_boot_that_is_over_stands_still(
    make_site: MakeSite, browse: Browse, drive: Callable[[str, str], None]
) -> None:
    """Finished steps do not say `working`, and the clock of a node that failed stops."""
    site = make_site(1)
    with site.serve() as at_work:
        for state, step in (("working", "network"), ("waiting", "seed"), ("working", "disk"), ("failed", "disk")):
            post(at_work, "c-1", state, step, "no disk fits" if state == "failed" else "x")
        let_time_pass(at_work, "c-1", 100)
        at_work.ledger._db.execute("UPDATE node SET ended = ended - 95 WHERE name = 'c-1'")
        drive("", "document.querySelector('tr[data-node=c-1] button').click()")
        page = browse(f"{at_work.url}/", "--dump-dom")
    text = next(words for node, _, words in read_rows(page) if node == "c-1")
    assert re.search(r"failed\s+disk\s+0:05\s", text)
    assert re.search(r"network: [\d.]+ s, done\s+seed: [\d.]+ s, waited\s+disk: [\d.]+ s, worked", text)
    assert ", working" not in text and ", waiting" not in text
