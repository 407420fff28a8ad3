"""The fault matrix on real services, in containers. Needs root and the images of both roles in out/.

usage: run_faults.py [--seed N] [--fixed] [--only WORDS] [--again] [--minutes N]

A run that was interrupted goes on where it stopped, with its own seed, as long as the images are the same; --again
begins anew. --fixed is the part that CI runs, always with the same seed. Every row is kept in out/faults/rows.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from schedules import (
    Outcome,
    crash_agents,
    fill_at_first_boot,
    list_bring_ups,
    trouble_guests,
    trouble_ready_cluster,
)
from testbed import WORK, Broken, Testbed, make_secrets, unpack_trees, write_cluster

from imagegen.base.errors import ImagegenError
from imagegen.base.signals import end_on_signals
from imagegen.local import nspawn

FIXED_SEED = 7
FIXED_BRING_UP = "2 controllers at once, 6"
FIXED_FAULTS = ("database frozen for 30 s", "all secrets rotated")
MINUTES = 75


@dataclass(frozen=True)
class Row:
    """One line of the table; `wrong` is empty when the end state was right."""

    key: str
    faults: int
    happened: str
    wrong: str
    seconds: float


class Matrix:
    """A run: its seed, what was done of it, and what is left."""

    def __init__(self, place: Path, seed: int, images: str, only: str, deadline: float) -> None:
        self.place, self.seed, self.images, self.only, self.deadline = place, seed, images, only, deadline
        self.rows: list[Row] = []
        self.late: list[str] = []

    def read(self) -> bool:
        """Takes over what an interrupted run of the same images wrote; False when there is none."""
        lines = [json.loads(line) for line in self.place.read_text().splitlines()] if self.place.is_file() else []
        if not lines or lines[0].get("images") != self.images or "done" in lines[-1]:
            return False
        self.seed = lines[0]["seed"]
        self.rows = [Row(**line) for line in lines[1:]]
        return True

    def write(self, line: dict[str, object]) -> None:
        with self.place.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def begin(self) -> None:
        self.place.unlink(missing_ok=True)
        self.write({"seed": self.seed, "images": self.images})

    def open_site(self, controllers: int, computes: int, cells: Sequence[str] = ("cell1",)) -> Testbed:
        nspawn.remove_leftovers(WORK / "boot")
        cluster = write_cluster(WORK / "cluster.yaml", controllers, computes, cells)
        return Testbed(cluster, make_secrets(self.dice("secrets")), unpack_trees())

    def wants(self, key: str) -> bool:
        """Whether that is still to be done."""
        if self.only not in key or key in [row.key for row in self.rows]:
            return False
        if time.monotonic() > self.deadline:
            self.late.append(key)
            return False
        return True

    def dice(self, key: str) -> random.Random:
        """The same for the same seed, whatever was done before."""
        return random.Random(f"{self.seed}/{key}")

    def strike(self, key: str, site: Testbed, do: Callable[[], Outcome]) -> bool:
        """Does it, looks whether the cluster is right afterwards, and keeps the row; whether it is right."""
        print(f"{key} ...", flush=True)
        begun, faults, happened, wrong = time.monotonic(), 1, "", ""
        try:
            faults, happened = do()
            site.check()
        except (Broken, ImagegenError) as error:
            wrong = str(error)
            keep_evidence(site, key)
        row = Row(key, faults, happened, wrong, round(time.monotonic() - begun, 1))
        self.rows.append(row)
        self.write(asdict(row))
        print(f"{key}: {row.seconds:.0f} s: {wrong or 'right'}", flush=True)
        return not wrong


def keep_evidence(site: Testbed, key: str) -> None:
    """Journals and consoles of every node, and what guests said, for a row that is wrong."""
    place = WORK / "evidence" / "".join(c if c.isalnum() else "-" for c in key)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, mode=0o700)
    for name, machine in site.machines.items():
        try:
            journal = machine.execute(["journalctl", "--no-pager", "--output=short-precise"], timeout=120).stdout
            (place / f"{name}.journal").write_bytes(journal)
        except ImagegenError:
            pass
        (place / f"{name}.console").write_text("\n".join(machine.console(200)))
        if name in site.guests:
            (place / f"{name}.guest").write_text("\n".join(site.hear(name)))
    print(f"evidence is in {place}", flush=True)


def tell(matrix: Matrix, seconds: float) -> int:
    """Prints the table and the count; 0 when every end state was right and nothing is left."""
    wrong = [row for row in matrix.rows if row.wrong]
    print(f"\nseed {matrix.seed}, images {matrix.images}\n")
    for row in matrix.rows:
        end = "right from outside, nothing lost, nothing doubled" if not row.wrong else f"WRONG: {row.wrong}"
        print(f"{row.key}  ({row.seconds:.0f} s)")
        for label, text in (("happened", row.happened), ("end state", end)):
            print(textwrap.fill(text, 118, initial_indent=f"  {label}: ", subsequent_indent="    "))
    if matrix.late:
        print(f"\nno time was left for: {', '.join(matrix.late)}; run it again, and it goes on")
    faults = sum(row.faults for row in matrix.rows)
    print(
        f"\n{len(matrix.rows)} schedules, {faults} faults, {len(wrong)} failures, {seconds:.0f} s, seed {matrix.seed}"
    )
    return 1 if wrong or matrix.late or not matrix.rows else 0


def main(given: argparse.Namespace) -> int:
    begun = time.monotonic()
    WORK.mkdir(parents=True, exist_ok=True)
    images = " ".join(tree.name for tree in unpack_trees().values())
    seed = FIXED_SEED if given.fixed else given.seed
    place = WORK / ("fixed.jsonl" if given.fixed else "rows.jsonl")
    matrix = Matrix(
        place,
        random.SystemRandom().randrange(10**6) if seed is None else seed,
        images,
        given.only,
        begun + 60 * given.minutes,
    )
    if given.fixed or given.again or given.seed is not None or not matrix.read():
        matrix.begin()
    print(f"seed {matrix.seed}, {len(matrix.rows)} schedules done before", flush=True)
    bring_ups = list_bring_ups()
    schedules: list[Callable[[Matrix], None]] = (
        [
            partial(crash_agents, phases="one"),
            partial(bring_ups[FIXED_BRING_UP], then=FIXED_FAULTS),
        ]
        if given.fixed
        else [
            partial(crash_agents, phases="all"),
            *bring_ups.values(),
            fill_at_first_boot,
            trouble_ready_cluster,
            trouble_guests,
        ]
    )
    with end_on_signals():
        try:
            for schedule in schedules:
                schedule(matrix)
        finally:
            nspawn.remove_leftovers(WORK / "boot")
    if not matrix.late and not given.only:
        matrix.write({"done": True})
    return tell(matrix, time.monotonic() - begun)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="of a run to repeat; begins anew (default: a random one)")
    parser.add_argument("--fixed", action="store_true", help="only the part that CI runs")
    parser.add_argument("--only", default="", metavar="WORDS", help="only schedules with these words in their names")
    parser.add_argument("--again", action="store_true", help="begin anew, whatever an interrupted run left")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begin nothing after so many (default: 75)")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main(parse_arguments()))
    except ImagegenError as error:
        print(f"the fault matrix cannot run: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
