"""The keys of secrets.yaml: what elements declare, and a password for each user of a database or of Keystone."""

from __future__ import annotations

import re

from imagegen.model.declarations import declarations

CELL = "CELL"  # stands for the name of a cell


def secret_kinds() -> dict[str, str]:
    """Every key that secrets.yaml must have -> its kind: password, key, cookie or fernet."""
    kinds: dict[str, str] = {}
    for declared in declarations().values():
        logins = [f"database_{schema['user']}" for schema in declared.get("schemas", ())]
        logins += [f"identity_{user}" for user in declared.get("users", ())]
        kinds |= dict.fromkeys(logins, "password") | declared.get("secrets", {})
    derived = derived_secrets()
    return {key: kind for key, kind in kinds.items() if key not in derived}


def derived_secrets() -> dict[str, str]:
    """Every password that secrets.yaml may have -> the key from whose value it is derived if not."""
    return {
        key: parent
        for declared in declarations().values()
        for key, parent in declared.get("derived_secrets", {}).items()
    }


def parent_of(key: str) -> str | None:
    """The key from whose value that one is derived if secrets.yaml lacks it; None: it is not derived."""
    for name, parent in derived_secrets().items():
        if re.fullmatch(name.replace(CELL, "[a-z][a-z0-9_]*"), key):
            return parent
    return None
