"""Which disk a network boot may write, what it finds there, and the partition table that it leaves."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagegen_deploy import disks, gpt
from imagegen_deploy.disks import Content, Disk, choose_disk, examine, find_seed_label, require_wipe
from imagegen_deploy.mark import END, MOST_SEED, Mark, read_kept_seed, read_mark, render_mark
from imagegen_deploy.plan import parse_plan
from imagegen_node.engine.errors import Refused

IMAGE = "0123456789ab"
names = st.text(st.characters(codec="utf-16-le", exclude_characters="\0", max_codepoint=0xFFFF), max_size=36)


@st.composite
def tables(draw: st.DrawFn) -> tuple[gpt.Table, int]:
    """A table, and the sectors of a disk that it fits."""
    sectors = draw(st.integers(2048, 2**40))
    found = []
    for _ in range(draw(st.integers(0, 8))):
        first = draw(st.integers(34, sectors - 34))
        last = draw(st.integers(first, sectors - 34))
        uuids = [draw(st.uuids(allow_nil=False)) for _ in range(2)]
        found.append(gpt.Partition(*uuids, first, last, draw(st.integers(0, 2**64 - 1)), draw(names)))
    return gpt.Table(draw(st.uuids()), tuple(found)), sectors


@given(tables())
def test_a_table_is_read_as_it_was_written(made: tuple[gpt.Table, int]) -> None:
    """At both ends: the backup is the same table, seen from the end."""
    table, sectors = made
    head, tail = gpt.render_table(table, sectors)
    assert (len(head), len(tail)) == (gpt.HEAD, gpt.TAIL)
    assert gpt.read_table(head) == table
    header = gpt.HEADER.unpack_from(tail, len(tail) - gpt.SECTOR)
    assert header[5:7] == (sectors - 1, 1)
    assert zlib.crc32(tail[: -gpt.SECTOR]) == header[-1]


@given(tables(), st.integers(gpt.SECTOR, gpt.HEAD - 1), st.integers(1, 255))
def test_a_damaged_table_is_none(made: tuple[gpt.Table, int], place: int, change: int) -> None:
    """One byte of the header or the entries: whoever reads it must not believe it."""
    head = bytearray(gpt.render_table(*made)[0])
    used = gpt.SECTOR + gpt.HEADER.size
    if used <= place < 2 * gpt.SECTOR:  # nobody looks at the rest of the header's sector
        return
    head[place] ^= change
    assert gpt.read_table(bytes(head)) is None


def test_a_partition_that_does_not_fit_is_refused() -> None:
    part = gpt.Partition(UUID(int=1), UUID(int=2), 2048, 4096, 0, "root")
    with pytest.raises(ValueError, match="partition root does not fit a disk of 4097 sectors"):
        gpt.render_table(gpt.Table(UUID(int=3), (part,)), 4097)


@given(tables())
def test_fresh_uuids_change_nothing_else(made: tuple[gpt.Table, int]) -> None:
    """Types, places, attributes and names stay; no UUID does."""
    table = made[0]
    fresh = gpt.renew_uuids(table)
    kept = [(p.type, p.first, p.last, p.attributes, p.name) for p in table.partitions]
    assert [(p.type, p.first, p.last, p.attributes, p.name) for p in fresh.partitions] == kept
    old = {table.uuid, *(p.uuid for p in table.partitions)}
    assert not old & {fresh.uuid, *(p.uuid for p in fresh.partitions)}


# the mark


@given(st.text(max_size=64), st.binary(max_size=5000))
def test_a_kept_seed_is_the_nodes_own_and_whole(node: str, seed: bytes) -> None:
    """For another node, or cut off, it is none."""
    head = bytearray(END)
    head[64 << 10 :] = render_mark(node, IMAGE, seed)
    mark = read_mark(bytes(head))
    assert mark is not None and (mark.node, mark.image) == (node, IMAGE)
    assert read_kept_seed(bytes(head), mark, node) == seed
    assert read_kept_seed(bytes(head), mark, node + "x") == b""
    if seed:
        head[(128 << 10) + len(seed) - 1] ^= 1
        assert read_kept_seed(bytes(head), mark, node) == b""


def test_a_mark_that_was_cut_off_is_a_mark() -> None:
    """It says enough that it is there."""
    head = bytearray(END)
    head[64 << 10 :] = render_mark("n", IMAGE, b"")
    head[(64 << 10) + 40 : (64 << 10) + 4096] = bytes(4056)
    assert read_mark(bytes(head)) == Mark("", "")
    assert read_mark(bytes(END)) is None


def test_a_seed_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        render_mark("n", IMAGE, bytes(MOST_SEED + 1))


# the disk


def disk(name: str, size: int = 100, **facts: str) -> Disk:
    given = {key: (value,) for key, value in facts.items()}
    return Disk(Path("/dev", name), size << 30, 512, {"name": (f"/dev/{name}",), **given})


SDA = disk("sda", serial="S3Z9NB0K", wwn="0x5002538d40", rotational="false")
SDB = disk("sdb", 931, serial="WD-WCC4", wwn="0x50014ee2b5", rotational="true")


@pytest.mark.parametrize(
    ("hints", "chosen"),
    [
        ({"serial": "WD-WCC4"}, SDB),
        ({"serial": "wd-wcc4"}, SDB),
        ({"wwn": "0x5002538d40"}, SDA),
        ({"size": "931"}, SDB),
        ({"name": "/dev/sda"}, SDA),
        ({"rotational": "true"}, SDB),
        ({"size": "100", "rotational": "false"}, SDA),
        ({"serial": "s== S3Z9NB0K"}, SDA),
        ({"serial": "s!= S3Z9NB0K"}, SDB),
        ({"serial": "<in> wcc"}, SDB),
        ({"serial": "<or> X <or> S3Z9NB0K"}, SDA),
        ({"size": ">= 500"}, SDB),
        ({"size": "< 500"}, SDA),
        ({"name": "s!= /dev/sda"}, SDB),
    ],
)
def test_hints_select_one_disk(hints: dict[str, str], chosen: Disk) -> None:
    """By Ironic's names and operators, without regard to case, as Ironic does."""
    assert choose_disk([SDA, SDB], hints) is chosen


def test_the_only_disk_needs_no_hint() -> None:
    assert choose_disk([SDA], {}) is SDA


@pytest.mark.parametrize(
    ("there", "hints", "sentence"),
    [
        ([SDA, SDB], {}, "there are 2 disks: /dev/sda (100.0 GiB, s3z9nb0k), /dev/sdb"),
        ([SDA, SDA], {"size": "100"}, "root_device size=100 matches 2 disks"),
        ([SDA], {"serial": "S9"}, "no disk matches root_device serial=S9; this machine has: /dev/sda"),
        ([SDA], {"name": "s!= /dev/sda"}, "no disk matches root_device name=s!= /dev/sda; this machine has: /dev/sda"),
        ([SDA], {"size": "= 100"}, "root_device size== 100 is not valid: a hint `=` means `>=` to Ironic"),
        ([SDA], {"vendor": "acme"}, "no disk matches root_device vendor=acme"),
        ([], {}, "there is no disk to deploy to; this machine has: none"),
    ],
)
def test_none_or_several_disks_stop_the_boot(there: list[Disk], hints: dict[str, str], sentence: str) -> None:
    """And name what is there, so that the cluster file can be mended."""
    with pytest.raises(Refused) as refused:
        choose_disk(there, hints)
    assert sentence in str(refused.value)


UDEV = r"""
DEVNAME=/dev/sda
DEVLINKS=/dev/disk/by-id/ata-X_S1 /dev/disk/by-path/pci-0000:00:1f.2-ata-1 /dev/disk/by-path/pci-0000:00:1f.2-ata-1.0
ID_MODEL=Samsung_SSD_870
ID_MODEL_ENC=Samsung\x20SSD\x20870\x20\x20\x20\x20
ID_SERIAL=Samsung_SSD_870_S1
ID_SERIAL_SHORT=S1
ID_WWN=0x5002538d40
ID_WWN_WITH_EXTENSION=0x5002538d400001
ID_VENDOR=udev-says
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Disk]:
    """A machine with one SATA disk, sda, of 240,057,409,536 bytes, as sysfs and udev describe it."""
    entry = tmp_path / "block/sda"
    (entry / "device/scsi_device/2:0:0:0").mkdir(parents=True)
    (entry / "queue").mkdir()
    for path, content in {
        "size": str(240057409536 // 512), "ro": "0", "removable": "0", "device/vendor": "ATA     ",
        "device/model": "Samsung SSD 870 ", "queue/rotational": "0", "queue/logical_block_size": "512",
    }.items():  # fmt: skip
        (entry / path).write_text(content + "\n")
    monkeypatch.setattr(disks, "BLOCK_DEVICES", tmp_path / "block")
    monkeypatch.setattr(disks, "run", lambda argv, **options: UDEV if argv[:2] == ["udevadm", "info"] else "")
    return disks.list_disks()


@pytest.mark.parametrize(
    ("hint", "value", "fits"),
    [
        ("name", "/dev/sda", True),
        ("name", "s!= /dev/sda", False),  # by-id and by-path links are no names
        ("by_path", "/dev/disk/by-path/pci-0000:00:1f.2-ata-1.0", True),
        ("by_path", "s!= /dev/disk/by-path/pci-0000:00:1f.2-ata-1", False),
        ("serial", "S1", True),
        ("serial", "samsung_ssd_870_s1", True),
        ("serial", "s!= S1", False),  # though it has another serial number as well
        ("serial", "s!= S2", True),
        ("wwn", "0x5002538D40", True),
        ("wwn", "s!= 0x5002538d40", False),
        ("wwn_with_extension", "0x5002538d400001", True),
        ("wwn_vendor_extension", "s!= 0x1", True),  # it has none
        ("model", "samsung ssd 870", True),
        ("model", "Samsung_SSD_870", False),
        ("model", "s!= Samsung SSD 870", False),
        ("model", "<in> ssd 8", True),
        ("vendor", "ata", True),
        ("vendor", "udev-says", False),
        ("hctl", "2:0:0:0", True),
        ("rotational", "false", True),
        ("rotational", "true", False),
        ("size", "223", False),  # it has 223.57 GiB
        ("size", ">= 223", True),
        ("size", "> 223", True),
        ("size", "<= 223", False),
        ("size", "< 224", True),
    ],
)
def test_a_disk_is_described_as_ironics_agent_describes_it(
    machine: list[Disk], hint: str, value: str, fits: bool
) -> None:
    """One name, the model with its blanks, an exact size; all serial numbers, and `s!=` of each of them."""
    if fits:
        assert choose_disk(machine, {hint: value}) is machine[0]
    else:
        with pytest.raises(Refused, match="no disk matches root_device"):
            choose_disk(machine, {hint: value})


@pytest.fixture
def media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk of 4 MiB in a file, and no blkid that sees anything on it."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(4 << 20))
    monkeypatch.setattr(disks, "probe", lambda path: {})
    return Disk(path, 4 << 20, 512)


def put_table(media: Disk, *partitions: str) -> None:
    found = [gpt.Partition(UUID(int=1), UUID(int=n), 2048, 4096, 0, name) for n, name in enumerate(partitions, 1)]
    head, _ = gpt.render_table(gpt.Table(UUID(int=9), tuple(found)), media.sectors)
    with media.path.open("r+b") as stream:
        stream.write(head)


def test_a_disk_without_anything_is_blank(media: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one with an empty table, of either kind."""
    assert examine(media, IMAGE).kind == "blank"
    put_table(media)
    assert examine(media, IMAGE).kind == "blank"
    media.path.write_bytes(bytes(510) + b"\x55\xaa" + bytes(4 << 20))
    monkeypatch.setattr(disks, "probe", lambda path: {"PTTYPE": "dos"})
    assert examine(media, IMAGE).kind == "blank"


def test_a_disk_with_this_image_is_deployed(media: Disk) -> None:
    """By the name of a partition; another image's is as foreign as any other."""
    put_table(media, "bios", f"imagegen-{IMAGE}")
    assert examine(media, IMAGE).kind == "deployed"
    assert examine(media, "ba9876543210").text == f"a partition table with bios, imagegen-{IMAGE}"


def test_a_mark_comes_before_everything_else(media: Disk) -> None:
    """A deployment that was cut off when the table was written already starts over."""
    put_table(media, f"imagegen-{IMAGE}")
    with media.path.open("r+b") as stream:
        stream.seek(64 << 10)
        stream.write(render_mark("n", IMAGE, b""))
    assert examine(media, IMAGE).kind == "begun"


@pytest.mark.parametrize(
    "seen",
    [
        {"TYPE": "ext4", "LABEL": "data"},
        {"TYPE": "LVM2_member"},
        {"PTTYPE": "dos", "TYPE": "vfat"},
        {"PTTYPE": "gpt"},  # only the backup is whole
        {"AMBIVALENT": "1"},
    ],
)
def test_whatever_blkid_knows_is_foreign(seen: dict[str, str], media: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "probe", lambda path: seen)
    assert examine(media, IMAGE).kind == "foreign"


def test_a_dos_table_with_a_partition_is_foreign(media: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    media.path.write_bytes(bytes(446) + b"\x80" + bytes(63) + b"\x55\xaa" + bytes(4 << 20))
    monkeypatch.setattr(disks, "probe", lambda path: {"PTTYPE": "dos"})
    assert examine(media, IMAGE).kind == "foreign"


def test_a_label_is_told_of_a_foreign_disk_only(media: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark that lies in the file system says that it is none any more."""
    monkeypatch.setattr(disks, "probe", lambda path: {"TYPE": "ext4", "LABEL": "imagegen-data"})
    assert examine(media, IMAGE).label == "imagegen-data"
    with media.path.open("r+b") as stream:
        stream.seek(64 << 10)
        stream.write(render_mark("n", IMAGE, b""))
    assert (examine(media, IMAGE).kind, examine(media, IMAGE).label) == ("begun", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [(Content("foreign", "precious things"), "holds precious things,"), (Content("deployed"), "holds this image,")],
)
def test_what_is_on_a_disk_goes_only_when_the_cluster_file_says_so(content: Content, words: str) -> None:
    """What is there is told, and what to do."""
    with pytest.raises(Refused) as refused:
        require_wipe(SDA, content, parse_plan(WORDS))
    assert f"{SDA} {words}" in str(refused.value) and "`deploy: {wipe: true}` for c-1" in str(refused.value)
    require_wipe(SDA, content, parse_plan(f"{WORDS} imagegen.wipe=1"))


# media with a seed


@pytest.fixture
def attach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Attaches a device, or a partition `DISK/PARTITION`, with a file system's label."""
    block, labels = tmp_path / "block", dict[str, str]()
    block.mkdir()
    monkeypatch.setattr(disks, "BLOCK_DEVICES", block)
    monkeypatch.setattr(disks, "settle", lambda: None)
    monkeypatch.setattr(disks, "probe", lambda path: {"LABEL": labels[path.name]} if labels.get(path.name) else {})

    def attach(name: str, label: str) -> None:
        (block / name).mkdir(parents=True)
        if "/" in name:
            (block / name / "partition").write_text("1\n")
        labels[Path(name).name] = label

    return attach


@pytest.mark.parametrize(
    ("name", "label", "found"),
    [
        ("sr0", "cidata", "cidata"),
        ("vdb", "config-2", "config-2"),
        ("sdb/sdb1", "CIDATA", "CIDATA"),  # a stick
        ("sdb", "data", ""),
        ("loop0", "cidata", ""),  # ours, of the boot before
        ("sda/sda3", "cidata", ""),  # of an older deployment to the same disk
    ],
)
def test_a_seed_is_found_where_cloud_init_looks(
    attach: Callable[[str, str], None], name: str, label: str, found: str
) -> None:
    """On whole disks, optical ones too, and on partitions; not on the node's own disk."""
    attach("sda", "")
    attach(name, label)
    assert find_seed_label(SDA) == found


@pytest.mark.parametrize(("besides", "device"), [(SDA, "sdb/sdb3"), (None, "sda/sda3")])
def test_a_seed_of_an_earlier_deployment_stops_the_boot(
    attach: Callable[[str, str], None], tmp_path: Path, besides: Disk | None, device: str
) -> None:
    """On another disk that cannot be taken out: cloud-init could take it for this node's."""
    attach("sda", "")
    attach(device, "cidata")
    (tmp_path / "block" / device.split("/")[0] / "removable").write_text("0\n")
    with pytest.raises(Refused, match=f"{device.split('/')[1]} is labelled cidata: it holds the seed of an earlier"):
        find_seed_label(besides)


# the command line

WORDS = (
    "boot=imagegen imagegen.mode=deploy imagegen.node=c-1 imagegen.role=compute imagegen.mac=52:54:00:00:00:01 "
    "imagegen.address=10.0.0.2/24 imagegen.url=http://10.0.0.1:8080/ imagegen.image=http://10.0.0.1:8080/i.raw.zst "
    "imagegen.sha256=ABCD imagegen.size=1000 imagegen.id=0123456789ab"
)


def test_the_command_line_is_read() -> None:
    """Percent-decoded, with hints under their names; the last word of a key counts."""
    plan = parse_plan(f"{WORDS} imagegen.root_device.serial=A%20B imagegen.wipe=0 imagegen.wipe=1 quiet")
    assert (plan.root_device, plan.wipe, plan.size) == ({"serial": "A B"}, True, 1000)
    assert (plan.url, plan.sha256, plan.seed) == ("http://10.0.0.1:8080", "abcd", "")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("root=/dev/sda1", "lacks imagegen.mode, imagegen.node"),
        (WORDS.replace("=1000", "=many"), "an invalid imagegen.mode or imagegen.size"),
        (WORDS.replace("=deploy", "=install"), "an invalid imagegen.mode or imagegen.size"),
    ],
)
def test_a_command_line_that_lacks_something_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(Refused, match="boot with the node's script") as refused:
        parse_plan(text)
    assert sentence in str(refused.value)
