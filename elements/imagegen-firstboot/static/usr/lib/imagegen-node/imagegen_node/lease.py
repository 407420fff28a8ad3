"""The lease: one controller at a time works on what all share.

A row with a unique key, its expiry by the database's clock. Not GET_LOCK: MariaDB refuses that under Galera.
"""

from __future__ import annotations

import threading
from typing import Any

import pymysql

from imagegen_node.database import connect_schema
from imagegen_node.steps import LeaseLost, Waiting

SCHEMA = "imagegen"
NAME = "cluster"
SECONDS = 60  # how long a holder that died keeps others waiting
HEARTBEAT = 15  # seconds

TABLE = (
    "CREATE TABLE IF NOT EXISTS lease ("
    "name VARCHAR(64) NOT NULL PRIMARY KEY, holder VARCHAR(255) NOT NULL, expires DATETIME(6) NOT NULL) ENGINE=InnoDB"
)
TAKE_NEW = "INSERT IGNORE INTO lease (name, holder, expires) VALUES (%s, %s, UTC_TIMESTAMP(6) + INTERVAL %s SECOND)"
TAKE_OVER = (
    "UPDATE lease SET holder = %s, expires = UTC_TIMESTAMP(6) + INTERVAL %s SECOND "
    "WHERE name = %s AND (holder = %s OR expires < UTC_TIMESTAMP(6))"
)
# Lost races that the server reports as an error: duplicate key, lock wait timeout, deadlock (Galera at commit).
LOST_RACE = (1062, 1205, 1213)


class Lease:
    """One node's claim. `take` says whether it holds the lease now; a thread keeps it while it does."""

    def __init__(self, database: dict[str, Any], holder: str) -> None:
        self._database = database
        self._holder = holder
        self._held = threading.Event()
        self._heartbeat: threading.Thread = threading.Thread(target=self._keep, daemon=True)

    def take(self) -> bool:
        """Takes the lease when it is free, expired or already ours. Raises Waiting when the database is away."""
        if self._renew():
            self._held.set()
            if not self._heartbeat.is_alive():
                self._heartbeat = threading.Thread(target=self._keep, daemon=True)
                self._heartbeat.start()
            return True
        self._held.clear()
        return False

    def check(self) -> None:
        """Raises LeaseLost when the lease is not ours any more."""
        if not self._held.is_set() or not self._renew():
            self._held.clear()
            raise LeaseLost("another controller holds the lease")

    @property
    def held(self) -> bool:
        return self._held.is_set()

    def _renew(self) -> bool:
        with connect_schema(self._database, SCHEMA) as connection, connection.cursor() as cursor:
            try:
                cursor.execute(TABLE)
                if cursor.execute(TAKE_NEW, (NAME, self._holder, SECONDS)):
                    return True
                return bool(cursor.execute(TAKE_OVER, (self._holder, SECONDS, NAME, self._holder)))
            except (pymysql.err.OperationalError, pymysql.err.IntegrityError) as error:
                if error.args[0] in LOST_RACE:
                    return False
                raise Waiting(f"the lease: {error.args[-1]}") from error

    def _keep(self) -> None:
        missed = 0
        pause = threading.Event()
        while self._held.is_set():
            pause.wait(HEARTBEAT)
            try:
                if not self._renew():
                    self._held.clear()
                missed = 0
            except Exception:  # the database is away: the lease runs out unless it is back in time
                missed += 1
                if missed * HEARTBEAT >= SECONDS:
                    self._held.clear()
