"""Stand-in for oslo.db's exceptions."""

from __future__ import annotations

from types import SimpleNamespace


class DBDuplicateEntry(Exception):
    """A row with that unique key is there."""


exception = SimpleNamespace(DBDuplicateEntry=DBDuplicateEntry)
