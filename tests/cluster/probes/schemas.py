"""The tables that Nova's models name, the heads of its packaged migrations. Prints JSON: schema -> {tables, heads}."""

import json
from pathlib import Path

import nova.db.api
import nova.db.main
from alembic.config import Config
from alembic.script import ScriptDirectory
from nova.db.api import models as api_models
from nova.db.main import models as main_models


def read_heads(package):
    config = Config()
    config.set_main_option("script_location", str(Path(package.__file__).parent / "migrations"))
    return sorted(ScriptDirectory.from_config(config).get_heads())


def main():
    print(
        json.dumps(
            {
                "api": {"tables": sorted(api_models.BASE.metadata.tables), "heads": read_heads(nova.db.api)},
                "main": {"tables": sorted(main_models.BASE.metadata.tables), "heads": read_heads(nova.db.main)},
            }
        )
    )
