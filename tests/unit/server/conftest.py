from __future__ import annotations

from pathlib import Path

import pytest
from fakes.reports import ROLES, Clock

from imagegen.server.ledger import Ledger


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    made = Ledger(tmp_path / "ledger.sqlite", clock)
    made.enter_nodes(ROLES)
    return made
