"""What MariaDB on this node holds, read as root through the unix socket. Prints one JSON document."""

import json

import pymysql


def main():
    connection = pymysql.connect(unix_socket="/run/mysqld/mysqld.sock", user="root")
    with connection.cursor() as cursor:

        def rows(query):
            cursor.execute(query)
            return [list(row) for row in cursor.fetchall()]

        users = rows("SELECT User, Host, JSON_VALUE(Priv, '$.plugin') FROM mysql.global_priv")
        grants = {}
        for user, host, _ in users:
            if user not in ("PUBLIC", ""):
                grants[f"{user}@{host}"] = [row[0] for row in rows(f"SHOW GRANTS FOR '{user}'@'{host}'")]
        schemas = [row[0] for row in rows("SHOW DATABASES")]
        tables = {}
        versions = {}
        for schema, table in rows("SELECT table_schema, table_name FROM information_schema.tables"):
            tables.setdefault(schema, []).append(table)
        for schema, names in tables.items():
            if "alembic_version" in names:
                versions[schema] = sorted(row[0] for row in rows(f"SELECT version_num FROM `{schema}`.alembic_version"))
        settings = dict(
            rows("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('bind_address', 'port', 'max_connections')")
        )
    print(
        json.dumps(
            {
                "users": users,
                "grants": grants,
                "schemas": schemas,
                "tables": tables,
                "versions": versions,
                "settings": settings,
            }
        )
    )
