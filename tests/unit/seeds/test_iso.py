"""Seed ISOs: what cloud-init finds on them, and that they are the same everywhere."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pycdlib
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagegen.base.tree import File, Tree
from imagegen.seeds.iso import seed_iso_bytes, write_seed_iso

SECTOR = 2048


def seed(**contents: bytes) -> Tree:
    """A seed's tree; keyword user_data is the file user-data."""
    files = {"user_data": b"#cloud-config\n", "meta_data": b"instance-id: 1\n", **contents}
    return {name.replace("_", "-"): File(data, 0o600) for name, data in files.items()}


def read_back(image: bytes, *, joliet: bool) -> dict[str, bytes]:
    """Every file of the root directory by its Joliet or Rock Ridge name."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(BytesIO(image))
    kind = "joliet_path" if joliet else "rr_path"
    found = {}
    for record in iso.list_children(**{kind: "/"}):
        if record is None or record.is_dot() or record.is_dotdot():
            continue
        name = record.file_identifier().decode("utf-16-be") if joliet else record.rock_ridge.name().decode()
        data = BytesIO()
        iso.get_file_from_iso_fp(data, **{kind: f"/{name}"})
        found[name] = data.getvalue()
    iso.close()
    return found


@given(st.binary(max_size=3 * SECTOR), st.binary(max_size=SECTOR + 1), st.binary(max_size=100))
@example(b"", b"", b"")
@example(b"u" * SECTOR, b"m" * (SECTOR - 1), b"n" * (SECTOR + 1))
def test_files_are_read_back_under_both_kinds_of_names(user: bytes, meta: bytes, network: bytes) -> None:
    """Names and bytes are exact for a kernel that reads Rock Ridge and for one that reads Joliet."""
    tree = seed(user_data=user, meta_data=meta, network_config=network)
    wanted = {name: file.data for name, file in tree.items()}
    image = seed_iso_bytes(tree)
    assert read_back(image, joliet=False) == wanted
    assert read_back(image, joliet=True) == wanted


def test_the_label_is_cidata() -> None:
    """Every volume descriptor holds the label that NoCloud looks for (ECMA-119 8.4.7: bytes 41 to 72)."""
    labels = {}
    for sector in range(16, 32):
        descriptor = seed_iso_bytes(seed())[sector * SECTOR : (sector + 1) * SECTOR]
        assert descriptor[1:6] == b"CD001"
        if descriptor[0] == 255:
            break
        joliet = descriptor[88:91] == b"%/E"
        labels["Joliet" if joliet else descriptor[0]] = descriptor[40:72].decode("utf-16-be" if joliet else "ascii")
    assert {kind: label.rstrip(" \0") for kind, label in labels.items()} == {
        1: "cidata",
        2: "cidata",
        "Joliet": "cidata",
    }


def test_entries_are_for_root_alone() -> None:
    """A node that mounts the ISO shows its files 0400, whatever the modes of the tree."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(BytesIO(seed_iso_bytes(seed(network_config=b"version: 2\n"))))
    modes = {name: iso.get_record(rr_path=f"/{name}").rock_ridge.get_file_mode() for name in read_names(iso)}
    iso.close()
    assert modes == {"meta-data": 0o100400, "network-config": 0o100400, "user-data": 0o100400}


def read_names(iso: pycdlib.PyCdlib) -> list[str]:
    children = [child for child in iso.list_children(rr_path="/") if child is not None]
    return [child.rock_ridge.name().decode() for child in children if not (child.is_dot() or child.is_dotdot())]


def test_bytes_do_not_depend_on_time_or_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tree gives the same ISO in any zone, at any time, in any order of the tree."""
    images = set()
    try:
        for zone, now in [
            ("UTC", 0.0),
            ("Asia/Kathmandu", 1.7e9),
            ("America/St_Johns", 1.8e9 + 0.5),
            ("XXX-13:30", 2e9),
        ]:
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda now=now: now)
                images.add(seed_iso_bytes(seed(network_config=b"n")))
                images.add(seed_iso_bytes(dict(reversed(seed(network_config=b"n").items()))))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert len(images) == 1


def test_bytes_depend_on_the_content() -> None:
    """Two seeds of equal sizes differ."""
    assert seed_iso_bytes(seed(user_data=b"a")) != seed_iso_bytes(seed(user_data=b"b"))


def test_threads_make_the_same_isos(monkeypatch: pytest.MonkeyPatch) -> None:
    """ISOs made at the same time do not give back each other's clock."""
    trees = [seed(user_data=bytes([number]) * 100) for number in range(16)]
    alone = [seed_iso_bytes(tree) for tree in trees]
    years = iter(range(100_000))
    monkeypatch.setattr(time, "time", lambda: next(years) * 31e6 % 1e9)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(seed_iso_bytes, trees))
    finally:
        sys.setswitchinterval(before)
    assert together == alone


def test_vendor_data_may_come_along() -> None:
    """`boot` adds its own key by vendor-data."""
    image = seed_iso_bytes(seed(vendor_data=b"#cloud-config\n{}\n"))
    assert read_back(image, joliet=True)["vendor-data"] == b"#cloud-config\n{}\n"


@pytest.mark.parametrize("missing", ["user-data", "meta-data"])
def test_a_seed_without_its_parts_is_refused(missing: str) -> None:
    """cloud-init would ignore such a disk without a word."""
    tree = seed()
    del tree[missing]
    with pytest.raises(ValueError, match=missing):
        seed_iso_bytes(tree)


@pytest.mark.parametrize("name", ["secrets.yaml", "../user-data", "openstack/latest/user_data"])
def test_other_files_are_refused(name: str) -> None:
    """Nothing gets onto a seed by mistake."""
    with pytest.raises(ValueError, match="not a file of a seed"):
        seed_iso_bytes({**seed(), name: File(b"")})


def test_the_file_is_private_from_the_start(tmp_path: Path) -> None:
    """The ISO is 0600 under any umask, replaces an older and looser one, and leaves nothing beside it."""
    place = tmp_path / "seeds" / "node.iso"
    place.parent.mkdir()
    place.write_bytes(b"old")
    place.chmod(0o644)
    before = os.umask(0)
    try:
        write_seed_iso(seed(), place)
    finally:
        os.umask(before)
    assert place.stat().st_mode & 0o7777 == 0o600
    assert place.read_bytes() == seed_iso_bytes(seed())
    assert [path.name for path in place.parent.iterdir()] == ["node.iso"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    """Nothing is half-written."""
    place = tmp_path / "node.iso"
    place.write_bytes(b"old")
    with pytest.raises(ValueError):
        write_seed_iso({}, place)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("node.iso", b"old")]
