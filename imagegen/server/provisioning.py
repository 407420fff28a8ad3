"""Provisioning: what `imagegen serve` serves, who may claim seeds, and where its data is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

from imagegen.base.errors import BadUsage
from imagegen.base.handles import is_file, keep_file, list_names, open_directory, remove_place
from imagegen.base.lock import Held, hold_lock
from imagegen.base.outdir import remove_leftovers, work_in
from imagegen.base.streams import Say
from imagegen.base.tree import Tree
from imagegen.inputs.ca import issue_certificate, load_authority
from imagegen.model.cluster import Cluster, Node
from imagegen.outputs.pxe import choose_url
from imagegen.seeds.iso import seed_iso_bytes
from imagegen.server.app import Site, find_mac, make_files_app, make_seeds_app
from imagegen.server.ledger import LISTENING, Ledger
from imagegen.server.listener import Listener, Serving, listen, make_tls_context
from imagegen.server.tables import Unusable, explain_unusable

TLS_PORT = 8443
DIRECTORY = "serve"
LEDGER = "ledger.sqlite"
MOST_NAMES = 50  # in one line

MakeSeed = Callable[[Cluster, Node], Tree]
"""The tree of a node's seed, for a cluster whose status_url is filled in."""


@dataclass(frozen=True)
class Window:
    """Who may claim a seed from now on: node names (empty: all that have never claimed a seed and never been ready),
    for how many seconds, and how often each.
    """

    names: Sequence[str] = ()
    seconds: float = 3600.0
    claims: int = 1


@dataclass(frozen=True)
class Serve:
    """What to serve, to whom, and where."""

    cluster: Cluster
    root: Path  # the tree of `imagegen pxe`
    directory: Path  # has the ledger; the caller holds it
    make_seed: MakeSeed | None  # None: no seeds are given out
    window: Window = Window()
    address: str | None = None  # where to listen; None: the nodes' boot URL's
    tls_port: int = TLS_PORT
    any_address: bool = False  # nodes are behind a router or NAT: their addresses prove nothing
    find_mac: Callable[[str], str | None] = find_mac


@dataclass(frozen=True)
class Provisioning:
    """A running server."""

    url: str
    seed_url: str
    serving: Serving
    ledger: Ledger
    left_out: Sequence[str]  # nodes whose window was not opened, because they have claimed or were ready before


@contextmanager
def hold_directory(out: Path, say: Say) -> Iterator[bool]:
    """Holds OUT/serve, closed to others. Gives True, or False if another server is running there.

    Calls `say` with who works in OUT if it has to wait for them.
    """
    directory = out / DIRECTORY
    with work_in(out, [DIRECTORY], "serve", say):
        pass  # it runs for days: let others work in out meanwhile
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(directory / "lock", "serve"))
        except Held:
            yield False
            return
        remove_leftovers(directory)
        yield True


@contextmanager
def use_ledger(directory: Path, *, make: bool = False) -> Iterator[Ledger]:
    """The ledger in OUT/serve, open until the context is left; with `make` a new one if there is none.

    Raises BadUsage if nothing was served from there; at any time MachineLacks if the ledger is damaged, another user's,
    or its disk is full.
    """
    path = directory / LEDGER
    nothing = BadUsage(
        f"nothing has been served from {directory.parent} yet", "run `imagegen serve`, or name its directory with -o"
    )
    try:
        check_ledger(path, make=make)
    except FileNotFoundError:
        raise nothing from None
    except PermissionError as error:
        raise explain_unusable(path, error) from error
    try:
        with closing(Ledger(path)) as ledger:
            if not (make or ledger.has_nodes):  # an empty file, or one that a server is about to fill
                raise nothing
            yield ledger
    except Unusable as error:
        raise explain_unusable(path, error) from error


def check_ledger(path: Path, *, make: bool = False) -> None:
    """Checks that SQLite, which follows links, finds none in place of its files; an empty ledger is valid.

    Files that it adds belong to the ledger's owner. Do not call it while this process has a Ledger open: a close()
    would drop its POSIX locks. Raises BadUsage, and FileNotFoundError if there is no ledger.
    """
    with open_directory(path.parent) as directory:
        there = set(list_names(directory))
    if path.name not in there and not make:
        raise FileNotFoundError(path)
    for name in (path.name, *(f"{path.name}-{suffix}" for suffix in ("wal", "shm", "journal"))):
        if name in there or name == path.name:
            os.close(keep_file(path.with_name(name)))


@contextmanager
def provision(asked: Serve, say: Say) -> Iterator[Provisioning]:
    """Serves until the context is left, in the network namespace of the thread that enters it.

    Raises BadUsage, MachineLacks.
    """
    cluster, make_seed, window = asked.cluster, asked.make_seed, asked.window
    url = choose_url(cluster)
    check_tree(cluster, asked.root)
    host, port = str(urlsplit(url).hostname), urlsplit(url).port or 80
    address = asked.address or host
    authority = load_authority(cluster.secrets_path.parent)
    names = [node.name for node in cluster.nodes]
    directory = asked.directory.absolute()
    with ExitStack() as stack:
        plain = listen(
            address, port, "choose another port in `pxe: {url: ...}` of the cluster file, then run `imagegen pxe`"
        )
        stack.callback(plain.close)
        tls = listen(address, asked.tls_port, "choose another port with --tls-port")
        stack.callback(tls.close)
        for name in ("server.pem", "server.key"):  # left by an older version that was killed
            remove_place(directory / name)
        ledger = stack.enter_context(use_ledger(directory, make=True))
        ledger.enter_nodes({node.name: str(node.role) for node in cluster.nodes})
        ledger.set_gives_seeds(make_seed is not None)
        if make_seed is None or window.names:
            ledger.close_windows()
        left_out: Sequence[str] = ()
        if make_seed is not None:
            chosen, new_only = window.names or names, not window.names
            left_out = ledger.open_windows(chosen, window.seconds, window.claims, new_only=new_only)
        stack.enter_context(attend(ledger))

        def make_iso(node: Node) -> bytes:
            assert make_seed is not None  # noqa: S101 - not called otherwise
            return seed_iso_bytes(make_seed(replace(cluster, status_url=site.status_url), node))

        seed_url = f"https://{host}:{tls.getsockname()[1]}"
        site = Site(
            cluster,
            url,
            seed_url,
            asked.root.absolute(),
            authority,
            ledger,
            make_iso if make_seed else None,
            say,
            asked.find_mac,
            asked.any_address,
        )
        server = issue_certificate(authority, sorted({IPv4Address(host), IPv4Address(address)}))
        context = make_tls_context(server.certificate, server.key)
        listeners = [Listener(make_files_app(site), plain), Listener(make_seeds_app(site), tls, context)]
        serving = stack.enter_context(Serving(listeners))
        yield Provisioning(url, seed_url, serving, ledger, left_out)


@contextmanager
def attend(ledger: Ledger) -> Iterator[None]:
    """Records that a server is listening while this lasts: otherwise nodes would count as lost when none was."""
    ledger.begin_listening()
    ended = Event()

    def work() -> None:
        with suppress(Unusable), closing(ledger.reopen()) as own:
            while not ended.wait(LISTENING / 2):
                own.keep_listening()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def check_tree(cluster: Cluster, root: Path) -> None:
    """Raises BadUsage unless `imagegen pxe` was run for these nodes."""
    missing = [node.name for node in cluster.nodes if not is_file(root / f"nodes/{node.name}.ipxe")]
    if missing:
        raise BadUsage(f"{root} has no script for {', '.join(missing[:5])}", "run `imagegen pxe`")


def describe_windows(told: Mapping[str, Any]) -> str:
    """Says who may claim a seed, from Ledger.read(): names, how often, until when."""
    groups: dict[str, list[str]] = {}
    for node in told["nodes"]:
        seed = node["seed"]
        if seed and seed["closes"] > told["now"] and seed["used"] < seed["claims"]:
            until = datetime.fromtimestamp(seed["closes"]).strftime("%Y-%m-%d %H:%M")
            left = seed["claims"] - seed["used"]
            groups.setdefault(f"may claim {'once' if left == 1 else f'{left} times'} until {until}", []).append(
                node["name"]
            )
    told_groups = [
        f"{', '.join(names) if len(names) < 6 else f'{len(names)} nodes'} {text}" for text, names in groups.items()
    ]
    return "; ".join(told_groups) or "nobody may claim one"


def describe_left_out(names: Sequence[str]) -> str:
    """Says for which nodes no window was opened, why, and how to open one."""
    who = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    have = "have claimed a seed or were ready" if len(names) > 1 else "has claimed a seed or was ready"
    return f"no window is open for {who}, which {have} before: to reinstall, run `imagegen serve --arm {names[0]}`"
