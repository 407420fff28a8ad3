"""What nova-manage does, as far as the first boot has an answer to it: for the unit tests' fake and for the real one.

Each function gets an installation with synced schemas and an empty table of cells. The traps are those that
nova-manage has; which of imagegen's answers belongs to each stands in the docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from urllib.parse import unquote

CELL0 = "00000000-0000-0000-0000-000000000000"
STRANGER = "11111111-2222-4333-8444-555555555555"
OTHER_QUEUE = "rabbit://contract:other@192.0.2.1:5672/contract"


class Installation(Protocol):
    """A nova-manage with schemas of its own; its password of the database needs escapes in a URL."""

    database: str  # URL of [database]
    database_cell0: str  # URL of a schema for cell0
    transport_url: str

    def run(self, *words: str) -> int:
        """The return code of `nova-manage WORDS`."""

    def run_without_database(self, *words: str) -> int:
        """The same where no database answers."""

    def drop_tables(self) -> None:
        """Leaves the schemas as they were created: empty."""

    def forget_version(self) -> None:
        """Leaves the API schema as a first sync does that was cut off: with tables, without a version."""

    def has_tables(self, url: str) -> bool:
        """Whether Nova's main tables are in the schema of that URL."""

    def cells(self) -> list[tuple[str, str, str, str]]:
        """(uuid, name, transport URL, database) of every row of cell_mappings, in the order of their making."""

    def map_host(self, cell: str) -> None:
        """Puts a host mapping into that cell, past nova-manage."""

    def add_marked_compute(self) -> None:
        """Puts a compute into [database] which Nova marks as mapped, and which has no host mapping."""

    def count_mapped_hosts(self) -> int:
        """The rows of host_mappings."""


def create(nova: Installation, queue: str | None = None, database: str | None = None) -> int:
    urls = ("--transport-url", queue or nova.transport_url, "--database_connection", database or nova.database)
    return nova.run("cell_v2", "create_cell", "--name", "cell1", *urls)


def the_order_of_syncs(nova: Installation) -> None:
    """`db sync` before `api_db sync` is 1, without a row for cell0 it leaves cell0 out and is 0: hence our order."""
    nova.drop_tables()
    assert nova.run("db", "sync") == 1
    assert nova.run("api_db", "sync") == 0
    assert nova.run("api_db", "sync") == 0
    assert nova.run("db", "sync") == 0
    assert nova.has_tables(nova.database)
    assert not nova.has_tables(nova.database_cell0)


def a_cut_off_sync_stays_cut_off(nova: Installation) -> None:
    """Tables without a version make every later sync end with 255: the agent empties such a schema first."""
    nova.drop_tables()
    assert nova.run("api_db", "sync") == 0
    nova.forget_version()
    assert nova.run("api_db", "sync") == nova.run("api_db", "sync") == 255
    nova.drop_tables()
    assert nova.run("api_db", "sync") == 0


def cell0_by_default_is_broken(nova: Installation) -> None:
    """map_cell0 un-escapes the password, is 0 each time and never mends the row: the agent writes cell0 itself."""
    assert nova.run("cell_v2", "map_cell0") == 0
    wanted = [(CELL0, "cell0", "none:///", unquote(nova.database + "_cell0"))]
    assert nova.cells() == wanted
    assert wanted[0][3] != nova.database + "_cell0"
    assert nova.run("cell_v2", "map_cell0", "--database_connection", nova.database_cell0) == 0
    assert nova.cells() == wanted


def create_cell_compares_urls(nova: Installation) -> None:
    """2 for a URL that is there, though the row may be stale; 0 and a second row when both differ: fixed uuids."""
    assert create(nova) == 0
    before = nova.cells()
    assert create(nova) == 2
    assert create(nova, queue=OTHER_QUEUE) == 2
    assert nova.cells() == before
    assert create(nova, queue=OTHER_QUEUE, database=nova.database_cell0) == 0
    assert [row[1] for row in nova.cells()] == ["cell1", "cell1"]


def templates_defeat_the_comparison(nova: Installation) -> None:
    """create_cell with templates twice: 0 and 0, two rows. The agent writes whole URLs."""
    queue = "{scheme}://{username}:{password}@{hostname}:{port}/{path}"
    for _ in range(2):
        assert create(nova, queue=queue, database=queue) == 0
    assert [row[1] for row in nova.cells()] == ["cell1", "cell1"]


def update_cell_fills_in(nova: Installation) -> None:
    """A URL that is left out becomes nova.conf's: cell0 gets the message queue, and cell1 cannot be made any more."""
    assert nova.run("cell_v2", "map_cell0", "--database_connection", nova.database_cell0) == 0
    words = ("cell_v2", "update_cell", "--cell_uuid")
    assert nova.run(*words, STRANGER, "--name", "x") == 1
    assert nova.run(*words, CELL0, "--database_connection", nova.database_cell0) == 0
    assert nova.cells() == [(CELL0, "cell0", nova.transport_url, nova.database_cell0)]
    assert create(nova) == 2
    both = ("--transport-url", "none:///", "--database_connection", nova.database_cell0)
    assert nova.run(*words, CELL0, *both) == 0
    assert create(nova) == 0
    assert nova.run(*words, CELL0, "--transport-url", "none:///", "--database_connection", nova.database) == 3


def discovery_codes(nova: Installation) -> None:
    """0 with nothing new, 1 when strict, 255 for a cell that is not there: the agent asks the database first."""
    assert create(nova) == 0
    uuid = nova.cells()[0][0]
    assert nova.run("cell_v2", "discover_hosts", "--cell_uuid", uuid) == 0
    assert nova.run("cell_v2", "discover_hosts", "--cell_uuid", uuid, "--strict") == 1
    assert nova.run("cell_v2", "discover_hosts", "--cell_uuid", STRANGER) == 255


def discovery_believes_its_own_mark(nova: Installation) -> None:
    """A compute that is marked and has no mapping is missed with 0, --by-service finds it: the agent says so then."""
    assert create(nova) == 0
    nova.add_marked_compute()
    words = ("cell_v2", "discover_hosts", "--cell_uuid", nova.cells()[0][0])
    assert nova.run(*words) == 0
    assert nova.count_mapped_hosts() == 0
    assert nova.run(*words, "--by-service") == 0
    assert nova.count_mapped_hosts() == 1


def delete_cell_codes(nova: Installation) -> None:
    """What the advice for a duplicate row says: 1 not found, 2 it has hosts, 0 deleted."""
    assert create(nova) == 0
    uuid = nova.cells()[0][0]
    assert nova.run("cell_v2", "delete_cell", "--cell_uuid", STRANGER) == 1
    nova.map_host(uuid)
    assert nova.run("cell_v2", "delete_cell", "--cell_uuid", uuid) == 2
    assert create(nova, queue=OTHER_QUEUE, database=nova.database_cell0) == 0
    assert nova.run("cell_v2", "delete_cell", "--cell_uuid", nova.cells()[1][0]) == 0
    assert [row[0] for row in nova.cells()] == [uuid]


def migration_codes(nova: Installation) -> None:
    """0 when all is migrated, 127 for a bad argument."""
    assert nova.run("db", "online_data_migrations") == 0
    assert nova.run("db", "online_data_migrations", "--max-count", "0") == 127


def whatever_is_unexpected_is_255(nova: Installation) -> None:
    """No database: the agent tries again."""
    assert nova.run_without_database("api_db", "sync") == 255
    assert nova.run_without_database("cell_v2", "discover_hosts") == 255


CONTRACT: tuple[Callable[[Installation], None], ...] = (
    the_order_of_syncs,
    a_cut_off_sync_stays_cut_off,
    cell0_by_default_is_broken,
    create_cell_compares_urls,
    templates_defeat_the_comparison,
    update_cell_fills_in,
    discovery_codes,
    discovery_believes_its_own_mark,
    delete_cell_codes,
    migration_codes,
    whatever_is_unexpected_is_255,
)
