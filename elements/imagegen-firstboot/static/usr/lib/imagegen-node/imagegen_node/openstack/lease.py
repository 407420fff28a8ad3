"""The lease: one controller at a time works on what all share, and holds it only while it works.

A row with a unique key, its expiry by the database's clock. Not GET_LOCK: MariaDB refuses that under Galera.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pymysql

from imagegen_node.engine.errors import LeaseLost, Waiting
from imagegen_node.openstack.database import AGENT_SCHEMA, NO_SUCH_TABLE, connect_schema

NAME = "cluster"
SECONDS = 60  # how long a holder that died keeps others waiting
HEARTBEAT = 15  # seconds

TABLE = (
    "CREATE TABLE IF NOT EXISTS lease ("
    "name VARCHAR(64) NOT NULL PRIMARY KEY, holder VARCHAR(255) NOT NULL, expires DATETIME(6) NOT NULL) ENGINE=InnoDB"
)
TAKE_OVER = (
    "UPDATE lease SET holder = %s, expires = UTC_TIMESTAMP(6) + INTERVAL %s SECOND "
    "WHERE name = %s AND (holder = %s OR expires < UTC_TIMESTAMP(6)"
    # Nobody claims it for that long: the database's clock has been set back since.
    " OR expires > UTC_TIMESTAMP(6) + INTERVAL %s SECOND)"
)
TAKE_NEW = "INSERT IGNORE INTO lease (name, holder, expires) VALUES (%s, %s, UTC_TIMESTAMP(6) + INTERVAL %s SECOND)"
GIVE_BACK = "DELETE FROM lease WHERE name = %s AND holder = %s"
# Lost races that the server reports as an error: duplicate key, lock wait timeout, deadlock (Galera at commit).
LOST_RACE = (1062, 1205, 1213)


class Lease:
    """One node's claim. `take` says whether it holds the lease now; a thread keeps it while it does."""

    def __init__(self, database: dict[str, Any], holder: str) -> None:
        self._database = database
        self._holder = holder
        self._until = 0.0  # by our own monotonic clock; never later than the row says
        self._lock = threading.Lock()
        self._heartbeat: threading.Thread | None = None

    def take(self) -> bool:
        """Takes the lease when it is free, expired or already ours. Raises Waiting when the database is away."""
        if not self._renew():
            return False
        if self._heartbeat is None or not self._heartbeat.is_alive():
            self._heartbeat = threading.Thread(target=self._keep, daemon=True)
            self._heartbeat.start()
        return True

    def release(self) -> None:
        """Gives the lease up at once. If the database is away, it expires by itself."""
        with self._lock:
            if not self._until:
                return
            self._until = 0.0
            try:
                with connect_schema(self._database, AGENT_SCHEMA) as connection, connection.cursor() as cursor:
                    cursor.execute(GIVE_BACK, (NAME, self._holder))
            except (Waiting, pymysql.err.MySQLError):
                return

    def check(self) -> None:
        """Raises LeaseLost when the lease was lost meanwhile, even if it is free again; Waiting as take() does."""
        if not self._renew(only_held=True):
            raise LeaseLost("the lease, which this node has lost")

    @property
    def held(self) -> bool:
        return time.monotonic() < self._until

    def _renew(self, only_held: bool = False) -> bool:
        with self._lock:
            if only_held and not self.held:
                return False
            asked = time.monotonic()
            taken = self._claim()
            self._until = asked + SECONDS if taken else 0.0
            return taken

    def _claim(self) -> bool:
        """Whether the row is ours now; whoever finds no table makes it."""
        with connect_schema(self._database, AGENT_SCHEMA) as connection, connection.cursor() as cursor:
            try:
                try:
                    renewed = cursor.execute(TAKE_OVER, (self._holder, SECONDS, NAME, self._holder, 2 * SECONDS))
                except pymysql.err.ProgrammingError as error:
                    if error.args[0] != NO_SUCH_TABLE:
                        raise
                    cursor.execute(TABLE)
                    renewed = 0
                return bool(renewed or cursor.execute(TAKE_NEW, (NAME, self._holder, SECONDS)))
            except (pymysql.err.OperationalError, pymysql.err.IntegrityError) as error:
                if error.args[0] in LOST_RACE:
                    return False
                raise Waiting(f"the lease: {error.args[-1]}") from error

    def _keep(self) -> None:
        while self.held:
            time.sleep(HEARTBEAT)
            try:
                self._renew(only_held=True)
            except Exception:  # noqa: S112 - the database is away: the lease runs out unless it is back in time
                continue
