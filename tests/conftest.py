"""What holds for every tier: its markers, no skips under CI, and the check of the procedure's items."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from procedure import ItemCoverage

# A shell's background job ignores SIGINT, what nohup starts SIGHUP; both are inherited, by what the tests start too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest_plugins = ["pytester", "no_skips"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--some-items", action="store_true", help="a part of the cluster tier: do not fail for items left out"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "allow_process(*commands): a unit test that may start these commands")
    config.addinivalue_line("markers", "item(*numbers): what this test proves of the procedure's 27 items")
    tier = Path(__file__).parent / "cluster"
    config.pluginmanager.register(ItemCoverage(tier, some=config.getoption("some_items")))
