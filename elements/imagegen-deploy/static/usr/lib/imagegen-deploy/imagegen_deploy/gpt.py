"""GUID partition tables (UEFI specification 2.10, chapter 5), as bytes: the image's, fitted to a disk of any size."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

SECTOR = 512
ENTRIES = 128
HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")
ENTRY = struct.Struct("<16s16sQQQ72s")
ARRAY_SECTORS = ENTRIES * ENTRY.size // SECTOR
HEAD = (2 + ARRAY_SECTORS) * SECTOR  # bytes: the protective MBR, the header, the entries
TAIL = (1 + ARRAY_SECTORS) * SECTOR  # bytes: the backup entries and header
BOOT_CODE = 440  # bytes of the first sector that are no part of the table
NONE = UUID(int=0)


@dataclass(frozen=True)
class Partition:
    """One partition; first and last sector."""

    type: UUID
    uuid: UUID
    first: int
    last: int
    attributes: int
    name: str

    @property
    def sectors(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Table:
    """A whole table; a partition's place is its number minus one."""

    uuid: UUID
    partitions: tuple[Partition, ...]


def read_table(head: bytes) -> Table | None:
    """The table in the first HEAD bytes of a disk; None when there is no intact one."""
    if len(head) < HEAD:
        return None
    fields = HEADER.unpack_from(head, SECTOR)
    signature, _, size, checksum, _, place, _, _, _, disk, start, count, entry_size, array_checksum = fields
    header = bytearray(head[SECTOR : SECTOR + max(HEADER.size, min(size, SECTOR))])
    header[16:20] = bytes(4)
    if signature != b"EFI PART" or place != 1 or zlib.crc32(header) != checksum:
        return None
    if (start, entry_size) != (2, ENTRY.size) or not 0 < count <= ENTRIES:
        return None
    array = head[2 * SECTOR : 2 * SECTOR + count * ENTRY.size]
    if zlib.crc32(array) != array_checksum:
        return None
    found = [_read_entry(array[at : at + ENTRY.size]) for at in range(0, len(array), ENTRY.size)]
    while found and found[-1].type == NONE:
        found.pop()
    return Table(UUID(bytes_le=disk), tuple(found))


def _read_entry(data: bytes) -> Partition:
    kind, uuid, first, last, attributes, name = ENTRY.unpack(data)
    text = name.decode("utf-16-le", errors="replace").rstrip("\0")
    return Partition(UUID(bytes_le=kind), UUID(bytes_le=uuid), first, last, attributes, text)


def render_table(table: Table, sectors: int) -> tuple[bytes, bytes]:
    """(head, tail) of a disk of that many sectors: HEAD bytes for its start, without boot code, and TAIL for its end.

    Raises ValueError for a partition that does not fit.
    """
    first, last = 2 + ARRAY_SECTORS, sectors - 2 - ARRAY_SECTORS
    for partition in table.partitions:
        if partition.type != NONE and not first <= partition.first <= partition.last <= last:
            raise ValueError(f"partition {partition.name} does not fit a disk of {sectors} sectors")
    array = b"".join(_render_entry(partition) for partition in table.partitions).ljust(ENTRIES * ENTRY.size, b"\0")

    def header(place: int, other: int, start: int) -> bytes:
        fields = (place, other, first, last, table.uuid.bytes_le, start, ENTRIES, ENTRY.size, zlib.crc32(array))
        blank = HEADER.pack(b"EFI PART", b"\0\0\1\0", HEADER.size, 0, 0, *fields)
        return HEADER.pack(b"EFI PART", b"\0\0\1\0", HEADER.size, zlib.crc32(blank), 0, *fields).ljust(SECTOR, b"\0")

    mbr = bytearray(SECTOR)
    mbr[446:462] = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    mbr[510:] = b"\x55\xaa"
    head = bytes(mbr) + header(1, sectors - 1, 2) + array
    return head, array + header(sectors - 1, 1, sectors - 1 - ARRAY_SECTORS)


def _render_entry(partition: Partition) -> bytes:
    name = partition.name.encode("utf-16-le").ljust(72, b"\0")
    uuid = partition.uuid.bytes_le
    return ENTRY.pack(partition.type.bytes_le, uuid, partition.first, partition.last, partition.attributes, name)


def renew_uuids(table: Table) -> Table:
    """The same table with random UUIDs: no two disks with the same image have one in common."""
    fresh = (p if p.type == NONE else replace(p, uuid=uuid4()) for p in table.partitions)
    return Table(uuid4(), tuple(fresh))


def find_number(table: Table, name: str) -> int:
    """The number of the partition with that name, from 1. Raises KeyError."""
    for number, partition in enumerate(table.partitions, start=1):
        if partition.type != NONE and partition.name == name:
            return number
    raise KeyError(name)


def find_partition(table: Table, name: str) -> Partition:
    """The partition with that name. Raises KeyError."""
    return table.partitions[find_number(table, name) - 1]


def rename_partition(table: Table, name: str, new: str) -> Table:
    """The table with that partition's name changed. Raises KeyError."""
    at = find_number(table, name) - 1
    renamed = [*table.partitions]
    renamed[at] = replace(renamed[at], name=new)
    return replace(table, partitions=tuple(renamed))
