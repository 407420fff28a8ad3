"""The 27 items of the manual procedure, and the rule that the cluster tier proves every one of them in every run."""

from __future__ import annotations

from pathlib import Path

import pytest

ITEMS = {
    1: "the controller's packages",
    2: "api_database and database connections",
    3: "transport_url, as user openstack",
    4: "keystone is the API's auth strategy",
    5: "neutron options, where the release knows them",
    6: "VNC on the controller's address",
    7: "where the image service is",
    8: "lock_path",
    9: "osapi_compute and metadata answer",
    10: "how Nova reaches placement",
    11: "the web server serves placement",
    12: "API schema synced, as user nova",
    13: "cell0 mapped",
    14: "cell1 created",
    15: "main schemas synced",
    16: "list_cells: cell0 and cell1, right URLs",
    17: "both databases hold their tables",
    18: "controller services enabled and started",
    19: "nova and placement in the catalogue, three endpoints each",
    20: "the API lists the controller's services",
    21: "the compute's packages",
    22: "compute's nova.conf root:nova, without a database",
    23: "VNC on the compute",
    24: "virt_type by what the machine can do",
    25: "libvirtd, then nova-compute, enabled and started",
    26: "the API lists the compute service as up",
    27: "the host is discovered and mapped",
}


class ItemCoverage:
    """A pytest plugin: `@pytest.mark.item(12, 13)` on a test below `tier` says what it proves.

    A session that has to do with the tier fails unless each item has a test that ran and passed in it; its summary is
    a table of item, test and outcome. `some` (the option --some-items) keeps the table and drops the verdict.
    """

    def __init__(self, tier: Path, *, some: bool = False) -> None:
        self.tier = tier
        self.some = some
        self.touched = False
        self.checks: dict[int, list[str]] = {number: [] for number in ITEMS}
        self.outcomes: dict[str, str] = {}

    def unproven(self) -> list[int]:
        """The items that no test of this session proved."""
        return [n for n, tests in self.checks.items() if not any(self.outcomes.get(test) == "passed" for test in tests)]

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        named = (session.config.invocation_params.dir / argument.split("::")[0] for argument in session.config.args)
        self.touched = any(path.resolve().is_relative_to(self.tier) for path in named)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        numbers = [number for marker in item.iter_markers("item") for number in marker.args or (None,)]
        if unknown := [number for number in numbers if number not in ITEMS]:
            raise pytest.UsageError(f"{item.nodeid}: the procedure has the items 1 to {len(ITEMS)}, not {unknown}")
        if not item.path.is_relative_to(self.tier):
            return
        self.touched = True
        for number in numbers:
            self.checks[number].append(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = "expected to fail" if hasattr(report, "wasxfail") else report.outcome
        if report.when == "call" or outcome != "passed":
            self.outcomes[report.nodeid] = outcome

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        judged = self.touched and not self.some and not session.config.option.collectonly
        if judged and self.unproven() and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.touched or terminalreporter.config.option.collectonly:
            return
        terminalreporter.section("the procedure's items")
        for number, title in ITEMS.items():
            rows = [f"{test} {self.outcomes.get(test, 'did not run')}" for test in self.checks[number]]
            for row in rows or ["no check"]:
                terminalreporter.line(f"{number:2} {title:58} {row}")
        if unproven := self.unproven():
            numbers = ", ".join(map(str, unproven))
            terminalreporter.line(f"no check ran and passed for: {numbers}", red=True, bold=True)
            if not self.some:
                terminalreporter.line("this fails the run; --some-items is for running a part of the tier by hand")
