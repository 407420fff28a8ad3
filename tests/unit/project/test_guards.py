"""The guards of the test suite itself: each defect is planted, and must be caught."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pty
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import guards
import procedure
import pytest

# /bin/false: should the guard ever be broken, exec must not end the test run as if all were well.
PROCESS_STARTERS: dict[str, Callable[[], object]] = {
    "subprocess.run": lambda: subprocess.run(["true"]),
    "subprocess.Popen with a shell": lambda: subprocess.Popen("true", shell=True),
    "os.system": lambda: os.system("true"),
    "os.popen": lambda: os.popen("true"),
    "os.fork": os.fork,
    "pty.fork": pty.fork,
    "os.execv": lambda: os.execv("/bin/false", ["false"]),
    "os.execvp": lambda: os.execvp("false", ["false"]),
    "os.posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "os.spawnv": lambda: os.spawnv(os.P_WAIT, "/bin/true", ["true"]),
    "asyncio": lambda: asyncio.run(asyncio.create_subprocess_exec("true")),
    "multiprocessing": lambda: multiprocessing.get_context("fork").Process(target=print).start(),
}

NETWORK_USERS: dict[str, Callable[[], object]] = {
    "connect": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
    "bind": lambda: socket.socket().bind(("127.0.0.1", 0)),
    "sendto": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 9)),
    "getaddrinfo": lambda: socket.getaddrinfo("localhost", 80),
    "gethostbyname": lambda: socket.gethostbyname("localhost"),
}


@pytest.mark.parametrize("start", PROCESS_STARTERS.values(), ids=PROCESS_STARTERS)
def test_a_unit_test_starts_no_process(start: Callable[[], object]) -> None:
    """Every way to start a process raises, and no `except Exception` hides it."""
    with pytest.raises(guards.NotAllowed, match="would start a process"):
        try:
            start()
        except Exception as error:
            pytest.fail(f"an ordinary exception, which code under test could swallow: {error!r}")


@pytest.mark.parametrize("use", NETWORK_USERS.values(), ids=NETWORK_USERS)
def test_a_unit_test_uses_no_network(use: Callable[[], object]) -> None:
    """Names are not resolved and sockets reach nothing, not even this machine."""
    with pytest.raises(guards.NotAllowed, match="would use the network"):
        use()


def test_sockets_that_are_files_are_no_network(tmp_path: Path) -> None:
    """A test may talk to a machine's console over a UNIX socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert (tmp_path / "socket").is_socket()


@pytest.mark.allow_process("true")
def test_a_marker_allows_the_command_that_it_names() -> None:
    """The opt-in is for one command, by name or by path, and for no other."""
    assert subprocess.run(["true"]).returncode == 0
    assert subprocess.run(["/bin/true"]).returncode == 0
    with pytest.raises(guards.NotAllowed, match="false"):
        subprocess.run(["false"])


@pytest.mark.parametrize("marker", ["allow_process", "allow_process()", "allow_process(7)"])
def test_an_opt_in_without_a_command_is_refused(pytester: pytest.Pytester, marker: str) -> None:
    """An allow_process marker that names nothing ends the run as bad usage."""
    pytester.makeconftest("from guards import *")
    pytester.makepyfile(f"import pytest\n@pytest.mark.{marker}\ndef test_it(): pass\n")
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("*must name the commands*")


SKIPS = {
    "in the test": "def test_it(): pytest.skip('no ruff here')",
    "by a mark": "@pytest.mark.skip(reason='no ruff here')\ndef test_it(): pass",
    "of the module": "pytest.skip('no ruff here', allow_module_level=True)",
    "in a fixture": "@pytest.fixture\ndef ruff(): pytest.skip('no ruff here')\ndef test_it(ruff): pass",
}


@pytest.mark.parametrize("body", SKIPS.values(), ids=SKIPS)
@pytest.mark.parametrize("ci", ["true", ""])
def test_ci_allows_no_skips(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, body: str, ci: str) -> None:
    """A skip fails under CI=true and keeps its reason; elsewhere it stays a skip."""
    monkeypatch.setenv("CI", ci)
    pytester.makepyfile(f"import pytest\ndef test_other(): pass\n{body}\n")
    result = pytester.runpytest_inprocess("-p", "no_skips")
    assert (result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)) == (ci == "true")
    if ci:
        result.stdout.fnmatch_lines("*CI=true allows no skips*no ruff here*")


def test_ci_lets_expected_failures_be(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """An xfail is a statement about the code, not a test that could not run."""
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile("import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n")
    assert pytester.runpytest_inprocess("-p", "no_skips").ret == pytest.ExitCode.OK


def run_tier(pytester: pytest.Pytester, proven: str, *tests: str, arguments: tuple[str, ...] = ()) -> pytest.RunResult:
    """A small cluster tier: one test that proves the items `proven` (Python), and the given tests."""
    pytester.makeconftest(
        "from pathlib import Path\n"
        "from procedure import ItemCoverage\n"
        "def pytest_addoption(parser): parser.addoption('--some-items', action='store_true')\n"
        "def pytest_configure(config):\n"
        "    config.addinivalue_line('markers', 'item(*numbers): of the procedure')\n"
        "    some = config.getoption('some_items')\n"
        "    config.pluginmanager.register(ItemCoverage(Path(__file__).parent / 'cluster', some=some))\n"
    )
    tier = pytester.mkdir("cluster")
    source = ["import pytest", f"@pytest.mark.item(*{proven})", "def test_most(): pass", *tests]
    (tier / "test_tier.py").write_text("\n".join(source) + "\n")
    return pytester.runpytest_inprocess("cluster", "--strict-markers", *arguments)


BUT_12 = "(set(range(1, 28)) - {12})"

UNPROVEN = {
    "no test": "",
    "a failed test": "@pytest.mark.item(12)\ndef test_sync(): assert False",
    "a skipped test": "@pytest.mark.item(12)\ndef test_sync(): pytest.skip('no root')",
    "a deselected test": "@pytest.mark.item(12)\ndef test_slow(): pass",
    "an expected failure": "@pytest.mark.item(12)\n@pytest.mark.xfail\ndef test_sync(): assert False",
    "an unexpected pass": "@pytest.mark.item(12)\n@pytest.mark.xfail\ndef test_sync(): pass",
    "a broken fixture": "@pytest.fixture\ndef node(): 1 / 0\n@pytest.mark.item(12)\ndef test_sync(node): pass",
    "a broken teardown": "@pytest.fixture\ndef node():\n    yield\n    1 / 0\n"
    "@pytest.mark.item(12)\ndef test_sync(node): pass",
}


def test_a_tier_that_proves_every_item_passes(pytester: pytest.Pytester) -> None:
    """27 items with a passed check each: the run passes and its table names the checks."""
    result = run_tier(pytester, "range(1, 28)")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines("12 API schema synced*test_tier.py::test_most passed")
    result.stdout.no_fnmatch_line("*no check ran and passed*")


@pytest.mark.parametrize("test", UNPROVEN.values(), ids=UNPROVEN)
def test_an_item_without_a_passed_check_fails_the_tier(pytester: pytest.Pytester, test: str) -> None:
    """An item counts only when a check of it ran and passed in this run."""
    result = run_tier(pytester, BUT_12, test, arguments=("-k", "not slow"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("no check ran and passed for: 12")


def test_one_passed_check_of_several_is_enough(pytester: pytest.Pytester) -> None:
    """A second check of the same item that did not run takes nothing away."""
    result = run_tier(pytester, "range(1, 28)", "@pytest.mark.item(12)\ndef test_more(): pytest.skip('later')")
    assert result.ret == pytest.ExitCode.OK


def test_an_empty_tier_fails(pytester: pytest.Pytester) -> None:
    """A tier whose tests are all deselected, or gone, proves nothing."""
    result = run_tier(pytester, "range(1, 28)", arguments=("-k", "nothing"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("no check ran and passed for: 1, 2, 3, *")


def test_a_part_of_the_tier_can_be_run_by_hand(pytester: pytest.Pytester) -> None:
    """--some-items shows the table and leaves the verdict to the tests that ran."""
    result = run_tier(pytester, BUT_12, arguments=("--some-items",))
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines("12 API schema synced*no check")


@pytest.mark.parametrize("number", ["0", "28", "'12'", ""])
def test_a_marker_names_items_of_the_procedure(pytester: pytest.Pytester, number: str) -> None:
    """A number that the procedure does not have ends the run as bad usage."""
    result = run_tier(pytester, BUT_12, f"@pytest.mark.item({number})\ndef test_sync(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_the_procedure_has_27_items() -> None:
    """They are numbered from 1 without a gap."""
    assert list(procedure.ITEMS) == list(range(1, 28))
