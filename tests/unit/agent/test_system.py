"""What the agent does to its machine: commands, units, files; and its database, lease, broker and API."""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import urllib.error
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.commands import Crash
from fakes.mariadb import right_on
from fakes.pymysql import IntegrityError, OperationalError, ProgrammingError
from fakes.world import World
from hypothesis import given
from hypothesis import strategies as st
from imagegen_node.engine import system
from imagegen_node.engine.errors import CommandFailed, LeaseLost, Waiting
from imagegen_node.node import configure, declared
from imagegen_node.openstack import api, backing, database, identity_objects, lease


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A controller whose database is up and prepared."""
    made = World(tmp_path, monkeypatch)
    made.make_node("linux-node1")
    made.server.up = True
    database.ensure_schemas(made.node["database"])
    made.server.changes.clear()
    return made


# commands


def test_a_command_gets_a_clean_environment_and_its_users_home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the agent's own environment, no terminal, no stdin; secrets go by input or environment."""
    monkeypatch.setenv("http_proxy", "http://proxy")
    seen: dict[str, Any] = {}

    def start(argv: list[str], **options: Any) -> Any:
        seen.update(options, argv=argv)
        return subprocess.CompletedProcess(argv, 0, "out", "err")

    monkeypatch.setattr(system.subprocess, "run", start)
    assert system.run(["nova-manage", "x"], user="nova", env={"EXTRA": "1"}) == "out"
    assert seen["env"] == {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/var/lib/nova",
        "EXTRA": "1",
    }
    assert (seen["cwd"], seen["input"], seen["argv"]) == ("/var/lib/nova", None, ["nova-manage", "x"])


@pytest.mark.parametrize(
    ("out", "err", "shown"),
    [("out\n", "one\n\ntwo\nthree\nfour\n", "two | three | four"), ("only out\n", "", "only out"), ("", "", "")],
)
def test_a_failed_command_shows_its_last_lines(
    world: World, monkeypatch: pytest.MonkeyPatch, out: str, err: str, shown: str
) -> None:
    """stderr, or stdout when there is none; and the return code is kept."""
    monkeypatch.setattr(system.subprocess, "run", lambda argv, **_: subprocess.CompletedProcess(argv, 7, out, err))
    with pytest.raises(CommandFailed) as raised:
        system.run(["tool", "a b"])
    assert raised.value.rc == 7
    assert str(raised.value) == f"tool 'a b' ended with 7: {shown}"


def test_a_command_that_hangs_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt may take a connection and never answer."""

    def hang(argv: list[str], *, timeout: float, **_: Any) -> Any:
        raise subprocess.TimeoutExpired(argv, timeout)

    monkeypatch.setattr(system.subprocess, "run", hang)
    with pytest.raises(CommandFailed, match="virsh version ended with -9: no answer within 30 seconds"):
        system.run(["virsh", "version"], timeout=30)


def test_a_return_code_that_is_fine_is_no_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """nova-status ends with 1 for warnings."""
    monkeypatch.setattr(system.subprocess, "run", lambda argv, **_: subprocess.CompletedProcess(argv, 1, "warning", ""))
    assert system.run(["nova-status"], ok=(0, 1)) == "warning"


# units


def start(world: World, *paths: str) -> list[str]:
    """Starts a unit with these files; the commands that took."""
    world.commands.log.clear()
    try:
        system.start_units({"nova-api.service": tuple(world.at(path) for path in paths)})
    except Waiting:
        world.sleep(1)
    return [command.split()[1] for command in world.commands.log]


def test_a_unit_is_started_once(world: World) -> None:
    """And waited for until systemd calls it active."""
    assert start(world, "/etc/nova") == ["start"]
    assert start(world, "/etc/nova") == []
    system.start_units({"nova-api.service": (world.at("/etc/nova"),)})


def test_a_unit_whose_files_changed_is_restarted_once(world: World) -> None:
    """A new file, a changed one and one that went; not one that has only another date."""
    start(world, "/etc/nova")
    world.put("/etc/nova/nova.conf.d/60-more.conf", "[DEFAULT]\n")
    assert start(world, "/etc/nova") == ["restart"]
    assert start(world, "/etc/nova") == []
    world.put("/etc/nova/nova.conf.d/60-more.conf", "[api]\n")
    assert start(world, "/etc/nova") == ["restart"]
    world.at("/etc/nova/nova.conf.d/60-more.conf").touch()
    assert start(world, "/etc/nova") == []
    world.at("/etc/nova/nova.conf.d/60-more.conf").unlink()
    assert start(world, "/etc/nova") == ["restart"]


def test_a_unit_that_others_started_is_restarted_once(world: World) -> None:
    """Nobody knows which files it read."""
    start(world)
    assert start(world, "/etc/nova") == ["restart"]
    assert start(world, "/etc/nova") == []


def test_a_unit_without_files_is_never_restarted(world: World) -> None:
    """libvirtd may have been started by its socket."""
    assert start(world) == ["start"]
    world.at("/run/imagegen/started/nova-api.service").unlink()
    assert start(world) == []


def test_who_dies_between_a_start_and_its_record_restarts_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a start comes first; that of a restart comes after it, or the new files would never be read."""
    command = system.run

    def crash_after(kind: str) -> None:
        def run(argv: list[str], **options: Any) -> str:
            said = command(argv, **options)
            if argv[1] == kind:
                raise Crash
            return said

        monkeypatch.setattr(system, "run", run)
        with pytest.raises(Crash):
            start(world, "/etc/nova")
        monkeypatch.setattr(system, "run", command)
        world.sleep(1)

    crash_after("start")
    assert start(world, "/etc/nova") == []
    world.put("/etc/nova/nova.conf.d/60-more.conf", "[DEFAULT]\n")
    crash_after("restart")
    assert start(world, "/etc/nova") == ["restart"]
    assert start(world, "/etc/nova") == []


def test_a_unit_that_takes_long_is_waited_for(world: World) -> None:
    """Not started twice, and its state is in the text."""
    start(world, "/etc/nova")
    world.commands.log.clear()
    world.units["nova-api.service"].state = "activating"
    with pytest.raises(Waiting, match=r"nova-api.service to be up; it was activating \(start\)"):
        system.start_units({"nova-api.service": (world.at("/etc/nova"),)})
    assert world.commands.log == []


def test_what_a_unit_was_started_with_is_no_world_readable_digest(world: World) -> None:
    """A digest of files with passwords lets them be guessed at."""
    start(world, "/etc/nova")
    assert world.at("/run/imagegen/started/nova-api.service").stat().st_mode & 0o777 == 0o600


# workers


@pytest.mark.parametrize(
    ("cores", "text", "workers"), [(2, None, 2), (64, None, 4), (64, "1\n", 1), (2, "0", 1), (2, "8", 8)]
)
def test_workers_follow_the_cores_unless_the_node_says_otherwise(
    world: World, monkeypatch: pytest.MonkeyPatch, cores: int, text: str | None, workers: int
) -> None:
    """At most four a service; a file on the node counts more. MariaDB's connections follow."""
    monkeypatch.setattr(configure, "os", SimpleNamespace(sched_getaffinity=lambda _: set(range(cores))))
    if text is not None:
        world.put("/etc/imagegen/workers", text)
    assert configure.configure_controller(world.node) == f"{workers} workers per service"
    assert f"workers = {workers}\n" in world.at("/etc/nova/nova.conf.d/30-workers.conf").read_text()
    assert f"IMAGEGEN_WORKERS={workers}\n" in world.at("/run/imagegen/services.env").read_text()
    limit = world.at("/etc/mysql/mariadb.conf.d/95-connections.cnf").read_text()
    assert limit == f"[mariadbd]\nmax_connections = {200 + 200 * workers}\n"


# schemas

HERE = "192.168.56.11"


def test_users_are_made_with_their_password(world: World) -> None:
    """There is no moment at which a user has none."""
    del world.server.users["placement", HERE]
    assert "made user placement at 192.168.56.11" in database.ensure_schemas(world.node["database"])
    assert world.server.changes[0] == "CREATE USER %s@%s IDENTIFIED BY %s"


def test_schemas_that_are_right_are_not_touched(world: World) -> None:
    """Nothing is created, altered, granted."""
    assert database.ensure_schemas(world.node["database"]) == "all there"
    assert world.server.changes == []


@pytest.mark.parametrize(
    "rights",
    [
        set(),
        {right_on("placement"), right_on("nova")},
        {"ALL PRIVILEGES ON `placement`.* WITH GRANT OPTION"},
        {"SELECT ON `placement`.*"},
        {"ALL PRIVILEGES ON *.*"},
        {"`role`"},
    ],
)
def test_rights_become_what_they_should_be(world: World, rights: set[str]) -> None:
    """Too few, too many, of another kind, a role: in the end its own schema and nothing else."""
    world.server.users["placement", HERE]["rights"] = set(rights)
    assert database.ensure_schemas(world.node["database"]) == "made rights of placement at 192.168.56.11"
    assert world.server.users["placement", HERE]["rights"] == {right_on("placement")}
    assert database.ensure_schemas(world.node["database"]) == "all there"


def test_only_another_password_is_set(world: World) -> None:
    """The server compares: an account of an address that is not this node's cannot be tried."""
    world.server.users["placement", HERE]["password"] = "other"
    assert database.ensure_schemas(world.node["database"]) == "made password of placement at 192.168.56.11"
    assert [change[:10] for change in world.server.changes] == ["ALTER USER"]


@given(
    st.sampled_from(['revision = "{}"', "revision: str = '{}'", "revision='{}'"]),
    st.sampled_from(["down_revision = {}", "down_revision: str | None = {}", "down_revision={}"]),
    st.lists(st.from_regex(r"[0-9a-f]{12}", fullmatch=True), min_size=1, max_size=6, unique=True),
)
def test_revisions_are_read_in_every_spelling(
    tmp_path_factory: pytest.TempPathFactory, own: str, before: str, chain: list[str]
) -> None:
    """A chain of migrations has one head, its last; however alembic's templates spell it."""
    packages = tmp_path_factory.mktemp("packages")
    directory = packages / "nova/revisions"
    directory.mkdir(parents=True)
    schema = {"name": "nova", "per_cell": True, "revisions": "nova/revisions"}
    services = packages / "services.json"
    services.write_text(json.dumps({"elements": [{"schemas": [schema]}]}))
    for number, revision in enumerate(chain):
        parent = repr(chain[number - 1]) if number else "None"
        text = f'"""x\n\nRevision ID: {revision}"""\n{own.format(revision)}\n{before.format(parent)}\n'
        (directory / f"{revision}_x.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "PACKAGES", packages)
        patch.setattr(declared, "FILE", services)
        assert database.read_packaged("nova_cell7") == (frozenset(chain), frozenset(chain[-1:]))


def test_an_image_without_migrations_is_an_error(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty set of heads would call every schema right."""
    monkeypatch.setattr(database, "PACKAGES", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no alembic revisions"):
        database.read_packaged("nova")


def test_other_errors_than_a_missing_table_come_through(world: World) -> None:
    """A syntax error is not an empty table."""
    world.server.faults.append(("SELECT name FROM done", ProgrammingError(1064, "syntax")))
    with pytest.raises(ProgrammingError):
        database.read_done(world.node["database"])


# the lease


@pytest.fixture
def leases(world: World) -> tuple[lease.Lease, lease.Lease]:
    """Two nodes' claims on the same row."""
    return lease.Lease(world.node["database"], "one"), lease.Lease(world.node["database"], "two")


def test_one_node_holds_the_lease(leases: tuple[lease.Lease, lease.Lease]) -> None:
    """The first that asks; again and again."""
    one, two = leases
    assert [one.take(), two.take(), one.take(), two.take()] == [True, False, True, False]
    assert (one.held, two.held) == (True, False)


def test_an_expired_lease_changes_hands(world: World, leases: tuple[lease.Lease, lease.Lease]) -> None:
    """And its old holder notices, before it does the next thing."""
    one, two = leases
    one.take()
    world.clock += lease.SECONDS - 1
    assert not two.take()
    world.clock += 2
    assert not one.held
    assert two.take()
    with pytest.raises(LeaseLost):
        one.check()


def test_a_lease_from_before_the_clock_was_set_back_does_not_last(
    world: World, leases: tuple[lease.Lease, lease.Lease]
) -> None:
    """The database's clock was a year ahead when a holder took the lease that now is dead."""
    one, two = leases
    one.take()
    row = world.server.rows("imagegen", "lease")[0]
    row["expires"] = world.clock + lease.SECONDS + 30  # a holder that lives, and a clock that was set back a little
    assert not two.take()
    row["expires"] = world.clock + 365 * 86400
    assert two.take()


def test_a_lost_lease_stays_lost_until_it_is_taken_anew(world: World, leases: tuple[lease.Lease, lease.Lease]) -> None:
    """It may be free again, but another controller may have worked meanwhile."""
    one, _ = leases
    one.take()
    world.clock += lease.SECONDS + 1
    with pytest.raises(LeaseLost):
        one.check()
    with pytest.raises(LeaseLost):
        one.check()
    assert one.take()
    one.check()


def test_the_heartbeat_keeps_the_lease(world: World, leases: tuple[lease.Lease, lease.Lease]) -> None:
    """While the holder works on something long, its row stays in date; the thread ends when the lease is lost."""
    one, two = leases
    one.take()
    world.later(300, lambda: world.server.rows("imagegen", "lease")[0].update(holder="two", expires=world.clock + 60))
    started = world.clock
    one._keep()
    assert 300 <= world.clock - started <= 300 + lease.SECONDS
    assert not one.held
    assert two.take()


def test_the_heartbeat_survives_a_database_that_is_away_for_a_moment(
    world: World, leases: tuple[lease.Lease, lease.Lease]
) -> None:
    """Away for less than the lease lasts: nothing happened. For longer: it is lost."""
    one, _ = leases
    one.take()
    started = world.clock
    world.later(20, lambda: setattr(world.server, "up", False))
    world.later(50, lambda: setattr(world.server, "up", True))
    world.later(200, lambda: setattr(world.server, "up", False))
    one._keep()
    assert 200 < world.clock - started <= 200 + lease.SECONDS + lease.HEARTBEAT


@pytest.mark.parametrize("error", [IntegrityError(1062, "duplicate"), OperationalError(1213, "deadlock")])
def test_a_lost_race_means_not_held(world: World, leases: tuple[lease.Lease, lease.Lease], error: Exception) -> None:
    """Galera reports it at commit."""
    world.server.faults.append(("INSERT IGNORE INTO lease", error))
    assert not leases[0].take()
    assert leases[0].take()


def test_a_broken_connection_is_waited_out(world: World, leases: tuple[lease.Lease, lease.Lease]) -> None:
    """It is not known who holds the lease: neither yes nor no."""
    world.server.faults.append(("UPDATE lease", OperationalError(2013, "Lost connection during query")))
    with pytest.raises(Waiting, match="the lease: Lost connection"):
        leases[0].take()


# the broker and the APIs


def test_a_missing_virtual_host_is_a_refused_login(world: World) -> None:
    """Both are mended by the definitions."""
    world.remote_control_plane = True
    world.import_definitions()
    assert backing.check_messaging(world.node["messaging"]) == ""
    world.broker["vhosts"] = []
    with pytest.raises(backing.LoginRefused, match="virtual host nova"):
        backing.check_messaging(world.node["messaging"])


def test_a_broker_that_is_away_is_no_refused_login(world: World) -> None:
    """Importing definitions would not help."""
    with pytest.raises(Waiting) as raised:
        backing.check_messaging(world.node["messaging"])
    assert not isinstance(raised.value, backing.LoginRefused)


def test_a_queue_that_is_not_there_is_waited_for(world: World) -> None:
    """The daemon has not declared it yet."""
    world.remote_control_plane = True
    world.import_definitions()
    with pytest.raises(Waiting, match=r"a reader of the queue conductor\.linux-node1"):
        backing.check_consumers(world.node["messaging"], "nova", ["conductor.linux-node1"])


def answer(body: bytes = b"{}", error: BaseException | None = None, code: int = 0) -> Any:
    """An opener that gives this body, or raises."""

    def open(request: Any, timeout: float) -> Any:
        if code:
            raise urllib.error.HTTPError(request.full_url, code, "", Message(), io.BytesIO(body))
        if error:
            raise error
        return SimpleNamespace(__enter__=None)

    return SimpleNamespace(open=open)


@pytest.mark.parametrize(
    ("opener", "text"),
    [
        (answer(code=500), "http://x answers 500"),
        (answer(code=404), "http://x answers 404"),
        (answer(error=urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))), "Connection refused"),
        (answer(error=ConnectionResetError(104, "reset")), "reset"),
        (answer(error=TimeoutError("timed out")), "timed out"),
        (answer(error=http.client.IncompleteRead(b"")), "IncompleteRead"),
        (answer(error=ValueError("no JSON")), "no JSON"),
    ],
)
def test_an_api_that_does_not_answer_well_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, opener: Any, text: str
) -> None:
    """Whatever a service that just starts does, the node waits and says what it saw."""
    monkeypatch.setattr(api, "OPENER", opener)
    with pytest.raises(Waiting, match=text):
        api.fetch("http://x")


def test_a_refused_login_is_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """401 is an answer."""
    monkeypatch.setattr(api, "OPENER", answer(code=401))
    with pytest.raises(api.Unauthorized):
        api.fetch("http://x")


def test_a_list_of_versions_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keystone's root answers 300, with JSON."""
    monkeypatch.setattr(api, "OPENER", answer(b'{"versions": []}', code=300))
    assert api.fetch("http://x") == ({"versions": []}, {})


def make_session(monkeypatch: pytest.MonkeyPatch, catalog: list[Any], opener: Any) -> api.Session:
    session = object.__new__(api.Session)
    session._token, session._catalog, session.roles = "token", catalog, set()
    monkeypatch.setattr(api, "OPENER", opener)
    return session


def test_a_compute_api_that_cannot_check_tokens_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nova's own password in Keystone may have changed a moment ago: its 401 is not about our login."""
    endpoint = {"interface": "public", "url": "http://x", "region_id": "R"}
    session = make_session(monkeypatch, [{"type": "compute", "endpoints": [endpoint]}], answer(code=401))
    with pytest.raises(Waiting, match="the compute API to accept a token"):
        session.compute("R", "/os-services")


LISTS = [
    ({"hypervisors": [{"id": 3}]}, ""),
    (
        {"hypervisors": [], "hypervisors_links": [{"rel": "next", "href": "https://far/v2.1/x?limit=2&marker=u"}]},
        "limit=2&marker=u",
    ),
    ({"hypervisors": [], "links": {"next": None, "self": "http://k/v3/x"}}, ""),
    ({"hypervisors": [], "links": {"next": "http://k/v3/x?marker=u"}, "truncated": True}, "marker=u"),
]


@pytest.mark.parametrize(("document", "query"), LISTS)
def test_the_next_page_is_found_in_every_form(document: dict[str, Any], query: str) -> None:
    """Nova's and Keystone's; only the query, since the address is another one behind a load balancer."""
    assert api.find_next(document, "hypervisors") == query


def test_a_list_that_is_cut_off_or_does_not_end_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Waiting, match="a complete list of users: the API cuts it off"):
        api.find_next({"users": [], "links": {"next": None}, "truncated": True}, "users")
    page = {"x": [1], "x_links": [{"rel": "next", "href": "http://x/x?marker=1"}]}
    monkeypatch.setattr(api, "fetch", lambda url, token: (page, {}))
    endpoint = {"interface": "public", "url": "http://x", "region_id": "R"}
    session = make_session(monkeypatch, [{"type": "compute", "endpoints": [endpoint]}], answer())
    with pytest.raises(Waiting, match="it keeps sending the same page"):
        session.list_compute("R", "/x", "x")
    with pytest.raises(ValueError, match="/x is a list, which may have more pages"):
        session.compute("R", "/x")


@pytest.mark.parametrize(
    ("row", "up"),
    [
        ({"state": "up", "updated_at": "2026-01-01T00:00:00.000000"}, True),
        ({"state": "up", "updated_at": None}, False),
        ({"state": "down", "updated_at": "2026-01-01T00:00:00.000000"}, False),
        ({}, False),
    ],
)
def test_a_service_that_never_reported_is_not_up(row: dict[str, Any], up: bool) -> None:
    """Nova calls it up for a minute after its row was made."""
    assert api.is_up(row) is up


def test_a_region_without_a_compute_api_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controllers make the endpoint."""
    with pytest.raises(Waiting, match="an endpoint of type compute in region R"):
        make_session(monkeypatch, [], answer()).compute("R", "/os-services")


def test_a_service_under_another_name_is_renamed(world: World) -> None:
    """Services are found by type; a second one of the type is never made."""
    world.keystone.bootstrap(world.secrets["identity_admin"], "RegionOne", {"public": "http://192.168.56.11:5000/v3"})
    service = world.keystone.add_service("compute", "compute")
    wanted = {"auth_url": world.node["auth_url"], "region": "RegionOne", **world.node["identity"]}
    assert "name of service nova" in identity_objects.ensure(wanted)
    assert service.name == "nova"
    assert len([item for item in world.keystone.services if item.type == "compute"]) == 1
    assert identity_objects.ensure(wanted) == []
