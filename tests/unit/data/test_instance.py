"""data/instance.py: guests on a cloud that is in memory, under a clock that moves when somebody sleeps."""

from __future__ import annotations

import ast
import json
import os
import signal
from base64 import b64encode
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from fakes.cloud import KEYSTONE, Clock, Cloud, Refusal

from imagegen.base.resources import PACKAGE
from imagegen.data import instance

PASSWORD = "Canary-p@ss/w:r%d\"$'"
HOSTS = ("linux-node2", "linux-node3")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OF_EACH = ("active", "address", "metadata", "console", "reach")


class Killed(BaseException):
    """Ends a run without any clean-up: whatever it asks from then on, nobody hears."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """The module's clock; the signals' handlers are those of before afterwards."""
    clock, before = Clock(), {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(instance, "time", clock)
    yield clock
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def cloud(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A cloud of two computes."""
    cloud = Cloud(clock, HOSTS, PASSWORD)
    monkeypatch.setattr(instance, "OPENER", cloud)
    return cloud


Rows = list[dict[str, Any]]
Run = Callable[..., tuple[int, Rows]]


@pytest.fixture
def run(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs main() on the hosts; returns its exit code and every step that ended. No password is printed, ever."""

    def run(*hosts: str, **changes: Any) -> tuple[int, Rows]:
        request = {
            "auth_url": KEYSTONE,
            "region": "RegionOne",
            "user": "admin",
            "password": PASSWORD,
            "project": "admin",
            "domain": "Default",
            "timeout": 30.0,
            "run": "this-run",
            "hosts": list(hosts),
            **{part: b64encode(part.encode()).decode() for part in ("kernel", "ramdisk", "disk")},
        }
        code: Any = 0
        capsys.readouterr()  # of a run that was killed
        try:
            instance.main(request | changes)
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        assert PASSWORD not in out + err and "secret" not in out + err
        rows = [json.loads(line) for line in out.splitlines()]
        assert all(set(row) == {"node", "step", "state", "detail", "seconds"} for row in rows)
        return code, [row for row in rows if row["state"] != "working"]

    return run


def states(rows: Rows) -> list[tuple[str, str, str]]:
    return [(row["node"], row["step"], row["state"]) for row in rows]


def failures(rows: Rows) -> list[tuple[str, str]]:
    return [(row["step"], row["detail"]) for row in rows if row["state"] == "failed"]


def test_two_computes_reach_one_another(cloud: Cloud, run: Run) -> None:
    """Every step in its order, each guest on its host with the other one as its peer; nothing is left."""
    code, rows = run(*HOSTS)
    assert code == 0
    first, last = [("", step, "done") for step in ("project", "image", "network", "flavor")], [("", "removed", "done")]
    assert states(rows) == [
        *first,
        *((host, "request", "done") for host in HOSTS),
        *((host, step, "done") for host in HOSTS for step in OF_EACH[:-1]),
        *((host, "reach", "done") for host in HOSTS),
        *last,
    ]
    said = {(row["node"], row["step"]): row["detail"] for row in rows}
    addresses = [said[host, "address"] for host in HOSTS]
    assert len(set(addresses)) == 2
    assert [said[host, "reach"] for host in HOSTS] == addresses[::-1]
    assert said["", "network"] == "MTU 1442"
    assert cloud.left() == []
    active = next(row for row in rows if row["step"] == "active")
    assert active["seconds"] == 2.0
    assert cloud.pages == ["http://192.168.56.11:6080/vnc_auto.html"] * 2


def test_one_compute_looks_for_itself(cloud: Cloud, run: Run) -> None:
    code, rows = run(HOSTS[0])
    said = {row["step"]: row["detail"] for row in rows}
    assert code == 0 and said["reach"] == said["address"]
    assert cloud.left() == []


def test_glance_gets_the_three_parts(cloud: Cloud, run: Run) -> None:
    """The disk's image names kernel and ramdisk, and what Nova boots them with."""
    seen: dict[str, Any] = {}

    def look(asked: str) -> None:
        if asked.startswith("POST") and asked.endswith("/servers"):
            seen.update({row["name"]: dict(row) for row in cloud.things["images"].values()})

    cloud.after = look
    assert run(*HOSTS)[0] == 0
    disk = seen["imagegen-verify-disk"]
    assert [disk["kernel_id"], disk["ramdisk_id"]] == [
        seen[f"imagegen-verify-{part}"]["id"] for part in ("kernel", "ramdisk")
    ]
    assert [seen[f"imagegen-verify-{part}"]["data"] for part in ("kernel", "ramdisk", "disk")] == [
        b"kernel",
        b"ramdisk",
        b"disk",
    ]
    assert "console=ttyS0" in disk["os_command_line"] and disk["visibility"] == "private"


@pytest.mark.parametrize(
    ("says", "step", "detail"),
    [
        ({"address": "10.254.9.9"}, "address", "DHCP gave 10.254.9.9, but the port has 10.254.0."),
        ({"metadata": "somebody"}, "metadata", "the metadata are of somebody, not of the guest servers-"),
        ({"reached": "10.254.9.9"}, "reach", "the guest reached 10.254.9.9, not 10.254.0."),
    ],
)
def test_what_a_guest_says_is_checked(cloud: Cloud, run: Run, says: dict[str, str], step: str, detail: str) -> None:
    """Its address, whose metadata it reads, and whom it reaches."""
    cloud.wrong[HOSTS[1]] = says
    code, rows = run(*HOSTS)
    assert code == 1
    ((failed, said),) = failures(rows)
    assert (failed, said[: len(detail)]) == (step, detail)
    assert rows[-1]["step"] == "removed" and cloud.left() == []


def test_an_address_that_nova_does_not_tell_is_a_fault(cloud: Cloud, run: Run) -> None:
    """The guest has it and Neutron gave it, but who asks for the server is told of none."""
    cloud.without_addresses.add(HOSTS[1])
    code, rows = run(*HOSTS)
    assert code == 1
    ((failed, said),) = failures(rows)
    assert failed == "address" and " among the guest's addresses in Nova did not come within" in said
    assert cloud.left() == []


def test_a_guest_in_error_says_why(cloud: Cloud, run: Run) -> None:
    cloud.faults[HOSTS[0]] = "No valid host was found."
    code, rows = run(*HOSTS)
    assert code == 1
    assert failures(rows) == [("active", "the guest is in ERROR: No valid host was found.")]
    assert cloud.left() == []


def test_a_guest_that_somebody_deletes_is_said(cloud: Cloud, clock: Clock, run: Run) -> None:
    clock.later(1, lambda: [row.update(ended=0.0) for row in cloud.things["servers"].values()] and None)
    code, rows = run(*HOSTS)
    assert (code, failures(rows)) == (1, [("active", "somebody has deleted the guest")])
    assert cloud.left() == []


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "Connection refused"), TimeoutError("timed out")])
def test_a_console_that_does_not_answer_is_said(cloud: Cloud, run: Run, error: Exception) -> None:
    """Where it is, without the token that opens it."""
    cloud.console_error = error
    code, rows = run(*HOSTS)
    assert code == 1
    ((step, said),) = failures(rows)
    assert step == "console" and said.startswith("http://192.168.56.11:6080/vnc_auto.html: ")
    assert cloud.left() == []


@pytest.mark.parametrize(
    ("silent", "ends"),
    [("address", "Linux version 6.12 | IMAGEGEN metadata servers-"), ("metadata", " | IMAGEGEN address 10.254.0.")],
)
def test_a_silent_guest_shows_the_end_of_its_console(cloud: Cloud, run: Run, silent: str, ends: str) -> None:
    """After the time that it was given, which is for each step."""
    cloud.wrong[HOSTS[0]] = {silent: ""}
    code, rows = run(*HOSTS)
    assert code == 1
    ((step, said),) = failures(rows)
    assert step == silent
    assert said.startswith(f"the guest's word `{silent}` did not come within 30 seconds; its console ends with: ")
    assert ends in said and "\r" not in said
    row = next(row for row in rows if row["state"] == "failed")
    assert 30 <= row["seconds"] < 33
    assert cloud.left() == []


@pytest.mark.parametrize("kind", ["network", "image", "compute"])
def test_an_api_that_is_not_in_the_catalogue_is_said(cloud: Cloud, run: Run, kind: str) -> None:
    del cloud.catalog[kind]
    code, rows = run(*HOSTS)
    assert code == 1
    said = failures(rows)
    assert said[0][1] == f"Keystone's catalogue has no public endpoint of type {kind} in RegionOne"
    assert cloud.left() == [] or kind == "compute"  # Nova alone knows whether there are guests


def test_a_region_without_apis_is_said(run: Run) -> None:
    code, rows = run(*HOSTS, region="RegionNine")
    assert code == 1
    assert ("image", "Keystone's catalogue has no public endpoint of type image in RegionNine") in failures(rows)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"password": "wrong"}, f"POST {KEYSTONE}/auth/tokens answers 401: The request you have made requires auth"),
        ({"project": "nobodys"}, f"POST {KEYSTONE}/auth/tokens answers 401: no role there"),
    ],
)
def test_a_login_that_is_refused_is_a_sentence(run: Run, changes: dict[str, str], said: str) -> None:
    """Without the page's tags and without what was sent."""
    code, rows = run(*HOSTS, **changes)
    assert (code, states(rows)) == (1, [("", "login", "failed")])
    assert rows[0]["detail"].startswith(said) and "<" not in rows[0]["detail"]


def refuse(cloud: Cloud, start: str, code: int, text: str) -> None:
    """The next such request is refused."""

    def before(asked: str) -> None:
        if asked.startswith(start):
            cloud.before = lambda asked: None
            raise Refusal(code, text)

    cloud.before = before


def test_a_wrong_address_of_keystone_is_a_sentence(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """404 is what a web server says that is no Keystone."""

    def not_found(*_: Any) -> Any:
        raise Refusal(404, "Not Found")

    monkeypatch.setattr(cloud, "_log_in", not_found)
    code, rows = run(*HOSTS)
    assert (code, failures(rows)) == (1, [("login", f"there is no Keystone at {KEYSTONE}")])


@pytest.mark.parametrize(
    "kind", ["image/v2/images", "network/v2.0/networks", "network/v2.0/ports", "compute/flavors", "compute/servers"]
)
def test_a_conflict_is_a_sentence(cloud: Cloud, run: Run, kind: str) -> None:
    """As the API puts it; what was made until then is removed."""
    service, _, path = kind.partition("/")
    url = f"{cloud.catalog[service].rstrip('/')}/{path}"
    refuse(cloud, f"POST {url}", 409, "Quota exceeded")
    code, rows = run(*HOSTS)
    assert code == 1
    assert [detail for _, detail in failures(rows)] == [f"POST {url} answers 409: Quota exceeded"]
    assert cloud.left() == []


# What is left, and whose it is.


def count_requests(cloud: Cloud, run: Run) -> int:
    """How many requests a whole run of one host makes."""
    assert run(HOSTS[0])[0] == 0
    count = len(cloud.asked)
    assert count > 40
    return count


def at_request(cloud: Cloud, number: int, happen: Callable[[], None]) -> None:
    """After that many further requests have been answered, something happens before the answer comes back."""
    begun = len(cloud.asked)

    def after(asked: str) -> None:
        if len(cloud.asked) - begun == number:
            happen()

    cloud.after = after


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_run_leaves_nothing(cloud: Cloud, clock: Clock, run: Run, number: int) -> None:
    """Ctrl-C and what ends a session, wherever the run is; a second signal does not stop the clean-up."""
    count = count_requests(cloud, run)
    for place in range(2, count, 3 if number == signal.SIGINT else 15):
        at_request(cloud, place, lambda: os.kill(os.getpid(), number))
        code, rows = run(HOSTS[0])
        assert (code, cloud.left()) in ((130, []), (0, []))
        assert code == 0 or failures(rows) == []
        at_request(cloud, place, lambda: [os.kill(os.getpid(), number) for _ in range(2)] and None)
        assert (run(HOSTS[0])[0] in (0, 130), cloud.left()) == (True, [])


@pytest.mark.parametrize("pause", [0.0, 3600.0])
def test_what_a_killed_run_left_is_removed_by_the_next(cloud: Cloud, clock: Clock, run: Run, pause: float) -> None:
    """Wherever it was killed; a run that shows no sign of life for a minute is none."""
    count = count_requests(cloud, run)

    def kill() -> None:
        def refuse(asked: str) -> None:
            raise Killed

        cloud.before = refuse
        raise Killed

    for place in range(2, count, 1 if pause else 11):
        at_request(cloud, place, kill)
        with pytest.raises(Killed):
            run(HOSTS[0])
        cloud.before = cloud.after = lambda asked: None
        clock.now += pause
        left, begun = cloud.left(), clock.now
        code, rows = run(HOSTS[0], run="next-run")
        assert (code, cloud.left(), failures(rows)) == (0, [], [])
        assert not left or rows[0]["detail"] == "after removing what an earlier run left"
        assert clock.now - begun < (30 if pause else 100)


def test_a_request_that_fails_is_said_and_nothing_stays(cloud: Cloud, clock: Clock, run: Run) -> None:
    """Whichever it is: exit code 1 with a sentence, and the next run finds nothing of this one or removes it."""
    count = count_requests(cloud, run)
    for place in range(1, count + 1):
        begun = len(cloud.asked)

        def before(asked: str, begun: int = begun, place: int = place) -> None:
            if len(cloud.asked) - begun == place:
                raise Refusal(503, "Service Unavailable")

        cloud.before = before
        code, rows = run(HOSTS[0])
        assert code == 1
        assert [said for _, said in failures(rows) if "answers 503: Service Unavailable" in said]
        cloud.before = lambda asked: None
        clock.now += 100
        assert run(HOSTS[0], run="next-run")[0] == 0
        assert cloud.left() == []


@pytest.fixture
def other_run(cloud: Cloud, clock: Clock) -> Callable[[], None]:
    """Somebody else's run, at work in the project: it has a network there and gives a sign of life every 10 s."""
    project = {"id": "p-other", "name": instance.NAME, "description": ""}
    cloud.projects["p-other"] = project
    cloud.granted.add("p-other")
    cloud.add("networks", "p-other", mtu=1442)

    def beat() -> None:
        project["description"] = f"made by imagegen verify, run other-run, at work at {clock.now:.0f}"
        clock.later(10, beat)

    beat()
    return beat


@pytest.mark.usefixtures("other_run")
def test_a_run_at_work_is_left_alone(cloud: Cloud, run: Run) -> None:
    left = cloud.left()
    code, rows = run(*HOSTS)
    assert (code, states(rows)) == (1, [("", "project", "failed")])
    assert rows[0]["detail"] == "another run is at work in the project imagegen-verify: wait for its end"
    assert cloud.left() == left and [asked for asked in cloud.asked if asked.startswith("DELETE")] == []


@pytest.mark.usefixtures("other_run")
def test_who_waits_for_another_run_and_is_interrupted_removes_nothing(cloud: Cloud, clock: Clock, run: Run) -> None:
    """Neither by itself nor by the removal that follows an interruption."""
    left = cloud.left()
    clock.later(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    code, rows = run(*HOSTS)
    assert (code, failures(rows)) == (130, [])
    assert run() == (0, [])
    assert cloud.left() == left and [asked for asked in cloud.asked if asked.startswith("DELETE")] == []


def test_a_cut_off_run_is_removed_by_its_own_word(cloud: Cloud, run: Run) -> None:
    """With no hosts: what this run made is removed, at once, and what another made is not."""

    def refuse_all(asked: str) -> None:
        raise Killed

    at_request(cloud, 25, lambda: refuse_all(""))
    cloud.before = lambda asked: refuse_all(asked) if len(cloud.asked) > 25 else None
    with pytest.raises(Killed):
        run(*HOSTS)
    cloud.before = cloud.after = lambda asked: None
    left = cloud.left()
    assert len(left) > 3
    assert run(run="another-run") == (0, [])
    assert cloud.left() == left
    assert run() == (0, [])
    assert cloud.left() == []


def test_a_new_project_shows_a_sign_of_life_at_once(cloud: Cloud, clock: Clock, run: Run) -> None:
    """Else a second run that looks at it in that moment would take it for left behind. It goes on while it waits."""
    seen: list[str] = []

    def look(asked: str) -> None:
        seen.extend(one["description"] for one in cloud.projects.values() if one["name"] == instance.NAME)

    cloud.after = look
    cloud.wrong[HOSTS[0]] = {"address": ""}  # so that it waits long
    assert run(*HOSTS)[0] == 1
    beats = [int(said.rpartition(" at ")[2]) for said in seen]
    assert beats[0] == 1_700_000_000 and len(set(beats)) > 1
    # Each within the time after which others take it for dead.
    assert max(later - earlier for earlier, later in pairwise(beats)) < instance.BEAT


def test_a_lost_race_for_the_project_is_a_sentence(cloud: Cloud, run: Run) -> None:
    """Two that begin in the same moment: one of them has it."""
    refuse(cloud, f"POST {KEYSTONE}/projects", 409, "Conflict occurred attempting to store project")
    code, rows = run(*HOSTS)
    assert code == 1
    assert failures(rows)[0] == (
        "project",
        f"POST {KEYSTONE}/projects answers 409: Conflict occurred attempting to store project",
    )


def test_it_is_text_for_any_python_of_a_node() -> None:
    """It is sent to a node's own python3: the standard library, and no syntax newer than Python 3.9."""
    tree = ast.parse((PACKAGE / "data/instance.py").read_text(), feature_version=(3, 9))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imported and not [node for node in imported if "imagegen" in ast.dump(node)]
