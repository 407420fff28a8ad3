"""flavors.py: the first flavors, on a database in memory."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from fakes import pymysql
from fakes.mariadb import Rows, Server
from imagegen_node.engine.errors import Waiting
from imagegen_node.openstack.flavors import write_first

LOGIN = {"user": "nova", "password": "s3cret"}
DATABASE = {
    "host": "192.168.56.11",
    "port": 3306,
    "schemas": [{"name": "nova_api", **LOGIN}, {"name": "imagegen", **LOGIN}],
}
TINY = {"name": "m1.tiny", "vcpus": 1, "ram": 512, "disk": 1}
LARGE = {"name": "m1.large", "vcpus": 4, "ram": 8192, "disk": 80}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server with both schemas, as they are after the step that syncs them."""
    server = Server(lambda: 0.0)
    server.up = True
    server.schemas = {"nova_api": {"flavors": []}, "imagegen": {"done": []}}
    everywhere: dict[str, Any] = {"password": LOGIN["password"], "rights": {"ALL PRIVILEGES ON *.*"}}
    server.users = {("nova", "%"): everywhere}
    monkeypatch.setattr(pymysql, "connect", server.connect)
    return server


def flavors(server: Server) -> Rows:
    return server.rows("nova_api", "flavors")


def write(*given: dict[str, Any]) -> str:
    return write_first({"database": DATABASE, "flavors": list(given)})


def test_they_are_written_where_there_are_none(server: Server) -> None:
    """In Nova's units: MiB of memory, GiB of disk; all in one statement, so never a part of them."""
    assert write(TINY, LARGE) == "wrote m1.tiny, m1.large"
    rows = [(row["name"], row["memory_mb"], row["vcpus"], row["root_gb"]) for row in flavors(server)]
    assert rows == [("m1.tiny", 512, 1, 1), ("m1.large", 8192, 4, 80)]
    assert len([change for change in server.changes if "INTO flavors" in change]) == 1


def test_their_ids_are_their_own_and_the_same_again(server: Server) -> None:
    """Two clusters of one file have the same, so that scripts may use them."""
    write(TINY, LARGE)
    ids = [row["flavorid"] for row in flavors(server)]
    assert len({UUID(each) for each in ids}) == 2
    flavors(server).clear()
    server.rows("imagegen", "done").clear()
    write(TINY, LARGE)
    assert [row["flavorid"] for row in flavors(server)] == ids


def test_what_was_done_is_not_done_again(server: Server) -> None:
    """An operator who deletes them all does not get them back, and new ones in the file change nothing."""
    write(TINY)
    flavors(server).clear()
    assert write(TINY, LARGE) == "done before"
    assert flavors(server) == []


def test_an_operators_flavors_are_enough(server: Server) -> None:
    """That is remembered, too: nothing is written when they go."""
    flavors(server).append({"name": "theirs"})
    assert write(TINY) == "there are 1"
    assert flavors(server) == [{"name": "theirs"}]
    flavors(server).clear()
    assert write(TINY) == "done before"
    assert flavors(server) == []


def test_none_is_an_answer(server: Server) -> None:
    """`flavors: []` writes none, now and later."""
    assert write() == "wrote none"
    assert write(TINY) == "done before"
    assert flavors(server) == []


def test_a_writer_that_dies_is_followed_by_another(server: Server) -> None:
    """Nothing counts as done before it is written."""
    server.faults.append(("INSERT INTO flavors", pymysql.OperationalError(2013, "Lost connection")))
    with pytest.raises(pymysql.OperationalError):
        write(TINY)
    assert write(TINY) == "wrote m1.tiny"


def test_a_database_that_is_away_is_waited_for(server: Server) -> None:
    server.up = False
    with pytest.raises(Waiting, match="database imagegen at"):
        write(TINY)
