"""What is written through handles: whole or not at all, through no link, and its directory's owner's."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.base import handles, tree
from imagegen.base.errors import BadUsage, MachineLacks
from imagegen.base.handles import append_file, create_file, keep_file, link_file, make_fresh, read_file, remove_place
from imagegen.base.tree import File, text, write_file, write_tree

USER = 12345  # nobody's uid

Write = Callable[[Path], object]
WRITERS: dict[str, Write] = {
    "write_file": lambda place: write_file(place, text("new")),
    "write_tree": lambda place: write_tree({"a/b": text("new")}, place),
    "create_file": lambda place: create_file(place).close(),
    "append_file": lambda place: append_file(place).close(),
    "keep_file": lambda place: os.close(keep_file(place)),
    "make_fresh": make_fresh,
    "link_file": lambda place: link_file(Path(__file__).resolve(), place),
}
FOLLOWERS = ("append_file", "keep_file")  # what writes to a file that is there


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_follows_a_link_on_the_way(tmp_path: Path, name: str) -> None:
    """Whoever owns a directory of OUT could else have root write anywhere."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(BadUsage, match="out is a link") as caught:
        WRITERS[name](tmp_path / "out/file")
    assert caught.value.hint
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ["file", "directory", "nothing"])
def test_no_writer_follows_a_link_at_its_end(tmp_path: Path, name: str, kind: str) -> None:
    """Nor one where a file is written first, beside its place; the link's target stays what it was."""
    target = tmp_path / "elsewhere" / "target"
    target.parent.mkdir()
    if kind == "file":
        target.write_text("old")
    elif kind == "directory":
        target.mkdir()
    (tmp_path / "out").mkdir()
    for link in ("file", ".file.imagegen-new", ".file.imagegen-old"):
        (tmp_path / "out" / link).symlink_to(target)
    if name in FOLLOWERS:
        with pytest.raises(BadUsage, match="is a link"):
            WRITERS[name](tmp_path / "out/file")
    else:
        WRITERS[name](tmp_path / "out/file")
        assert not (tmp_path / "out/file").is_symlink()
    found = sorted(path.name for path in target.parent.rglob("*"))
    assert found == ([] if kind == "nothing" else ["target"])
    assert kind != "file" or target.read_text() == "old"


def test_no_reader_follows_a_link(tmp_path: Path) -> None:
    """`imagegen serve` would give out, as root, what the link leads to."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to("secret")
    with pytest.raises(BadUsage, match="is a link"):
        read_file(tmp_path / "link")
    assert not handles.is_file(tmp_path / "link")
    with pytest.raises(BadUsage, match="is a link"):
        link_file(tmp_path / "link", tmp_path / "copy")


@pytest.mark.parametrize("use", [read_file, lambda place: os.close(keep_file(place))])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, use: Write) -> None:
    """The open of a FIFO waits for somebody to write to it."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for name in ("fifo", "directory"):
        with pytest.raises(BadUsage, match="not a file"):
            use(tmp_path / name)


def test_a_file_with_another_name_is_not_written_to(tmp_path: Path) -> None:
    """A hard link is no link to follow, and leads to another's file all the same."""
    (tmp_path / "victim").write_text("whole")
    os.link(tmp_path / "victim", tmp_path / "lock")
    with pytest.raises(BadUsage, match="second hard link"):
        keep_file(tmp_path / "lock")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("name", WRITERS)
def test_what_root_makes_belongs_to_the_directorys_owner(tmp_path: Path, name: str) -> None:
    """After `sudo imagegen build` the user can go on. Root's own directories stay root's."""
    for owner in (USER, 0):
        place = tmp_path / f"of-{owner}"
        place.mkdir()
        os.chown(place, owner, owner)
        WRITERS[name](place / "file")
        made = [place / "file", *(place / "file").rglob("*")]
        assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(owner, owner)}


@pytest.mark.usefixtures("root")
def test_links_are_made_between_files_of_one_owner_only(tmp_path: Path) -> None:
    """A link to root's file would stay root's: the user's directory gets a copy with the same holes, times and mode."""
    source, owned = tmp_path / "image.raw", tmp_path / "out"
    with source.open("wb") as stream:
        stream.truncate(64 << 20)
        stream.seek(16 << 20)
        stream.write(b"data" * 1000)
        stream.seek(40 << 20)
        stream.write(b"more")
    source.chmod(0o640)
    owned.mkdir()
    link_file(source, tmp_path / "linked.raw")
    assert (tmp_path / "linked.raw").samefile(source)
    os.chown(owned, USER, USER)
    link_file(source, owned / "image.raw")
    facts, before = (owned / "image.raw").stat(), source.stat()
    assert (facts.st_uid, facts.st_nlink, stat.S_IMODE(facts.st_mode)) == (USER, 1, 0o640)
    assert (facts.st_size, facts.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert facts.st_blocks * 512 < 1 << 20
    assert (owned / "image.raw").read_bytes() == source.read_bytes()
    assert source.stat().st_uid == 0
    link_file(source, owned / "image.raw")
    assert (owned / "image.raw").stat().st_ino == facts.st_ino, "it is there already"


@pytest.mark.usefixtures("root")
@given(st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=3)), max_size=8))
def test_a_sparse_copy_has_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, bytes]]
) -> None:
    """Wherever holes and data lie."""
    place = tmp_path_factory.mktemp("copy")
    with (place / "source").open("wb") as stream:
        for block, data in parts:
            stream.seek(block * 4096)
            stream.write(data)
    (place / "out").mkdir()
    os.chown(place / "out", USER, USER)
    link_file(place / "source", place / "out/copy")
    assert (place / "out/copy").read_bytes() == (place / "source").read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("write", [WRITERS["write_file"], WRITERS["write_tree"]])
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, code: int
) -> None:
    """The message has the file and its bytes; what was there before is there still."""
    write(tmp_path / "seed")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    fdopen = os.fdopen

    def full(handle: int, mode: str) -> Any:
        stream = fdopen(handle, mode)

        class Full:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                stream.close()

            def write(self, data: bytes) -> None:
                stream.write(data[:1])
                raise OSError(code, os.strerror(code))

        return Full()

    monkeypatch.setattr(handles.os, "fdopen", full)
    with pytest.raises(MachineLacks, match=r"seed\S*: the (disk|quota) is \w+( up)?, and 3 bytes are needed"):
        write(tmp_path / "seed")
    monkeypatch.undo()
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_tree_of_many_directories_needs_few_handles(tmp_path: Path) -> None:
    """Thousands of nodes have a directory each."""
    many = {f"configdrive/node{number}/latest/meta.json": text("x") for number in range(300)}
    write_tree(many, tmp_path / "ironic")
    assert len(list(Path("/proc/self/fd").iterdir())) < 200
    assert len(list((tmp_path / "ironic").rglob("meta.json"))) == 300


def test_a_tree_holds_files_and_links_in_their_order(tmp_path: Path) -> None:
    """Names that sort between a directory and what is in it do not confuse it."""
    (tmp_path / "image").write_text("image")
    paths = ("a", "a-b/c", "a.b/c", "b/a", "b/a-/x", "b/z")
    write_tree({path: File(path.encode()) for path in paths}, tmp_path / "t", links={"b/image": tmp_path / "image"})
    assert {str(p.relative_to(tmp_path / "t")) for p in (tmp_path / "t").rglob("*") if p.is_file()} == {
        *paths,
        "b/image",
    }
    assert (tmp_path / "t/b/image").samefile(tmp_path / "image")


def test_removing_goes_through_no_link(tmp_path: Path) -> None:
    """Neither what a link leads to is removed, nor what lies below one."""
    (tmp_path / "precious/tree").mkdir(parents=True)
    (tmp_path / "link").symlink_to("precious")
    with pytest.raises(BadUsage):
        remove_place(tmp_path / "link/tree")
    remove_place(tmp_path / "link")
    remove_place(tmp_path / "nothing")
    assert (tmp_path / "precious/tree").is_dir()
    assert not (tmp_path / "link").is_symlink()


def test_a_relative_place_is_below_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree.write_tree({"a": text("x")}, Path("out/deep/t"))
    assert (tmp_path / "out/deep/t/a").read_text() == "x"
