"""Stand-in for Nova's objects: cell mappings on the rows of the fake database, unique by uuid alone, as in Nova."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fakes.oslo_db import DBDuplicateEntry

FIELDS = ("name", "uuid", "transport_url", "database_connection")
rows: list[dict[str, Any]] = []  # the table of the world that a test makes
before_create: Any = None  # what somebody else does between our read and our insert


class CellMappingNotFound(Exception):
    """There is no row with that uuid."""


class CellMapping:
    """nova.objects.CellMapping."""

    def __init__(self, context: object, **fields: str) -> None:
        vars(self).update(fields)

    @classmethod
    def get_by_uuid(cls, context: object, uuid: str) -> CellMapping:
        for row in rows:
            if row["uuid"] == uuid:
                return cls(context, **row)
        raise CellMappingNotFound(uuid)

    def create(self) -> None:
        if before_create:
            before_create()
        if any(row["uuid"] == vars(self)["uuid"] for row in rows):
            raise DBDuplicateEntry(vars(self)["uuid"])
        rows.append({field: vars(self)[field] for field in FIELDS})

    def save(self) -> None:
        row = next(row for row in rows if row["uuid"] == vars(self)["uuid"])
        row.update({field: vars(self)[field] for field in FIELDS})


objects = SimpleNamespace(CellMapping=CellMapping, register_all=lambda: None)
exception = SimpleNamespace(CellMappingNotFound=CellMappingNotFound)
context = SimpleNamespace(get_admin_context=object)
