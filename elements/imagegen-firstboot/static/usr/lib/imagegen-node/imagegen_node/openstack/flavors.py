"""The first flavors: written once, where Nova has none. What an operator makes of them later stays."""

from __future__ import annotations

import uuid
from typing import Any

from imagegen_node.openstack.database import connect_schema, fetch_rows, read_done, set_done

WORK = "first flavors"
# As nova/objects/flavor.py writes one. All in one statement, so a writer that dies leaves none.
ROW = "(UTC_TIMESTAMP(), %s, %s, %s, %s, 0, 0, 0, %s, 1, 0, 1)"
INSERT = (
    "INSERT INTO flavors (created_at, name, memory_mb, vcpus, root_gb, ephemeral_gb, swap, vcpu_weight, flavorid,"
    " rxtx_factor, disabled, is_public) VALUES "
)


def write_first(node: dict[str, Any]) -> str:
    """The seed's flavors, unless that was done before or there are any."""
    database, flavors = node["database"], node["flavors"]
    if WORK in read_done(database):
        return "done before"
    with connect_schema(database, "nova_api") as connection, connection.cursor() as cursor:
        ((count,),) = fetch_rows(connection, "SELECT COUNT(*) FROM flavors")
        if not count and flavors:
            values = [
                (one["name"], one["ram"], one["vcpus"], one["disk"], str(uuid.uuid5(uuid.NAMESPACE_OID, one["name"])))
                for one in flavors
            ]
            cursor.execute(INSERT + ", ".join([ROW] * len(values)), [value for row in values for value in row])
    set_done(database, WORK, True)
    return f"there are {count}" if count else "wrote {}".format(", ".join(one["name"] for one in flavors) or "none")
