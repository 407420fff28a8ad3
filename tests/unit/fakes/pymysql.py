"""Stand-in for the driver pymysql: its errors; `connect` is the server's of the world that a test makes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class MySQLError(Exception):
    """The base of all."""


class OperationalError(MySQLError):
    """The server, the login or the connection."""


class ProgrammingError(MySQLError):
    """The statement, such as a table that is not there."""


class IntegrityError(MySQLError):
    """A duplicate key."""


err = SimpleNamespace(
    MySQLError=MySQLError,
    OperationalError=OperationalError,
    ProgrammingError=ProgrammingError,
    IntegrityError=IntegrityError,
)


def connect(**options: Any) -> Any:
    raise AssertionError("no world is made")
