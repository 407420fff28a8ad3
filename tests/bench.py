"""Measures imagegen, each figure against its peer in the same run, and writes docs/benchmarks.md.

usage: bench.py [start] [seeds] [memory] [build] [boot] [discovery] [serve]     (default: all)
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import yaml

from imagegen.base.templates import render_template
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import load_secrets
from imagegen.local.qemu import free_port
from imagegen.seeds.iso import write_seed_iso
from imagegen.seeds.seed import seed_tree
from imagegen.server.listener import Listener, Serving, listen
from imagegen.server.provisioning import Serve, provision

CHECKOUT = Path(__file__).parent.parent
# The tests are no package: each directory finds its own modules on the path.
sys.path.insert(0, str(CHECKOUT / "tests/faults"))

from netboot_images import share_images  # noqa: E402
from testbed import Testbed, make_secrets, unpack_trees, write_cluster  # noqa: E402

IMAGEGEN = [sys.executable, "-m", "imagegen", "-q"]
PAGE = CHECKOUT / "docs/benchmarks.md"
SEEDS = 200
SEED_ROUNDS = 5
STARTS = 40
COMPUTES = 5  # for each kind of discovery


def measure(argv: list[str], *, env: dict[str, str] | None = None) -> tuple[float, str]:
    """(seconds, stdout) of a command that must succeed."""
    begin = time.monotonic()
    done = subprocess.run(argv, cwd=CHECKOUT, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}")
    return seconds, done.stdout


def bench_start(work: Path) -> list[str]:
    """`imagegen --help`, by the installed script, against an interpreter that does nothing; the fastest of many."""
    script = str(Path(sys.executable).with_name("imagegen"))
    rows = [[script, "--help"], [sys.executable, "-c", "pass"]]
    times = [[measure(argv)[0] for argv in rows] for _ in range(STARTS)]
    ours, bare = (min(column) for column in zip(*times, strict=True))
    return [f"| `imagegen --help` | {ours * 1000:.0f} ms | bare Python | {bare * 1000:.0f} ms | {ours / bare:.2f} |"]


def bench_build(work: Path) -> list[str]:
    """A cold build of the controller's tree, against plain disk-image-create of the same elements; no caches."""
    ours, _ = measure(
        [*IMAGEGEN, "-o", str(work / "ours"), "build", "--role", "controller", "--format", "tar"],
        env={"XDG_CACHE_HOME": str(work / "cache")},
    )
    plain, _ = measure(
        [sys.executable, ".ci/dib_role.py", "controller", str(work / "plain")],
        env={"DIB_IMAGE_CACHE": str(work / "dib-cache"), "TMPDIR": str(work)},
    )
    return [
        f"| controller build, cold, tar | {ours:.0f} s | `disk-image-create`, same elements "
        f"| {plain:.0f} s | {ours / plain:.2f} |"
    ]


def write_fleet(path: Path, nodes: int = SEEDS) -> None:
    """The default cluster file with so many computes that it has so many nodes."""
    document = yaml.safe_load(path.read_text())
    document["network"]["cidr"] = "192.168.0.0/16"
    for number in range(len(document["nodes"]), nodes):
        low, high = number % 250 + 1, number // 250
        mac, address = f"52:54:00:57:{high:02x}:{low:02x}", f"192.168.{100 + high}.{low}"
        document["nodes"].append({"name": f"c{number}", "role": "compute", "mac": mac, "address": address})
    (path.parent / "fleet.yaml").write_text(yaml.safe_dump(document))


def bench_seeds(work: Path) -> list[str]:
    """The seeds of a fleet, against cloud-localds on files that are rendered already. Medians of rounds.

    Both write files that are not there yet: freeing the old one is the file system's work, and differs by mount option.
    """
    write_fleet(work / "cluster.yaml")
    cluster = load_cluster(work / "fleet.yaml")
    secrets = load_secrets(work / "secrets.yaml")
    for name, file in seed_tree(cluster, cluster.nodes[0], secrets).items():
        (work / name).write_bytes(file.data)
    texts = [str(work / "user-data"), str(work / "meta-data")]
    ours, peer = [], []
    for number in range(SEED_ROUNDS):
        place = work / f"round-{number}"
        place.mkdir()
        begin = time.monotonic()
        for node in cluster.nodes:
            write_seed_iso(seed_tree(cluster, node, secrets), place / f"{node.name}.iso")
        ours.append((time.monotonic() - begin) / len(cluster.nodes))
        localds = [
            ["cloud-localds", "-N", str(work / "network-config"), str(place / f"{n}.iso"), *texts] for n in "abcde"
        ]
        peer.append(median(measure(each)[0] for each in localds))
    mine, theirs = median(ours) * 1000, median(peer) * 1000
    return [
        f"| a seed of {SEEDS}, rendered and written | {mine:.1f} ms | `cloud-localds`, writing only "
        f"| {theirs:.1f} ms | {mine / theirs:.3f} |"
    ]


# Runs a module's command and says at its end how much memory it had at most. Not by getrusage, whose maximum begins
# with that of the process which started it.
PEAK = """
import atexit, os, runpy, sys
from pathlib import Path
atexit.register(lambda: Path(os.environ["PEAK"]).write_text(Path("/proc/self/status").read_text()))
sys.argv = sys.argv[1:]
if sys.argv:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def measure_peak(work: Path, words: list[str]) -> float:
    """The most memory, in MiB, that `python -m WORDS...` had; of the bare interpreter without words."""
    place = work / "status"
    measure([sys.executable, "-c", PEAK, *words], env={"PEAK": str(place)})
    return int(place.read_text().split("VmHWM:")[1].split()[0]) / 1024


def bench_memory(work: Path) -> list[str]:
    """Peak memory of generate and seed for the default cluster, against the bare interpreter."""
    bare = measure_peak(work, [])
    lines = []
    for command in ("generate", "seed"):
        words = ["imagegen", "-q", "-c", str(work / "cluster.yaml"), "-o", str(work / command), command]
        peak = measure_peak(work, words)
        lines.append(
            f"| peak memory of `{command}` | {peak:.0f} MiB | bare Python | {bare:.0f} MiB | {peak / bare:.1f} |"
        )
    return lines


def bench_boot(work: Path) -> list[str]:
    """Time to ready of both roles, natively and in QEMU (the peer), from the images in out/."""
    seconds: dict[str, dict[str, float]] = {}
    share_images(CHECKOUT / "out/images", work / "out")
    for backend in ("nspawn", "qemu"):
        cluster = ["-c", str(work / "cluster.yaml"), "-o", str(work / "out")]
        _, output = measure([*IMAGEGEN, *cluster, "--output", "json", "boot", "--backend", backend])
        seconds[backend] = {node["role"]: node["seconds"] for node in json.loads(output)["nodes"]}
    return [
        f"| {role} ready, nspawn | {own:.0f} s | the same in QEMU | {seconds['qemu'][role]:.0f} s "
        f"| {own / seconds['qemu'][role]:.2f} |"
        for role, own in seconds["nspawn"].items()
    ]


PERIODIC = 30  # seconds; what Nova's own discovery is set to where somebody found the usual minutes too long


def bench_discovery(work: Path) -> list[str]:
    """From a compute's first report until a server can be placed there, against the scheduler's periodic discovery.

    Medians of computes that are switched on one after the other in containers.
    """
    cluster = write_cluster(work / "discovery.yaml", 1, 2 * COMPUTES)
    with Testbed(cluster, make_secrets(Random(1)), unpack_trees()) as site:
        computes = [name for name in site.names if name.startswith("cpt")]
        site.start("ctl-1")
        site.wait_ready("ctl-1")
        ours = [time_compute(site, name) for name in computes[:COMPUTES]]
        site.ask("ctl-1", "systemctl", "stop", "imagegen-node")
        setting = f"[scheduler]\ndiscover_hosts_in_cells_interval = {PERIODIC}\n"
        site.ask("ctl-1", "tee", "/etc/nova/nova.conf.d/90-bench.conf", input=setting)
        site.ask("ctl-1", "systemctl", "restart", "nova-scheduler")
        peer = [time_compute(site, name) for name in computes[COMPUTES:]]
    mine, theirs = (f"{median(times):.1f} s (worst {max(times):.1f})" for times in (ours, peer))
    return [
        f"| schedulable after its first report | {mine} | `discover_hosts_in_cells_interval = {PERIODIC}` "
        f"| {theirs} | {median(ours) / median(peer):.2f} |"
    ]


def time_compute(site: Testbed, name: str) -> float:
    """Switches the compute on; the seconds that schedulable.py prints."""
    given = {
        "auth_url": site.cluster.services.auth_url,
        "address": str(site.node("ctl-1").address),
        "password": site.secrets["identity_admin"],
    }
    program = [sys.executable, str(CHECKOUT / "tests/faults/schedulable.py"), name]
    site.start(name)
    argv = site.in_network(program)
    done = subprocess.run(argv, input=json.dumps(given), stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


FLEET = 1000  # nodes that report
DOCUMENTS = 10  # of each
ROUNDS = 3
FILE_BYTES = 512 << 20  # about an image's


async def answer_nothing(scope: Any, receive: Any, send: Any) -> None:
    """What costs least: the same few bytes, whatever is asked."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"15")]})
    await send({"type": "http.response.body", "body": b'{"revision": 0}'})


def measure_load(url: str, answer: str) -> tuple[float, float]:
    """(statuses taken a second, seconds of the slower half of looks at the page's data meanwhile).

    Every status must have got that answer.
    """
    load = [sys.executable, str(CHECKOUT / "tests/serve/load.py"), url, str(FLEET), str(DOCUMENTS)]
    result = json.loads(measure(load)[1])
    if result["answers"] != {f"HTTP/1.1 {answer}": FLEET * DOCUMENTS}:
        raise SystemExit(f"{url} did not take every status: {result['answers']}")
    return FLEET * DOCUMENTS / result["seconds"], median(sorted(result["polls"])[len(result["polls"]) // 2 :])


def measure_download(url: str) -> float:
    """MiB a second."""
    seconds, _ = measure(["curl", "--silent", "--fail", "--output", "/dev/null", url])
    return FILE_BYTES / seconds / 2**20


def bench_serve(work: Path) -> list[str]:
    """A fleet that reports to `imagegen serve`, against a uvicorn that answers nothing; an image, against nginx."""
    write_fleet(work / "cluster.yaml", FLEET)
    port, peer_port, nginx_port = free_port(), free_port(), free_port()
    document = yaml.safe_load((work / "fleet.yaml").read_text())
    document["pxe"] = {"url": f"http://127.0.0.1:{port}"}
    for number, node in enumerate(document["nodes"]):
        node["name"] = f"c-{number}" if number else "ctl"
    document.pop("services")
    (work / "fleet.yaml").write_text(yaml.safe_dump(document))
    cluster = load_cluster(work / "fleet.yaml")
    root, directory = work / "pxe", work / "serve"
    (root / "nodes").mkdir(parents=True)
    directory.mkdir()
    for node in cluster.nodes:
        (root / f"nodes/{node.name}.ipxe").write_text("#!ipxe\n")
    with (root / "image").open("wb") as stream:
        stream.truncate(FILE_BYTES)
    ours: list[tuple[float, float]] = []
    floor: list[float] = []
    files: list[float] = []
    nginx: list[float] = []
    bare = Listener(answer_nothing, listen("127.0.0.1", peer_port))
    values = {"cluster": "bench", "host": "127.0.0.1", "port": nginx_port, "root": root}
    (work / "site.conf").write_text(render_template("nginx.conf.j2", values))
    shutil.copy(CHECKOUT / "tests/data/nginx.conf", work)
    (work / "temp").mkdir()
    work.chmod(0o755)
    peer = subprocess.Popen(["nginx", "-p", str(work), "-c", "nginx.conf"])
    try:
        with (
            provision(
                Serve(cluster, root, directory, None, tls_port=0, any_address=True), lambda line: None
            ) as at_work,
            Serving([bare]),
        ):
            for _ in range(ROUNDS):
                ours.append(measure_load(f"http://127.0.0.1:{port}", "204 No Content"))
                floor.append(measure_load(f"http://127.0.0.1:{peer_port}", "200 OK")[0])
                files.append(measure_download(f"{at_work.url}/image"))
                nginx.append(measure_download(f"http://127.0.0.1:{nginx_port}/image"))
    finally:
        peer.terminate()
        peer.wait()
    rate, mib = median(rate for rate, _ in ours), median(files)
    return [
        f"| statuses of {FLEET} nodes, each on a connection of its own | {rate:.0f} /s | uvicorn that answers nothing "
        f"| {median(floor):.0f} /s | {median(floor) / rate:.2f} |",
        f"| the page's data meanwhile, slower half | {median(poll for _, poll in ours) * 1000:.0f} ms | | | |",
        f"| an image of 512 MiB by HTTP | {mib:.0f} MiB/s | nginx, the same site | {median(nginx):.0f} MiB/s "
        f"| {median(nginx) / mib:.2f} |",
    ]


BENCHES: dict[str, Callable[[Path], list[str]]] = {
    "start": bench_start,
    "seeds": bench_seeds,
    "memory": bench_memory,
    "build": bench_build,
    "boot": bench_boot,
    "discovery": bench_discovery,
    "serve": bench_serve,
}


def describe_machine() -> str:
    """Cores, memory, kernel, and whether QEMU has KVM here."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    flags = Path("/proc/cpuinfo").read_text().split()
    engine = "KVM" if {"vmx", "svm"} & set(flags) else "TCG: no KVM"
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {os.uname().release.split('-')[0]}, QEMU with {engine}"


def main(names: list[str]) -> None:
    """Runs the named benches and writes the page; a bench that is left out keeps its lines."""
    unknown = set(names) - set(BENCHES)
    if unknown:
        raise SystemExit(__doc__)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    stamp = f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}, {describe_machine()}"
    kept = read_sections()
    with tempfile.TemporaryDirectory(prefix="imagegen-bench.") as name:
        work = Path(name)
        measure([*IMAGEGEN, "init", str(work)])
        for bench in names or list(BENCHES):
            print(f"bench: {bench}", file=sys.stderr, flush=True)
            kept[bench] = [f"| {bench} | {stamp} | | | |", *BENCHES[bench](work)]
            write_page(kept)
    print(PAGE.read_text())


def read_sections() -> dict[str, list[str]]:
    """The lines of each bench in the page as it is."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in PAGE.read_text().splitlines() if PAGE.is_file() else []:
        first = line.split("|")[1].strip() if line.startswith("| ") else ""
        if first in BENCHES:
            current = sections.setdefault(first, [])
        if line.startswith("| ") and first not in ("what",):
            current.append(line)
    return sections


def write_page(sections: dict[str, list[str]]) -> None:
    """The page: a table with a line of circumstances before each group of figures."""
    head = [
        "# Benchmarks",
        "",
        "Written by `make bench`. A ratio below 1 beats the peer. Times depend on the machine, so compare ratios.",
        "",
        "| what | imagegen | peer | of the peer | ratio |",
        "|---|---|---|---|---|",
    ]
    body = [line for name in BENCHES for line in sections.get(name, [])]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join([*head, *body]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
