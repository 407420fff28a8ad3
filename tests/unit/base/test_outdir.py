"""The out directory: who may own it, what in it is replaced, what is removed, and one command at a time."""

from __future__ import annotations

import ast
import errno
import grp
import inspect
import os
import pwd
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.users import ALICE, MALLORY
from netboot_images import make_images, make_loaders
from repository import read_modules

from imagegen.base import outdir, owners
from imagegen.base.errors import BadUsage, ExitCode
from imagegen.base.lock import hold_lock
from imagegen.base.marks import EARLIER, MARK, remove_old_seeds
from imagegen.base.outdir import keep_closed
from imagegen.base.owners import find_caller, find_place
from imagegen.cli.run import run_command
from imagegen.local import boot
from imagegen.server import provisioning

WRITERS = (["generate"], ["seed"], ["pxe"], ["baremetal"])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `imagegen init` writes."""
    place = tmp_path_factory.mktemp("inputs")
    assert run_command(["init", "-q", os.fspath(place)]) == ExitCode.DONE
    return place


@pytest.fixture
def here(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with inputs and iPXE's files."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("imagegen.cli.pxe.IPXE", make_loaders(tmp_path / "ipxe-package"))
    return tmp_path


@pytest.fixture
def sudo(here: Path, sudo: Path) -> Path:
    """As everywhere, with the inputs."""
    return here


def owners_below(place: Path) -> set[int]:
    return {path.lstat().st_uid for path in (place, *place.rglob("*"))}


# whose it is


@pytest.mark.parametrize(
    ("uid", "given", "caller"),
    [
        (0, {"SUDO_UID": "7", "SUDO_GID": "8"}, 7),
        (0, {}, 0),
        (0, {"SUDO_UID": "7"}, 0),
        (0, {"SUDO_UID": "-1", "SUDO_GID": "8"}, 0),
        (0, {"SUDO_UID": "4294967295", "SUDO_GID": "8"}, 0),  # chown(2): -1 changes nothing
        (0, {"SUDO_UID": "7", "SUDO_GID": "4294967295"}, 0),
        (0, {"SUDO_UID": "4294967294", "SUDO_GID": "4294967294"}, 4294967294),
        (0, {"SUDO_UID": "1786201105", "SUDO_GID": "1786200513"}, 1786201105),  # as SSSD gives them
        (0, {"SUDO_UID": "9999999999", "SUDO_GID": "8"}, 0),
        (0, {"SUDO_UID": "\u0661", "SUDO_GID": "8"}, 0),
        (0, {"SUDO_UID": "root", "SUDO_GID": "root"}, 0),
        (5, {"SUDO_UID": "7", "SUDO_GID": "8"}, 5),  # the variables are anybody's to set
    ],
)
def test_the_caller_is_who_called_sudo(
    monkeypatch: pytest.MonkeyPatch, uid: int, given: dict[str, str], caller: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert find_caller(given)[0] == caller


@pytest.mark.parametrize("command", WRITERS)
def test_all_that_sudo_makes_is_the_callers(sudo: Path, command: list[str]) -> None:
    """The same user goes on without sudo."""
    if command[0] in ("pxe", "baremetal"):
        make_images(sudo / "out")
        for path in (sudo / "out", *(sudo / "out").rglob("*")):
            os.chown(path, ALICE, ALICE)
    assert run_command([*command, "-q"]) == ExitCode.DONE
    assert owners_below(sudo / "out") == {ALICE}


def test_an_out_that_root_made_is_handed_over(sudo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo imagegen build` of the version before left it as root's."""
    with monkeypatch.context() as patch:
        patch.delenv("SUDO_UID")
        os.chown(sudo, 0, 0)
        assert run_command(["generate", "-q"]) == ExitCode.DONE
        assert owners_below(sudo / "out") == {0}
    os.chown(sudo, ALICE, ALICE)
    assert run_command(["generate", "-q"]) == ExitCode.DONE
    assert owners_below(sudo / "out") == {ALICE}


def test_a_directory_of_roots_with_other_things_is_not_handed_over(sudo: Path) -> None:
    """`-o /` must not make / anybody's."""
    place = sudo / "srv"
    (place / "www").mkdir(parents=True)
    assert run_command(["seed", "-q", "-o", "srv"]) == ExitCode.DONE
    assert place.stat().st_uid == (place / "www").stat().st_uid == 0


@pytest.mark.parametrize(
    ("command", "name", "code"),
    [
        ("seed", "out", ExitCode.BAD_INPUT),
        ("seed", "out/.imagegen", ExitCode.BAD_INPUT),
        ("generate", "out/elements", ExitCode.BAD_INPUT),
        ("generate", "out/images.yaml", ExitCode.BAD_INPUT),
        ("generate", "out/seeds", ExitCode.BAD_INPUT),
        ("pxe", "out/pxe", ExitCode.BAD_INPUT),
        ("pxe", "out/images", ExitCode.BAD_INPUT),
        ("baremetal", "out/metal3", ExitCode.BAD_INPUT),
        ("seed", "out/pxe", ExitCode.DONE),  # which it has nothing to do with
        ("seed", "out/seeds/linux-node1.iso", ExitCode.BAD_INPUT),
    ],
)
def test_no_command_writes_through_a_planted_link(
    sudo: Path, command: str, name: str, code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing changes where it leads, and the message names it."""
    make_images(sudo / "out")
    victim = sudo / "etc"
    (victim / "linux-node1").mkdir(parents=True)
    (victim / "passwd").write_text("root\n")
    link = sudo / name
    link.parent.mkdir(exist_ok=True)
    if link.suffix == ".iso":
        (link.parent / MARK).touch()
    if link.exists():
        link.rename(sudo / "moved")
    link.symlink_to(victim / ("passwd" if "." in link.name else ""))
    os.chown(link, MALLORY, MALLORY, follow_symlinks=False)
    before = sorted(victim.rglob("*"))
    assert run_command([command, "-q"]) == code
    assert sorted(victim.rglob("*")) == before
    assert (victim / "passwd").read_text() == "root\n"
    assert link.is_symlink()
    assert code == ExitCode.DONE or link.name in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["lock", "ledger.sqlite", "ledger.sqlite-wal", "server.key", ".server.key.imagegen-new"]
)
def test_serve_writes_through_no_planted_link(sudo: Path, name: str) -> None:
    """The kind of the issue: out/serve/lock -> /etc/passwd."""
    (sudo / "passwd").write_text("root\n")
    serve = sudo / "out/serve"
    serve.mkdir(parents=True)
    (serve / MARK).touch()
    (serve / name).symlink_to(sudo / "passwd")
    try:
        with provisioning.hold_directory(sudo / "out", print) as alone:
            assert alone
            provisioning.check_ledger(serve / provisioning.LEDGER, make=True)
        assert name in ("server.key", ".server.key.imagegen-new")
    except BadUsage as error:
        assert name in error.message
    assert (sudo / "passwd").read_text() == "root\n"


def test_the_ledger_and_what_sqlite_adds_are_the_callers(sudo: Path) -> None:
    """`imagegen status` works for the user while `sudo imagegen serve` runs, and afterwards."""
    with provisioning.hold_directory(sudo / "out", print):
        place = sudo / "out/serve" / provisioning.LEDGER
        provisioning.check_ledger(place, make=True)
        ledger = provisioning.Ledger(place)
        ledger.enter_nodes({"linux-node1": "controller"})
        assert {path.name for path in place.parent.iterdir()} >= {"ledger.sqlite-wal", "ledger.sqlite-shm", "lock"}
        assert owners_below(sudo / "out") == {ALICE}
        ledger.close()


def test_boot_closes_its_directory_to_the_user_and_gives_it_back(sudo: Path) -> None:
    """Trees of nodes are made and removed by root: the user can put nothing there meanwhile."""
    place = sudo / "out/boot"
    (place / "linux-node1").mkdir(parents=True)
    (place / "lock").touch()
    (sudo / "precious/tree").mkdir(parents=True)
    (place / "link").symlink_to(sudo / "precious")
    for path in (sudo / "out", place, *place.iterdir()):
        os.chown(path, ALICE, ALICE, follow_symlinks=False)
    with boot.hold_directory(place, print):
        assert place.stat().st_uid == (place / "linux-node1").stat().st_uid == 0
        assert place.stat().st_mode & 0o777 == 0o700
        assert not (place / "link").is_symlink()
        boot.remove_leftovers(place)
        (place / "linux-node1/console.log").touch()
    assert owners_below(place) == {ALICE}
    assert (sudo / "precious/tree").is_dir()
    with boot.hold_directory(place, print):
        (place / boot.nspawn.STATE).touch()
    assert place.stat().st_uid == 0, "kept nodes need their files' owners"
    with boot.hold_directory(place, print):
        (place / boot.nspawn.STATE).unlink()
    assert owners_below(place) == {ALICE}


def test_what_is_given_back_is_no_file_of_elsewhere(sudo: Path) -> None:
    """A hard link in a user's directory may be to a file of root's."""
    place = sudo / "out/boot"
    place.mkdir(parents=True)
    (sudo / "shadow").touch()
    os.link(sudo / "shadow", place / "log")
    os.chown(place.parent, ALICE, ALICE)
    with keep_closed(place, lambda: False):
        pass
    assert place.stat().st_uid == ALICE
    assert (sudo / "shadow").stat().st_uid == 0


def test_status_reads_no_ledger_through_a_link(here: Path) -> None:
    """SQLite would make the file that the link leads to, as root."""
    (here / "out/serve").mkdir(parents=True)
    (here / "out/serve" / provisioning.LEDGER).symlink_to(here / "elsewhere.sqlite")
    assert run_command(["status", "-q"]) == ExitCode.BAD_INPUT
    assert not (here / "elsewhere.sqlite").exists()


# what others can change


@pytest.mark.parametrize(
    ("uid", "mode", "said"),
    [
        (MALLORY, 0o755, "user uid 12346 can write in"),
        (0, 0o777, "every user can write in"),
        (0, 0o1777, ""),
        (0, 0o755, ""),
        (ALICE, 0o755, ""),
        (ALICE, 0o775, "group 12345 can write in"),  # which nobody knows the members of
    ],
)
@pytest.mark.parametrize("below", ["out", "deep/out"])
def test_a_place_that_others_can_change_is_refused(
    sudo: Path, uid: int, mode: int, said: str, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it is on the way; /tmp with its sticky bit is no such place. Nothing is written there."""
    place = sudo / "place"
    (place / below).parent.mkdir(parents=True)
    os.chown(place, uid, ALICE)
    place.chmod(mode)
    code = run_command(["seed", "-q", "-o", os.fspath(place / below)])
    err = capsys.readouterr().err
    assert said in err and (not said or f"{place}, and so change" in err)
    assert code == (ExitCode.BAD_INPUT if said else ExitCode.DONE)
    assert (place / below).exists() == (not said)


def test_out_itself_must_not_be_open_even_with_the_sticky_bit(here: Path) -> None:
    """Anybody could put a link there."""
    (here / "out").mkdir()
    (here / "out").chmod(0o1777)
    with pytest.raises(BadUsage, match="every user can write"):
        find_place(Path("out"))


@pytest.mark.usefixtures("root")
def test_a_group_counts_by_its_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own group, as of umask 002, is nobody else; an operators' group is."""
    tmp_path.chmod(0o775)
    users = {"root": 0, "alice": ALICE, "bob": MALLORY}
    monkeypatch.setattr(
        pwd, "getpwall", lambda: [SimpleNamespace(pw_name=n, pw_uid=u, pw_gid=u) for n, u in users.items()]
    )
    members: list[str] = []
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name="ops", gr_mem=members))
    os.chown(tmp_path, ALICE, ALICE)
    assert find_place(tmp_path, ALICE) == tmp_path
    members += ["alice", "bob", "gone"]
    with pytest.raises(BadUsage, match=r"group ops \(bob, gone\) can write"):
        find_place(tmp_path, ALICE)
    os.chown(tmp_path, ALICE, MALLORY)
    members.clear()
    with pytest.raises(BadUsage, match=r"group ops \(bob\) can write"):
        find_place(tmp_path, ALICE)


def set_acl(place: Path, monkeypatch: pytest.MonkeyPatch, *named: tuple[int, int, int], mask: int, group: int) -> None:
    """Gives the directory an ACL: tag, permissions and id of those whom it names. On a file system without, as if."""
    none = 0xFFFFFFFF
    entries = [(0x01, 7, none), *named, (0x04, group, none), (0x10, mask, none), (0x20, 5, none)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in sorted(entries))
    try:
        os.setxattr(place, owners.ACL, value)
    except OSError as error:
        assert error.errno == errno.ENOTSUP
        place.chmod(0o705 | mask << 3)
        monkeypatch.setattr(os, "getxattr", lambda path, name: value if path == place else b"")
    assert place.stat().st_mode & 0o070 == mask << 3


@pytest.mark.parametrize(
    ("named", "mask", "group", "said"),
    [
        ((0x02, 7, MALLORY), 7, 5, "user uid 12346, by an ACL, can write in"),
        ((0x08, 3, MALLORY), 7, 5, "group 12346, by an ACL, can write in"),
        ((0x02, 5, MALLORY), 7, 5, ""),  # reads only
        ((0x02, 7, MALLORY), 5, 5, ""),  # the mask takes it away
        ((0x02, 7, ALICE), 7, 5, ""),  # the caller
        ((0x08, 5, MALLORY), 7, 7, "group 12345 can write in"),  # the directory's own group
    ],
)
@pytest.mark.parametrize("below", ["", "deep"])
def test_an_acl_counts_by_its_entries(
    sudo: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: tuple[int, int, int],
    mask: int,
    group: int,
    said: str,
    below: str,
) -> None:
    """The mode shows but the mask, as if the directory's own group might write, which has no other member."""
    place = sudo / "place"
    place.mkdir()
    os.chown(place, ALICE, ALICE)
    set_acl(place, monkeypatch, named, mask=mask, group=group)
    if not said:
        assert find_place(place / below) == place / below
        return
    with pytest.raises(BadUsage, match=said) as caught:
        find_place(place / below)
    assert (f"`setfacl -b {place}`" if "ACL" in said else f"`chmod g-w {place}`") in caught.value.hint


def test_an_out_that_is_a_link_of_ones_own_is_where_it_leads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Large disks are elsewhere. What was written is named where it is."""
    (here / "big/imagegen").mkdir(parents=True)
    (here / "out").symlink_to("big/../big")
    assert run_command(["seed", "-q", "-o", "out/imagegen"]) == ExitCode.DONE
    assert capsys.readouterr().out.splitlines()[0] == os.fspath(here / "big/imagegen/seeds/linux-node1.iso")
    (here / "big/loop").symlink_to("loop")
    with pytest.raises(BadUsage, match="loop is a link"):
        find_place(here / "big/loop")


def test_no_out_is_no_directory(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty variable in a script is not this directory."""
    before = sorted(here.rglob("*"))
    for argv in (["generate", "-o", ""], ["--out=", "seed"]):
        assert run_command(argv) == ExitCode.BAD_INPUT
        assert "must not be empty" in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


def test_what_holds_secrets_is_closed_to_others(here: Path) -> None:
    """Also when somebody made the directory beforehand."""
    for name in ("seeds", "boot", "serve"):
        (here / "out" / name).mkdir(parents=True)
        (here / "out" / name).chmod(0o755)
    assert run_command(["seed", "-q"]) == ExitCode.DONE
    with boot.hold_directory(here / "out/boot", print), provisioning.hold_directory(here / "out", print):
        for name in ("seeds", "boot", "serve"):
            assert (here / "out" / name).stat().st_mode & 0o777 == 0o700


# what is replaced


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("generate", ["elements/own/README", "seeds/tomatoes.txt"]),
        ("generate", ["elements/imagegen-base/README.rst"]),
        ("generate", ["seeds/linux-node1/user-data"]),
        ("generate", ["images.yaml"]),
        ("seed", ["seeds/linux-node1.iso"]),
        ("pxe", ["pxe/boot.ipxe", "pxe/dnsmasq.conf"]),
        ("baremetal", ["metal3/linux-node1.yaml"]),
        ("baremetal", ["ironic/nodes.yaml"]),
    ],
)
@pytest.mark.parametrize("out", [".", "out"])
def test_what_imagegen_did_not_make_stops_it(
    here: Path, command: str, names: list[str], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything foreign is named, and nothing is written before."""
    make_images(here / out)
    for name in names:
        (here / out / name).parent.mkdir(parents=True, exist_ok=True)
        (here / out / name).write_text("mine\n")
    before = sorted(here.rglob("*"))
    assert run_command([command, "-q", "-o", out]) == ExitCode.BAD_INPUT
    assert sorted(here.rglob("*")) == before
    err = capsys.readouterr().err
    for name in names:
        assert os.fspath(Path(out, name.split("/")[0])) in err
        assert (here / out / name).read_text() == "mine\n"


@pytest.mark.parametrize(
    ("command", "name", "foreign"),
    [
        ("generate", "elements/my-own/element-deps", "elements/my-own"),
        ("generate", "elements/imagegen-base/notes.txt", ""),
        ("generate", "elements/.git/config", "elements/.git"),
        ("generate", "seeds/linux-node1/notes.txt", ""),
        ("generate", "seeds/linux-node1/vendor-data", ""),
        ("seed", "seeds/linux-node1.iso", ""),
        ("pxe", "pxe/memtest.bin", ""),
        ("pxe", "pxe/images/debian.raw", ""),
        ("pxe", "pxe/images/current/debian.raw", "pxe/images/current"),
        ("baremetal", "metal3/bmc.yaml", ""),
        ("baremetal", "ironic/configdrive/linux-node1/notes.txt", ""),
    ],
)
@pytest.mark.parametrize("out", [".", "out"])
def test_what_others_put_into_a_directory_of_imagegens_stops_it(
    here: Path, command: str, name: str, foreign: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mark says what imagegen made there; the rest would be gone without a word."""
    make_images(here / out)
    assert run_command([command, "-q", "-o", out]) == ExitCode.DONE
    (here / out / name).parent.mkdir(exist_ok=True)
    (here / out / name).write_text("mine")
    before = {path: path.stat().st_ino for path in here.rglob("*")}
    capsys.readouterr()
    assert run_command([command, "-q", "-o", out]) == ExitCode.BAD_INPUT
    assert f"imagegen did not make {Path(out, foreign or name)}, and" in capsys.readouterr().err
    assert {path: path.stat().st_ino for path in here.rglob("*")} == before
    assert (here / out / name).read_text() == "mine"


def test_of_many_foreign_files_the_first_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["generate", "-q"]) == ExitCode.DONE
    for number in range(30):
        (here / f"out/elements/{number:02}").touch()
    capsys.readouterr()
    assert run_command(["generate", "-q"]) == ExitCode.BAD_INPUT
    assert "out/elements/08 and out/elements/09 and 20 more" in capsys.readouterr().err


def test_a_link_or_a_directory_in_the_place_of_a_file_is_foreign(here: Path) -> None:
    """The list names what lies there, and a directory may hold anything."""
    assert run_command(["generate", "-q"]) == ExitCode.DONE
    base = here / "out/elements/imagegen-base"
    base.rename(here / "moved")
    base.symlink_to("../../moved")
    assert run_command(["generate", "-q"]) == ExitCode.BAD_INPUT
    base.unlink()
    (here / "moved").rename(base)
    (base / "README.rst").rename(here / "README.rst")
    (base / "README.rst").mkdir()
    assert run_command(["generate", "-q"]) == ExitCode.BAD_INPUT
    (base / "README.rst").rmdir()
    (base / "README.rst").symlink_to(here / "README.rst")
    assert run_command(["generate", "-q"]) == ExitCode.BAD_INPUT


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("marked", ["with a list", "by an earlier version", "not at all"])
def test_what_imagegen_made_is_replaced(here: Path, command: list[str], marked: str) -> None:
    """Also by a version that wrote no marks, or no lists in them."""
    make_images(here / "out")
    assert run_command([*command, "-q"]) == ExitCode.DONE
    written = {path: path.stat().st_ino for path in (here / "out").rglob("*.y*ml") if path.is_file()}
    for mark in list((here / "out").rglob(MARK)):
        if marked == "by an earlier version":
            mark.write_text("imagegen made this directory and replaces what is in it.\n")
        elif marked == "not at all":
            mark.unlink()
    assert run_command([*command, "-q"]) == ExitCode.DONE
    assert all(path.stat().st_ino != before for path, before in written.items())
    assert all((path / MARK).is_file() for path in (here / "out").iterdir() if path.is_dir() and path.name != "images")


def test_every_name_is_known_of_earlier_versions() -> None:
    """A directory that is written to and could not be told from a foreign one would be taken for it."""
    assert {*outdir.KEPT} - {"seeds"} < {*EARLIER}


def test_a_killed_runs_halves_are_removed(here: Path) -> None:
    """They hold secrets."""
    assert run_command(["generate", "-q"]) == ExitCode.DONE
    for name in (".elements.imagegen-new", ".elements.imagegen-old", "seeds/.linux-node9.imagegen-new"):
        (here / "out" / name).mkdir()
        (here / "out" / name / "user-data").write_text("secret")
    (here / "out/seeds/.linux-node1.iso.imagegen-new").write_text("secret")
    assert run_command(["generate", "-q"]) == ExitCode.DONE
    assert sorted(p.name for p in (here / "out").iterdir()) == [MARK, "elements", "images.yaml", "seeds"]
    assert sorted(p.name for p in (here / "out/seeds").iterdir()) == [MARK, "linux-node1", "linux-node2"]


@pytest.mark.parametrize(
    "name", [".elements.old", ".elements.new", ".seeds.old", ".mine.new", "seeds/.my.old", "seeds/.linux-node1.new"]
)
def test_nobody_elses_leftovers_are_removed(here: Path, name: str) -> None:
    """Editors and people name what they keep so, too."""
    assert run_command(["generate", "-q"]) == ExitCode.DONE
    (here / "out" / name).mkdir()
    (here / "out" / name / "notes.txt").write_text("mine")
    assert run_command(["generate", "-q"]) == ExitCode.DONE
    assert (here / "out" / name / "notes.txt").read_text() == "mine"


# seeds of nodes that are no more


def test_seeds_of_nodes_that_are_no_more_go(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Directory and ISO, said in a line each; a command for one node leaves others', all leave what is no seed."""
    assert run_command(["generate", "-q"]) == run_command(["seed", "-q"]) == ExitCode.DONE
    cluster = here / "cluster.yaml"
    cluster.write_text(cluster.read_text().replace("linux-node2", "renamed"))
    (here / "out/seeds/notes.txt").write_text("mine")
    (here / "out/seeds/debian.iso").write_bytes(b"x" * 40000)
    assert run_command(["seed", "-q", "renamed"]) == ExitCode.DONE
    assert (here / "out/seeds/linux-node2.iso").is_file()
    capsys.readouterr()
    assert run_command(["seed"]) == ExitCode.DONE
    err = capsys.readouterr().err
    for name in ("linux-node2", "linux-node2.iso"):
        assert f"removed out/seeds/{name}: cluster.yaml has no such node" in err
    left = ["debian.iso", "linux-node1", "linux-node1.iso", "notes.txt", "renamed.iso"]
    assert sorted(p.name for p in (here / "out/seeds").iterdir()) == [MARK, *left]


def test_generate_removes_old_seeds_and_keeps_the_nodes_isos(here: Path) -> None:
    assert run_command(["generate", "-q"]) == run_command(["seed", "-q"]) == ExitCode.DONE
    cluster = here / "cluster.yaml"
    cluster.write_text(cluster.read_text().replace("linux-node2", "renamed"))
    assert run_command(["generate", "-q"]) == ExitCode.DONE
    left = ["linux-node1", "linux-node1.iso", "renamed"]
    assert sorted(p.name for p in (here / "out/seeds").iterdir()) == [MARK, *left]


def test_other_files_of_old_nodes_go(here: Path) -> None:
    """Config drives and Secrets hold the same secrets."""
    make_images(here / "out")
    assert run_command(["baremetal", "-q"]) == ExitCode.DONE
    cluster = here / "cluster.yaml"
    cluster.write_text(cluster.read_text().replace("linux-node2", "renamed"))
    assert run_command(["baremetal", "-q"]) == ExitCode.DONE
    assert [path for path in (here / "out").rglob("*") if "linux-node2" in path.name] == []


@pytest.mark.parametrize(
    "argv", [["generate"], ["seed"], ["baremetal", "--ironic"], ["baremetal", "--metal3"], ["baremetal"]]
)
@pytest.mark.parametrize("listed", [True, False])
def test_secrets_of_old_nodes_go_wherever_they_are(
    here: Path, argv: list[str], listed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only where the command writes: config drives and Secrets hold what seeds do. Others' files stay."""
    make_images(here / "out")
    for command in ("generate", "seed", "baremetal"):
        assert run_command([command, "-q"]) == ExitCode.DONE
    if not listed:
        for name in ("ironic", "metal3"):
            (here / "out" / name / MARK).unlink()
    cluster = here / "cluster.yaml"
    secrets = [path for path in (here / "out").rglob("*") if is_of(path, "linux-node2")]
    assert {path.parent.name for path in secrets} >= {"seeds", "configdrive", "metal3"}
    cluster.write_text(cluster.read_text().replace("linux-node2", "renamed"))
    capsys.readouterr()
    assert run_command(argv) == ExitCode.DONE
    assert [path for path in (here / "out").rglob("*") if is_of(path, "linux-node2")] == []
    assert all((here / "out" / name).exists() for name in ("ironic/configdrive/linux-node1.iso", "seeds/linux-node1"))
    err = capsys.readouterr().err
    for name in ("seeds/linux-node2.iso", "ironic/configdrive/linux-node2", "metal3/linux-node2.yaml"):
        replaced = argv == ["baremetal"] or name.split("/")[0] == argv[-1].removeprefix("--")
        assert (f"removed out/{name}: cluster.yaml has no such node" in err) == (not replaced or "seeds" in name)


def is_of(path: Path, node: str) -> bool:
    """Whether it is a node's and holds secrets, of which Ironic's instance-info has none."""
    return path.name.partition(".")[0] == node and path.parent.name != "instance-info"


def test_what_others_put_beside_old_nodes_stays(here: Path) -> None:
    """imagegen removes what it made, and no directory with anything else in it."""
    make_images(here / "out")
    assert run_command(["baremetal", "-q"]) == run_command(["generate", "-q"]) == ExitCode.DONE
    mine = [
        here / "out/ironic/configdrive/linux-node2/notes.txt",
        here / "out/metal3/bmc.yaml",
        here / "out/seeds/debian.iso",
    ]
    for path in mine:
        path.write_bytes(b"x" * 32808 + b"cidata  ")
    cluster = here / "cluster.yaml"
    cluster.write_text(cluster.read_text().replace("linux-node2", "renamed"))
    assert run_command(["generate", "-q"]) == ExitCode.DONE
    assert all(path.exists() for path in mine)
    assert not (here / "out/ironic/configdrive/linux-node2/openstack").exists()
    for name in ("ironic", "metal3"):
        (here / "mine" / name).parent.mkdir(exist_ok=True)
        (here / "out" / name).rename(here / "mine" / name)
        (here / "out" / name).symlink_to(here / "mine" / name)
    before = sorted((here / "mine").rglob("*"))
    cluster.write_text(cluster.read_text().replace("linux-node1", "renamed1"))
    assert run_command(["generate", "-q"]) == ExitCode.DONE
    assert sorted((here / "mine").rglob("*")) == before


def test_what_a_command_does_not_write_does_not_stop_it(here: Path) -> None:
    """A foreign file called `seeds` is none of the business of `baremetal`."""
    make_images(here)
    for name in ("seeds", "metal3"):
        (here / name).write_text("mine")
    assert run_command(["baremetal", "--ironic", "-q", "-o", "."]) == ExitCode.DONE
    assert [(here / name).read_text() for name in ("seeds", "metal3")] == ["mine", "mine"]


def test_a_link_is_no_old_seed(tmp_path: Path) -> None:
    """What it leads to may be anything."""
    (tmp_path / "seed").mkdir()
    (tmp_path / "seed/meta-data").write_text("imagegen: {}\n")
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds/old").symlink_to("../seed")
    assert remove_old_seeds(tmp_path / "seeds", []) == []
    (tmp_path / "seed").rename(tmp_path / "seeds/old-node")
    assert remove_old_seeds(tmp_path / "seeds", []) == [tmp_path / "seeds/old-node"]


# one command at a time


@pytest.mark.parametrize("command", WRITERS)
def test_a_second_command_waits_and_says_for_whom(
    here: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes nothing meanwhile, and gives up in the end."""
    make_images(here / "out")
    monkeypatch.setattr(outdir, "WAIT_SECONDS", 0.05)
    before = sorted((here / "out").rglob("*"))
    with hold_lock(here / "out" / MARK, "build"):
        assert run_command(command) == ExitCode.FAILED
    err = capsys.readouterr().err
    assert f"another imagegen (pid {os.getpid()}, `build`) is working in out; waiting for it" in err
    assert "is still working in out" in err
    assert [path for path in sorted((here / "out").rglob("*")) if path.name != MARK] == before
    assert run_command([*command, "-q"]) == ExitCode.DONE


@pytest.mark.parametrize("argv", [["serve"], ["serve", "--no-seeds"]])
def test_a_server_says_for_whom_it_waits(
    here: Path, argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody wonders for ten minutes why nothing happens."""
    (here / "out").mkdir()
    monkeypatch.setattr(outdir, "WAIT_SECONDS", 0.05)
    with hold_lock(here / "out" / MARK, "seed"):
        assert run_command(argv) == ExitCode.FAILED
    err = capsys.readouterr().err
    assert f"another imagegen (pid {os.getpid()}, `seed`) is working in out; waiting for it" in err


@pytest.mark.parametrize(
    ("wait", "name"),
    [(outdir.work_in, "say"), (boot.hold_directory, "report"), (provisioning.hold_directory, "say")],
)
def test_nobody_waits_without_a_word(wait: Callable[..., object], name: str) -> None:
    """Whom to tell is no caller's to leave out."""
    assert inspect.signature(wait).parameters[name].default is inspect.Parameter.empty


@pytest.mark.parametrize("hold", [lambda out, say: boot.hold_directory(out / "boot", say), provisioning.hold_directory])
def test_what_runs_long_does_not_hold_others_up(here: Path, hold: Callable[..., object]) -> None:
    """A server runs for days beside `seed` and `pxe`."""
    with hold(here / "out", print):  # type: ignore[attr-defined]
        assert run_command(["seed", "-q"]) == ExitCode.DONE


# where effects are

# Calls that write, make or remove by path, and so follow links.
BY_PATH = {"write_text", "write_bytes", "mkdir", "touch", "rename", "replace", "unlink", "rmdir", "symlink_to", "chmod"}
BY_PATH |= {"hardlink_to", "copyfile", "copytree", "rmtree", "makedirs", "truncate"}
# Modules that work in places that are root's alone, with what they may do there.
ELSEWHERE = {
    "images.build": {"mkdir", "rename", "touch", "unlink", "rmtree"},  # the cache, which find_cache() looked at
    "images.cache": {"rmtree"},
    "images.dib": {"mkdir", "write_text", "chmod"},
    "images.disk": {"mkdir", "unlink", "symlink_to", "replace", "write_text", "truncate", "open"},
    "images.network_formats": {"copyfile"},
    "local.nspawn": {"mkdir", "rmdir", "write_text"},  # control groups
    "local.switch": {"unlink", "replace"},  # its socket, in out/boot, which keep_closed() holds
}


def find_by_path(source: str) -> set[str]:
    """The names of calls that change files by path: methods of Path, functions of shutil, open() to write."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        words = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        if name == "open" and any(set(word) <= set("rwaxbt+") and set(word) & set("wax+") for word in words):
            found.add("open")
        # dataclasses.replace and str.replace take other arguments than Path.replace, which takes one.
        elif name in BY_PATH and not (name == "replace" and (len(node.args) != 1 or node.keywords)):
            found.add(name)
    return found


def test_only_what_works_elsewhere_changes_files_by_path() -> None:
    """All else goes through handles, tree, lock and outdir."""
    effects = {f"base.{name}" for name in ("handles", "tree", "lock", "outdir", "marks")}
    modules = {name: find_by_path(source) for name, source in read_modules().items() if name not in effects}
    assert set(ELSEWHERE) <= set(modules)
    faults = {name: found for name, each in modules.items() if (found := each - ELSEWHERE.get(name, set()))}
    assert faults == {}


@pytest.mark.parametrize(
    "source",
    [
        "path.write_text('x')",
        "(out / 'logs').mkdir(parents=True)",
        "path.open('wb')",
        "open(path, 'a')",
        "beside.replace(path)",
        "shutil.rmtree(path)",
    ],
)
def test_a_planted_write_is_found(source: str) -> None:
    assert find_by_path(source)


@pytest.mark.parametrize(
    "source", ["path.open('rb')", "text.replace('a', 'b')", "replace(cluster, nodes=())", "open(p)"]
)
def test_reading_is_let_be(source: str) -> None:
    assert not find_by_path(source)
