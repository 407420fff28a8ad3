"""Cell rows through Nova's own objects, run as user nova; the wanted rows come as JSON on stdin.

create_cell picks a random uuid after a read, so that two callers can make two rows of one name. Here every
cell has a fixed uuid, which is unique in Nova's table: the second creator gets a duplicate, not a second row.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def ensure(wanted: list[dict[str, str]]) -> list[str]:
    """Makes the rows that are missing, mends those that differ; one line for each change."""
    from nova import context, exception, objects
    from oslo_db import exception as db_exception

    objects.register_all()
    nova_context = context.get_admin_context()
    changes = []
    for cell in wanted:
        try:
            row: Any = objects.CellMapping.get_by_uuid(nova_context, cell["uuid"])
        except exception.CellMappingNotFound:
            row = objects.CellMapping(nova_context, **cell)
            try:
                row.create()
                changes.append("created {}".format(cell["name"]))
                continue
            except db_exception.DBDuplicateEntry:
                row = objects.CellMapping.get_by_uuid(nova_context, cell["uuid"])
        differing = [key for key in ("name", "transport_url", "database_connection") if getattr(row, key) != cell[key]]
        if differing:
            for key in differing:
                setattr(row, key, cell[key])
            row.save()
            changes.append("updated {} of {}".format(" and ".join(differing), cell["name"]))
    return changes


if __name__ == "__main__":
    from nova import config

    config.parse_args(["nova-manage"])
    for change in ensure(json.load(sys.stdin)):
        print(change)
