"""Files that root writes and reads on a node, in directories where a service's account has planted what it could."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.world import World
from hypothesis import given
from hypothesis import strategies as st
from imagegen_node.engine import files
from imagegen_node.engine.errors import Refused
from imagegen_node.node import metadata
from imagegen_node.roles import compute

SECRET = "root's own"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path / "node", monkeypatch)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that nobody may touch."""
    place = tmp_path / "outside/shadow"
    place.parent.mkdir()
    place.write_text(SECRET)
    place.chmod(0o600)
    return place


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory that a service's account owns."""
    place = tmp_path / "home"
    place.mkdir()
    return place


def facts_of(path: Path) -> tuple[object, ...]:
    status = path.stat()
    names = sorted(entry.name for entry in path.parent.iterdir())
    return (status.st_ino, status.st_mode, status.st_uid, status.st_ctime_ns, path.read_text(), names)


# writing


def test_a_file_is_written_once(home: Path, world: World) -> None:
    """True when something changed: text, mode, or nothing there yet."""
    path = home / "directory/file"
    assert files.put_file(path, "text", 0o640, "root", "nova")
    assert (path.read_text(), path.stat().st_mode & 0o7777) == ("text", 0o640)
    assert not files.put_file(path, "text", 0o640, "root", "nova")
    path.chmod(0o644)
    assert files.put_file(path, "text", 0o640, "root", "nova")
    assert path.stat().st_mode & 0o777 == 0o640
    assert files.put_file(path, "other", 0o640, "root", "nova")
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_file_with_another_owner_is_written_again(home: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner is set before the file is in its place."""
    path = home / "file"
    given_away = []
    files.put_file(path, "text")
    monkeypatch.setattr(files.grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=path.stat().st_gid + 1))
    monkeypatch.setattr("imagegen_node.engine.files.os.fchown", lambda *owner: given_away.append(owner[1:]))
    assert files.put_file(path, "text")
    assert given_away == [(path.stat().st_uid, path.stat().st_gid + 1)]


def test_a_link_in_the_files_place_is_replaced(home: Path, outside: Path, world: World) -> None:
    """Root writes into its own new file; what the link leads to stays as it is, and so does another name of it."""
    before = facts_of(outside)
    (home / ".erlang.cookie").symlink_to(outside)
    assert files.put_file(home / ".erlang.cookie", "cookie", 0o400)
    assert not (home / ".erlang.cookie").is_symlink()
    assert (home / ".erlang.cookie").read_text() == "cookie"
    assert facts_of(outside) == before


def test_a_second_name_of_a_file_is_replaced(home: Path, outside: Path, world: World) -> None:
    """A hard link in the file's place: neither content, mode nor owner of what it names is changed."""
    (home / "compute_id").hardlink_to(outside)
    before = (outside.stat().st_mode, outside.stat().st_uid, outside.read_text())
    files.write_atomically(home / "compute_id", "id", 0o644, (os.getuid(), os.getgid()))
    assert (outside.stat().st_mode, outside.stat().st_uid, outside.read_text()) == before
    assert (home / "compute_id").read_text() == "id"
    assert outside.stat().st_nlink == 1


def test_a_name_that_was_guessed_is_refused(home: Path, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even whoever knows the temporary file's name gains nothing by a link there."""
    monkeypatch.setattr("imagegen_node.engine.files.os.urandom", bytes)
    (home / f".file.{bytes(8).hex()}").symlink_to(outside)
    before = facts_of(outside)
    with pytest.raises(FileExistsError):
        files.write_atomically(home / "file", "text")
    assert facts_of(outside) == before


def test_temporary_names_are_not_to_be_guessed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two are the same."""
    seen = []
    rename = os.rename
    monkeypatch.setattr(
        "imagegen_node.engine.files.os.rename", lambda *a, **how: (seen.append(a[0]), rename(*a, **how))
    )
    for _ in range(3):
        files.write_atomically(home / "file", "text")
    assert len(set(seen)) == 3 and all(len(name) > 16 for name in seen)


@pytest.mark.parametrize("path", ["link/file", "link/deeper/file", "directory/link/file"])
def test_a_link_on_the_way_is_refused(path: str, home: Path, outside: Path) -> None:
    """The directory itself, or one above it, leads elsewhere: nothing is written, and the words say which part."""
    (home / "directory").mkdir()
    place = home / path.split("link")[0] / "link"
    place.symlink_to(outside.parent)
    before = facts_of(outside)
    with pytest.raises(Refused, match=r"^link in the path \S+ is a link or a file where a directory should be"):
        files.write_atomically(home / path, "text")
    with pytest.raises(Refused):
        files.read_file(home / path)
    assert facts_of(outside) == before


def fail(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "fchmod", "rename"])
def test_a_write_that_fails_leaves_all_as_it_was(call: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the old file stays whole, and no copy of a secret stays beside it."""
    files.write_atomically(home / "file", "old")
    monkeypatch.setattr(f"imagegen_node.engine.files.os.{call}", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(home / "file", "new")
    assert [(entry.name, entry.read_text()) for entry in home.iterdir()] == [("file", "old")]


def test_file_and_directory_are_on_the_disk_before_it_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, then name, each flushed; mode and owner by the open file."""
    calls = []
    for name in ("fchown", "fchmod", "fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(
            f"imagegen_node.engine.files.os.{name}",
            lambda *a, _name=name, _real=real, **how: (calls.append(_name), _real(*a, **how))[1],
        )
    files.write_atomically(home / "file", "text", 0o600, (os.getuid(), os.getgid()))
    assert calls == ["fchown", "fchmod", "fsync", "rename", "fsync"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    """What is written is what is read."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve() / "file"
        files.write_atomically(path, text)
        assert files.read_text(path) == text


# reading


def plant_link(place: Path, outside: Path) -> None:
    place.symlink_to(outside)


def plant_pipe(place: Path, outside: Path) -> None:
    os.mkfifo(place)


def plant_directory(place: Path, outside: Path) -> None:
    place.mkdir()


@pytest.mark.parametrize("plant", [plant_link, plant_pipe, plant_directory])
def test_what_is_no_file_is_not_read(plant: Callable[[Path, Path], None], home: Path, outside: Path) -> None:
    """Neither followed nor waited for."""
    plant(home / "file", outside)
    assert files.read_file(home / "file") is None
    assert files.read_text(home / "absent") is None


def test_a_closed_file_is_said_to_be_closed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To who is not root: not that there is none."""
    real = os.open

    def refuse(path: str, *how: int, **where: int) -> int:
        if path == "file":
            raise PermissionError(13, "Permission denied", path)
        return real(path, *how, **where)

    monkeypatch.setattr("imagegen_node.engine.files.os.open", refuse)
    with pytest.raises(PermissionError):
        files.read_file(home / "file")


def test_a_file_beyond_measure_is_cut(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of holes costs its owner nothing, and would cost the agent its memory."""
    (home / "file").write_text("0123456789")
    monkeypatch.setattr(files, "MOST_BYTES", 4)
    assert files.read_text(home / "file") == "0123"


def test_a_link_in_the_place_of_a_seeds_file_is_a_fault(home: Path, outside: Path) -> None:
    """The check of the seed's files reads nothing through it."""
    (home / "file").symlink_to(outside)
    entry = {"path": str(home / "file"), "owner": "root:root", "mode": "0600", "sha256-HMAC": "00"}
    assert metadata.find_wrong_files([entry], "key") == [
        f"{home / 'file'} is not a regular file, but a link or something else"
    ]


def test_a_planted_compute_id_tells_nothing(world: World) -> None:
    """The account nova owns the directory: a link there would put any file's content into the node's status."""
    world.make_node("linux-node2")
    world.make_control_plane()
    world.put("/run/libvirt/libvirt-sock", "")
    world.put("/etc/shadow", SECRET)
    world.at("/var/lib/nova").mkdir(parents=True)
    world.at("/var/lib/nova/compute_id").symlink_to(world.at("/etc/shadow"))
    with pytest.raises(Refused) as caught:  # as the doctor asks
        compute.check_compute_id(world.node, SimpleNamespace(list_compute=lambda *_: []))
    assert SECRET not in str(caught.value)
    world.answer_as_nova()
    assert world.run_compute()["state"] == "ready"
    assert SECRET not in str(world.documents)
    assert world.at("/etc/shadow").read_text() == SECRET
    assert files.read_text(compute.COMPUTE_ID) == f"{world.node['compute_id']}\n"


# whole trees


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """An account that is not ours; (inode, uid, gid) of all that was given to it."""
    given_away: list[tuple[int, int, int]] = []
    account = SimpleNamespace(pw_uid=os.getuid() + 1, pw_gid=os.getgid() + 1)
    monkeypatch.setattr(files, "pwd", SimpleNamespace(getpwnam=lambda _: account))
    monkeypatch.setattr(
        "imagegen_node.engine.files.os.fchown", lambda handle, *ids: given_away.append((os.fstat(handle).st_ino, *ids))
    )
    return given_away


def test_a_tree_gets_its_owner_back(home: Path, other: list[tuple[int, int, int]]) -> None:
    """A data disk from another image may bear another image's account numbers. The directory itself comes last."""
    (home / "nova").mkdir()
    (home / "nova/table.ibd").write_text("rows")
    files.own_tree(home, "mysql")
    ids = (os.getuid() + 1, os.getgid() + 1)
    expected = [home / "nova/table.ibd", home / "nova", home]
    assert other == [(path.stat().st_ino, *ids) for path in expected]


def test_a_tree_that_has_its_owner_is_let_be(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even looked at."""
    account = SimpleNamespace(pw_uid=os.getuid(), pw_gid=os.getgid())
    monkeypatch.setattr(files, "pwd", SimpleNamespace(getpwnam=lambda _: account))
    monkeypatch.setattr("imagegen_node.engine.files.os.fchown", fail)
    (home / "file").write_text("")
    files.own_tree(home, "mysql")


def test_links_in_a_tree_give_nothing_away(home: Path, outside: Path, other: list[tuple[int, int, int]]) -> None:
    """Links to a file and to a directory are passed over."""
    (home / "file").symlink_to(outside)
    (home / "directory").symlink_to(outside.parent)
    files.own_tree(home, "mysql")
    assert [inode for inode, *_ in other] == [home.stat().st_ino]


def test_a_second_name_in_a_tree_gives_nothing_away(
    home: Path, outside: Path, other: list[tuple[int, int, int]]
) -> None:
    """It could be anybody's file: refused, with the way to find the other name."""
    (home / "file").hardlink_to(outside)
    with pytest.raises(Refused, match=rf"file has a second name .* \(find / -xdev -inum {outside.stat().st_ino}\)"):
        files.own_tree(home, "mysql")
    assert other == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_changes_nothing_outside(home: Path, outside: Path) -> None:
    """With real accounts: the directory is another's, with every kind of trap in it."""
    nobody = 65534
    os.chown(home, nobody, nobody)
    for name in ("cookie", ".cookie.new"):
        (home / name).symlink_to(outside)
        os.chown(home / name, nobody, nobody, follow_symlinks=False)
    before = facts_of(outside)
    files.write_atomically(home / "cookie", "text", 0o400, (nobody, nobody))
    status = (home / "cookie").lstat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (nobody, nobody, 0o400)
    assert facts_of(outside) == before
