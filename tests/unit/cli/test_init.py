"""imagegen init: what it makes, for whom, and what it leaves alone."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from fakes.command_line import Output, files_below
from fakes.users import ALICE, MALLORY

from imagegen.base.errors import ExitCode, MachineLacks
from imagegen.cli import init
from imagegen.cli.run import run_command

FILES = ["ca.key", "ca.pem", "cluster.yaml", "secrets.yaml"]
IN_ORDER = ("cluster.yaml", "secrets.yaml", "ca.pem", "ca.key")


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
        ("link", "is a link owned by uid 12346"),
        ("link/demo", "is a link owned by uid 12346"),
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
    assert said in err and "choose another directory" in err
    assert files_below(sudo) == before


def test_a_link_of_ones_own_is_where_it_leads(tmp_path: Path, output: Output) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert run_command(["init", "-q", "link"]) == ExitCode.DONE
    assert files_below(tmp_path / "real") == FILES
    assert output()[0].splitlines()[0] == str(tmp_path / "real/cluster.yaml")


GROUPS = {"cluster.yaml": ["cluster.yaml"], "secrets.yaml": ["secrets.yaml"], "the CA": ["ca.pem", "ca.key"]}


@pytest.mark.parametrize("lost", [*combinations(GROUPS, 1), *combinations(GROUPS, 2)])
def test_what_is_missing_is_made_and_the_rest_stays(lost: tuple[str, ...], output: Output) -> None:
    """Whatever was lost, or is of a version that made less: this is the way out, and the cluster is whole again."""
    assert run_command(["init", "-q"]) == ExitCode.DONE
    names = [name for group in lost for name in GROUPS[group]]
    kept = {name: Path(name).read_bytes() for name in FILES if name not in names}
    for name in names:
        Path(name).unlink()
    output()
    assert run_command(["init"]) == ExitCode.DONE
    out, err = output()
    assert sorted(out.splitlines()) == sorted(names)
    assert f"made {' and '.join(names)}; kept {' and '.join(name for name in IN_ORDER if name in kept)}" in err
    assert ("they need new seeds" in err) == ("secrets.yaml" in lost)
    assert {name: Path(name).read_bytes() for name in kept} == kept
    assert run_command(["seed", "-q"]) == ExitCode.DONE


def test_no_directory_is_not_this_one(output: Output) -> None:
    """As from a variable that is not set."""
    assert run_command(["init", ""]) == ExitCode.BAD_INPUT
    assert "must not be empty" in output()[1]
    assert files_below(Path()) == []


def test_where_nothing_is_missing_nothing_is_made(output: Output) -> None:
    assert run_command(["init", "-q"]) == ExitCode.DONE
    before = {name: Path(name).read_bytes() for name in FILES}
    assert run_command(["init"]) == ExitCode.BAD_INPUT
    assert "refusing to overwrite cluster.yaml and secrets.yaml and ca.pem and ca.key" in output()[1]
    assert {name: Path(name).read_bytes() for name in FILES} == before


def test_secrets_of_another_name_are_not_missing(output: Output) -> None:
    assert run_command(["init", "-q"]) == ExitCode.DONE
    Path("secrets.yaml").rename("site.yaml")
    cluster = Path("cluster.yaml")
    cluster.write_text(cluster.read_text().replace("secrets: secrets.yaml", "secrets: site.yaml"))
    for name in GROUPS["the CA"]:
        Path(name).unlink()
    assert run_command(["init"]) == ExitCode.DONE
    assert files_below(Path()) == ["ca.key", "ca.pem", "cluster.yaml", "site.yaml"]
    assert "new seeds" not in output()[1]


@pytest.mark.parametrize("written", range(4))
def test_a_full_disk_leaves_nothing_of_what_init_made(
    written: int, monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    """Else the next try would find half of it. What was there stays."""
    Path("demo").mkdir()
    write = init.put_file

    def fill(directory: int, name: str, *rest: Any, **owner: Any) -> None:
        nonlocal written
        if written == 0:
            raise MachineLacks(f"cannot write {name}: the disk is full")
        written -= 1
        write(directory, name, *rest, **owner)

    monkeypatch.setattr(init, "put_file", fill)
    assert run_command(["init", "demo/new/deep"]) == ExitCode.MACHINE_LACKS
    assert "the disk is full" in output()[1]
    assert files_below(Path()) == ["demo"]
