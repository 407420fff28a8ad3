"""Under CI=true a skipped test is a failed one, and says why it could not run: a tier never passes by not running."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest


def fail_when_skipped(report: Any) -> None:
    """Turns a skip into a failure under CI. An expected failure is not a skip."""
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"CI=true allows no skips, and this was skipped: {reason.removeprefix('Skipped: ')}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_when_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_when_skipped(report)
    return report
