"""imagegen init: what it makes, for whom, and what it leaves alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.command_line import Output, files_below

from imagegen.base.errors import ExitCode
from imagegen.cli.main import run_command

ALICE, MALLORY = 12345, 12346  # nobody's uids
FILES = ["ca.key", "ca.pem", "cluster.yaml", "secrets.yaml"]


@pytest.fixture
def sudo(root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Alice's directory, in which she calls sudo."""
    os.chown(tmp_path, ALICE, ALICE)
    monkeypatch.setenv("SUDO_UID", str(ALICE))
    monkeypatch.setenv("SUDO_GID", str(ALICE))
    return tmp_path


@pytest.mark.parametrize(("place", "made"), [("new/demo", True), ("roots", False), (".", False)])
def test_all_that_sudo_makes_is_the_callers(sudo: Path, place: str, made: bool) -> None:
    """Wherever it is: the same user goes on without sudo. What was there stays whose it was."""
    (sudo / "roots").mkdir()
    assert run_command(["init", "-q", place]) == ExitCode.DONE
    assert {(sudo / place / name).stat().st_uid for name in FILES} == {ALICE}
    assert not made or (sudo / place).stat().st_uid == (sudo / place).parent.stat().st_uid == ALICE
    assert (sudo / "roots").stat().st_uid == 0


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("mallorys", "user uid 12346 can write in"),
        ("mallorys/demo", "user uid 12346 can write in"),
        ("open", "every user can write in"),
        ("link", "is a link of user uid 12346"),
        ("link/demo", "is a link of user uid 12346"),
    ],
)
def test_where_another_user_can_write_no_secret_goes(sudo: Path, place: str, said: str, output: Output) -> None:
    """Nor through a link that another user planted."""
    for name in ("mallorys", "open", "precious"):
        (sudo / name).mkdir()
    os.chown("mallorys", MALLORY, MALLORY)
    Path("open").chmod(0o777)
    Path("link").symlink_to("precious")
    os.chown("link", MALLORY, MALLORY, follow_symlinks=False)
    before = files_below(sudo)
    assert run_command(["init", place]) == ExitCode.BAD_INPUT
    err = output()[1]
    assert said in err and "give another directory" in err
    assert files_below(sudo) == before


def test_a_link_of_ones_own_is_where_it_leads(tmp_path: Path, output: Output) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert run_command(["init", "-q", "link"]) == ExitCode.DONE
    assert files_below(tmp_path / "real") == FILES
    assert output()[0].splitlines()[0] == str(tmp_path / "real/cluster.yaml")
