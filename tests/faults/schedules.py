"""The fault matrix: what is done to a cluster, and when. Each row ends with a cluster that is right.

A schedule is a function of a Matrix, which gives it sites and dice and takes what happened.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from testbed import GUEST_SECONDS, WORK, Broken, Event, Testbed, make_secrets

from imagegen.inputs.secrets_file import Secrets

AWAY = 30.0  # seconds
STATE = "var/lib/imagegen-faults"
AGENT = "usr/lib/imagegen-faults/crashing_agent.py"
LEAST_KILLS = {"all": 60, "one": 20}
DATA = {"ctl": ("var/lib/mysql", "var/lib/rabbitmq"), "cpt": ()}
UNIT = f"""\
[Unit]
StartLimitIntervalSec=0

[Service]
ExecStart=
ExecStart=/usr/bin/python3 /{AGENT}
RestartSec=100ms
"""


class Matrix(Protocol):
    """What a schedule is given: its dice, its sites, and a place for what happened."""

    def open_site(self, controllers: int, computes: int, cells: Sequence[str] = ...) -> Testbed: ...
    def dice(self, key: str) -> random.Random: ...
    def wants(self, key: str) -> bool: ...
    def strike(self, key: str, site: Testbed, do: Callable[[], Outcome]) -> bool: ...


Outcome = tuple[int, str]
"""How many faults there were, and what happened."""


# faults as events


def away(site: Testbed, service: str, how: str, seconds: float) -> list[Event]:
    """A backing service is away for AWAY seconds: stopped (nothing answers its port) or frozen (it never answers)."""
    begin, end = {
        "stopped": (partial(site.stop_service, service), partial(site.unstop_service, service)),
        "frozen": (partial(site.freeze_service, service), partial(site.thaw_service, service)),
    }[how]
    begun: list[float] = []

    def strike() -> str | None:
        said = begin()
        if said:
            begun.append(site.seconds)
        return said

    def relent() -> str | None:
        return end() if begun and site.seconds >= begun[0] + AWAY else None

    return [Event(seconds, strike, faults=1), Event(seconds + AWAY, relent)]


def killed(site: Testbed, name: str, seconds: float, off: float) -> list[Event]:
    """A node loses power and is off for so long."""
    return [Event(seconds, partial(site.kill, name), faults=1), Event(seconds + off, partial(site.start, name))]


def holder_killed(site: Testbed, off: float) -> list[Event]:
    """The controller that works under the lease loses power; for so long, unless it hosts the database."""
    struck: list[tuple[str, float]] = []

    def strike() -> str | None:
        if site.ready(site.names):
            raise Broken("no holder of the lease was seen at work")
        for name in site.names:
            step = site.status(name).get("step")
            if step in ("placement-schema", "nova-api-schema", "cells", "nova-schema", "service-users"):
                struck.append((name, site.seconds + (0 if name == "ctl-1" else off)))
                return site.kill(name) + ", which held the lease"
        return None

    def start() -> str | None:
        return site.start(struck[0][0]) if struck and site.seconds >= struck[0][1] else None

    return [Event(0, strike, faults=1), Event(0, start)]


# bring-ups under faults


def bring_up(
    matrix: Matrix,
    key: str,
    controllers: int,
    plan: Callable[[Testbed, random.Random], list[Event]],
    then: Sequence[str] = (),
) -> None:
    """All controllers start within the same second; `plan` adds the faults and, unless it starts them, two computes.

    `then`: faults that the ready cluster bears afterwards.
    """
    if not matrix.wants(key):
        return
    with matrix.open_site(controllers, 2) as site:
        events = plan(site, matrix.dice(key))
        later = {name for event in events for name in event.starts}
        site.start(*(name for name in site.names if name not in later))
        faults = 1 + sum(event.faults for event in events)
        if matrix.strike(key, site, lambda: (faults, "; ".join(site.pass_through(events)))):
            trouble(matrix, site, list(then))


def list_bring_ups() -> dict[str, Callable[[Matrix], None]]:
    """Key -> schedule: six times two, and five times three controllers at once, each under a fault of its own."""

    def start_early(site: Testbed, dice: random.Random) -> list[Event]:
        controllers = [name for name in site.names if name.startswith("ctl")]
        seconds = dice.uniform(25, 40)
        return [
            Event(seconds, partial(site.start, *controllers), faults=1, starts=tuple(controllers)),
            *killed(site, "cpt-1", dice.uniform(10, 60), dice.uniform(0, 5)),
        ]

    def start_late(site: Testbed, dice: random.Random) -> list[Event]:
        rest = [name for name in site.names if name != "cpt-2"]

        def ready_since() -> str | None:
            if not site.ready(rest):
                since.clear()
                return None
            since.append(site.seconds)
            return site.start("cpt-2") if site.seconds >= since[0] + 60 else None

        since: list[float] = []
        return [Event(0, ready_since, faults=1, starts=("cpt-2",))]

    plans: dict[int, list[Callable[[Testbed, random.Random], list[Event]]]] = {
        2: [
            lambda site, dice: away(site, "database", "stopped", dice.uniform(5, 45)),
            lambda site, dice: away(site, "messaging", "frozen", dice.uniform(5, 45)),
            lambda site, dice: away(site, "identity", "stopped", dice.uniform(15, 50)),
            lambda site, dice: killed(site, "ctl-1", dice.uniform(5, 50), dice.uniform(0, 10)),
            start_early,
            lambda site, dice: holder_killed(site, 60.0),
        ],
        3: [
            lambda site, dice: holder_killed(site, 90.0),
            lambda site, dice: away(site, "database", "frozen", dice.uniform(10, 50)),
            lambda site, dice: [
                *killed(site, dice.choice(["ctl-1", "ctl-2"]), dice.uniform(5, 50), dice.uniform(0, 10)),
                *killed(site, dice.choice(["ctl-3", "cpt-1", "cpt-2"]), dice.uniform(5, 70), dice.uniform(0, 10)),
            ],
            lambda site, dice: [
                *away(site, "identity", "frozen", dice.uniform(20, 50)),
                *away(site, "messaging", "stopped", dice.uniform(10, 60)),
            ],
            start_late,
        ],
    }
    return {
        f"{count} controllers at once, {number}": partial(
            bring_up, key=f"{count} controllers at once, {number}", controllers=count, plan=plan
        )
        for count, each in plans.items()
        for number, plan in enumerate(each, 1)
    }


def fill_at_first_boot(matrix: Matrix) -> None:
    """/var has little room while the schemas are made; somebody makes room when the node has noticed."""
    key = "/var full at a controller's first boot"
    if not matrix.wants(key):
        return
    with matrix.open_site(1, 1) as site:
        site.shrink("ctl-1", 20)
        site.start(*site.names)

        def suffer() -> Outcome:
            site.wait("ctl-1 to suffer from a full /var", lambda: no_room(site, "ctl-1"), 300)
            said = f"{site.describe_all()}; {full_disk_finding(site, 'ctl-1')}"
            site.grow("ctl-1")
            site.wait_ready()
            return 1, said

        matrix.strike(key, site, suffer)


def no_room(site: Testbed, name: str) -> bool:
    """Whether the node's /var is full, and its agent past its first steps."""
    if site.machines[name].leader() is None or not site.status(name):
        return False
    done = site.machines[name].execute(["df", "--output=avail", "--block-size=1M", "/var"])
    words = done.stdout.split()
    return done.returncode == 0 and int(words[-1]) < 2 and len(site.status(name).get("steps", [])) > 5


def full_disk_finding(site: Testbed, name: str, place: str = "/var") -> str:
    """What the doctor says of the full disk."""
    done = site.machines[name].execute(["imagegen-node", "doctor", "--json"], timeout=240)
    found = [finding["what"] for finding in json.loads(done.stdout)["findings"]]
    full = [what for what in found if what.startswith(f"{place} is nearly full")]
    if not full:
        raise Broken(f"the doctor does not name the full disk: {found}")
    return f"the doctor: {full[0]}"


# faults on a cluster that is ready


def list_ready_faults(matrix: Matrix, site: Testbed) -> dict[str, Callable[[], str]]:
    """Key -> what is done to the ready cluster; each ends when all nodes are ready again."""

    def take_away(service: str, how: str) -> str:
        seconds = matrix.dice(f"{service} {how}").uniform(1, 3)
        return write_through(site, lambda: away(site, service, how, seconds))

    def power_cut(*names: str) -> str:
        dice = matrix.dice(f"{names} killed")
        return write_through(
            site, lambda: [event for name in names for event in killed(site, name, 2, dice.uniform(2, 6))]
        )

    def wrong_password(name: str, secret: str, step: str) -> str:
        """The node gets a seed with one wrong password, says so, and gets the right one."""
        site.kill(name)
        site.put_seed(name, Secrets({**site.secrets.values, secret: "wrong"}))
        site.start(name)
        site.wait(f"{name} to wait in {step}", lambda: site.describe(name) == f"{step} (waiting)", 180)
        said = f"{name} in {step}: {site.status(name)['detail']}"
        site.put_seed(name)
        site.kill(name)
        site.start(name)
        site.wait_ready()
        return said

    def rotate() -> str:
        """Every password and key at once, by new seeds."""
        site.secrets = make_secrets(matrix.dice(f"secrets after {site.secrets['seed_key']}"))
        for name in site.names:
            site.kill(name)
            site.put_seed(name)
        site.start(*site.names)
        site.wait_ready()
        return "every value of secrets.yaml changed, all nodes booted with their new seeds"

    def reinstall(name: str) -> str:
        said = site.reinstall(name, *DATA[name[:3]])
        site.wait_ready()
        return said

    def fill(name: str) -> str:
        site.kill(name)
        site.shrink(name, 0)
        site.start(name)
        site.wait(f"{name} to be past its first steps", lambda: len(site.status(name).get("steps", [])) > 5, 180)
        said = f"{site.describe(name)}; {full_disk_finding(site, name)}"
        site.grow(name)
        site.wait_ready()
        return said

    return {
        **{f"{service} {how} for 30 s": partial(take_away, service, how) for service, how in SERVICE_FAULTS},
        "ctl-1 killed": partial(power_cut, "ctl-1"),
        "ctl-2 killed": partial(power_cut, "ctl-2"),
        "cpt-1 killed": partial(power_cut, "cpt-1"),
        "all nodes killed": partial(power_cut, *site.names),
        "wrong password of the broker on cpt-1": partial(
            wrong_password, "cpt-1", "messaging_openstack", "wait-messaging"
        ),
        "wrong password of the database on ctl-2": partial(wrong_password, "ctl-2", "database_nova", "wait-database"),
        "all secrets rotated": rotate,
        "image of ctl-1 put over its data": partial(reinstall, "ctl-1"),
        "image of cpt-1 put anew": partial(reinstall, "cpt-1"),
        "/var full on ctl-1": partial(fill, "ctl-1"),
        "/var full on cpt-2": partial(fill, "cpt-2"),
    }


def write_through(site: Testbed, plan: Callable[[], list[Event]]) -> str:
    """Does what is planned while a client writes: what Nova has acknowledged must be there at the end."""
    before = len(site.kept)
    with site.write_flavors():
        said = site.pass_through(plan())
    return "; ".join([*said, f"{len(site.kept) - before} flavors written"])


SERVICE_FAULTS = [(service, how) for service in ("database", "messaging", "identity") for how in ("stopped", "frozen")]


def trouble_ready_cluster(matrix: Matrix) -> None:
    """One cluster of two controllers and two computes under each fault in turn; anew after one that it did not bear."""
    left = None
    while left is None or left:
        with matrix.open_site(2, 2) as site:
            left = [key for key in list_ready_faults(matrix, site) if matrix.wants(key)] if left is None else left
            if not left:
                return
            site.start(*site.names)
            site.wait_ready()
            left = trouble(matrix, site, left)


def trouble(matrix: Matrix, site: Testbed, keys: list[str]) -> list[str]:
    """The ready cluster under each fault in turn; what is left of them after one that it did not bear."""
    faults = list_ready_faults(matrix, site)
    for number, key in enumerate(keys, 1):
        if matrix.wants(key) and not matrix.strike(key, site, partial(lambda do: (1, do()), faults[key])):
            return keys[number:]
    return []


# faults under guests

HICCUP = 10  # seconds of silence between guests that two busy cores explain; an outage lasts longer


def list_guest_faults(site: Testbed) -> dict[str, Callable[[], str]]:
    """Key -> what is done to the ready cluster while a guest on each compute hears another one."""

    def through(do: Callable[[], str]) -> str:
        """Does it, and says what the guests noticed: at the end each must hear its peer."""
        before = {name: len(site.hear(name)) for name in site.guests}
        said = do()
        site.wait_ready()
        site.wait("the guests to hear each other", site.heard, GUEST_SECONDS)
        noticed = [f"{name}: {', '.join(more)}" for name in site.guests if (more := site.hear(name)[before[name] :])]
        return "; ".join([said, *(noticed or ["no guest noticed"])])

    def unnoticed(do: Callable[[], str]) -> str:
        """Likewise, and no guest may miss its peer."""
        said = through(do)
        if any(int(seconds) > HICCUP for seconds in re.findall(r"heard \S+ after (\d+) s", said)):
            raise Broken(f"the guests noticed it: {said}")
        return said

    def leave_southbound() -> str:
        return "; ".join(site.pass_through(away(site, "southbound", "stopped", 1)))

    def restart(name: str, *units: str) -> str:
        site.ask(name, "systemctl", "restart", *units)
        return f"{' and '.join(units)} restarted on {name}"

    def kill_unit(name: str, unit: str) -> str:
        started = "--property=ExecMainStartTimestampMonotonic"
        before = site.ask(name, "systemctl", "show", unit, started)
        site.ask(name, "systemctl", "kill", "--signal=KILL", unit)
        site.wait(
            f"{unit} to be started again",
            lambda: (
                site.ask(name, "systemctl", "show", unit, started) != before
                and site.machines[name].execute(["systemctl", "is-active", "--quiet", unit]).returncode == 0
            ),
            120,
        )
        return f"{unit} killed on {name}"

    def cut_power(name: str) -> str:
        said = site.kill(name)
        site.start(name)
        site.wait_ready()
        guest = site.guests[name]
        site.wait("its guest to be ACTIVE", lambda: site.as_client("state").get(guest) == "ACTIVE", GUEST_SECONDS)
        return f"{said}; ready again, its guest is ACTIVE"

    def rebuild(name: str) -> str:
        said = site.reinstall(name)
        site.wait_ready()
        site.start_guests()
        return f"{said}; new guests on all computes"

    def fill_images() -> str:
        path = "var/lib/glance"
        site.kill("ctl-1")
        site.shrink("ctl-1", 1, path)
        site.start("ctl-1")
        site.wait_ready()
        refused = site.as_client("upload", mib=8)
        if not refused:
            raise Broken("Glance took an image that has no room")
        said = full_disk_finding(site, "ctl-1", f"/{path}")
        site.grow("ctl-1", path)
        if again := site.as_client("upload", mib=8):
            raise Broken(f"with room again: {again}")
        return f"{refused}; {said}; room again, image taken"

    return {
        "southbound database stopped for 30 s, under guests": partial(unnoticed, leave_southbound),
        "Neutron restarted under guests": partial(
            unnoticed, partial(restart, "ctl-1", "neutron-api", "neutron-rpc-server", "ovn-northd")
        ),
        "Glance restarted under guests": partial(unnoticed, partial(restart, "ctl-1", "glance-api")),
        "ovn-controller killed under guests": partial(unnoticed, partial(kill_unit, "cpt-1", "ovn-controller")),
        "Open vSwitch killed under guests": partial(through, partial(kill_unit, "cpt-1", "ovs-vswitchd")),
        "compute killed under guests": partial(through, partial(cut_power, "cpt-1")),
        "/var/lib/glance full under guests": partial(unnoticed, fill_images),
        "compute built anew under guests": partial(rebuild, "cpt-2"),
    }


def trouble_guests(matrix: Matrix) -> None:
    """One cluster of a controller and two computes, and a guest on each, under each fault in turn."""
    done: set[str] = set()
    while True:
        with matrix.open_site(1, 2) as site:
            left = [key for key in list_guest_faults(site) if key not in done and matrix.wants(key)]
            if not left:
                return
            site.start(*site.names)
            site.wait_ready()
            site.start_guests()
            faults = list_guest_faults(site)
            for key in left:
                done.add(key)
                if not matrix.strike(key, site, partial(lambda do: (1, do()), faults[key])):
                    break  # a cluster that did not bear it is of no use to the next


# the agent's own crash points


def crash_agents(matrix: Matrix, phases: str) -> None:
    """Agents killed at every point where they touch the world; `phases`: all, or one for each point."""
    key = f"agents killed at each effect ({phases})"
    if not matrix.wants(key):
        return
    with matrix.open_site(1, 1, ("cell1", "cell2")) as site:
        for name, machine in site.machines.items():
            texts = {
                AGENT: (Path(__file__).parent / "crashing_agent.py").read_text(),
                "etc/systemd/system/imagegen-node.service.d/50-faults.conf": UNIT,
                f"{STATE}/plan.json": json.dumps({"seed": matrix.dice(name).random(), "phases": phases}),
            }
            for path, text in texts.items():
                (machine.tree / path).parent.mkdir(parents=True, exist_ok=True)
                (machine.tree / path).write_text(text)

        def suffer() -> Outcome:
            site.start(*site.names)
            site.wait_ready(seconds=2400)
            told = [tell_kills(name, phases) for name in site.names]
            return sum(kills for kills, _ in told), "; ".join(text for _, text in told)

        matrix.strike(key, site, suffer)


def read_points(name: str) -> list[str]:
    """Where the agent of that node was killed, in order: `PHASE EFFECT`."""
    place = WORK / "boot" / name / "tree" / STATE / "points.jsonl"
    return [json.loads(line)["point"] for line in place.read_text().splitlines()]


def tell_kills(name: str, phases: str) -> Outcome:
    """How often the node's agent was killed, and where. Raises Broken when it was hardly killed."""
    points = read_points(name)
    if name.startswith("ctl") and len(points) < LEAST_KILLS[phases]:
        raise Broken(f"the agent of {name} was killed only {len(points)} times: the points are not found any more")
    twice = [point for point, count in Counter(points).items() if count > 1]
    if twice:
        raise Broken(f"struck twice: {twice}")
    effects = {point.split(" ", 1)[1] for point in points}
    return len(points), f"{name}: {len(points)} kills at {len(effects)} effects"
