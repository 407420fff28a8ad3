"""The time in which machines are provisioned: what is served from where, with which seeds, and what the nodes said."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from imagegen.base.tree import Tree
from imagegen.inputs.ca import issue_certificate, load_authority
from imagegen.model.cluster import Cluster, Node
from imagegen.outputs.pxe import choose_url
from imagegen.seeds.iso import seed_iso_bytes
from imagegen.server.app import Site, find_mac, make_files_app, make_seeds_app
from imagegen.server.ledger import LISTENING, Ledger, Unusable, explain_unusable
from imagegen.server.listener import Listener, Serving, listen, make_tls_context

TLS_PORT = 8443
DIRECTORY = "serve"
LEDGER = "ledger.sqlite"
MOST_NAMES = 50  # in one line

MakeSeed = Callable[[Cluster, Node], Tree]
"""The tree of a node's seed, for a cluster whose status_url is filled in."""


@dataclass(frozen=True)
class Window:
    """Who may claim a seed from now on: node names (empty: all that never claimed and never were ready), for how many
    seconds, how often each.
    """

    names: Sequence[str] = ()
    seconds: float = 3600.0
    claims: int = 1


@dataclass(frozen=True)
class Provisioning:
    """A server at work."""

    url: str
    seed_url: str
    serving: Serving
    ledger: Ledger
    left_out: Sequence[str]  # nodes whose window was not opened, because they have claimed or were ready before


@contextmanager
def hold_directory(out: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """OUT/serve, closed to others; whether it is this process's alone. False: another server is at work there.

    `say` is told who works in OUT when it has to wait for them.
    """
    directory = out / DIRECTORY
    with work_in(out, [DIRECTORY], "serve", say):
        pass  # it runs for days: others work in out meanwhile
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(directory / "lock", "serve"))
        except Held:
            yield False
            return
        remove_leftovers(directory)
        yield True


def open_ledger(out: Path) -> Ledger:
    """What was served from OUT. Raises BadUsage when nothing was, MachineLacks when it is another user's."""
    path = out / DIRECTORY / LEDGER
    try:
        check_ledger(path)
        return Ledger(path)
    except FileNotFoundError:
        raise BadUsage(
            f"nothing has been served from {out} yet", "run `imagegen serve`, or name its directory with -o"
        ) from None
    except (PermissionError, Unusable) as error:
        raise explain_unusable(path, error) from error


def check_ledger(path: Path, *, make: bool = False) -> None:
    """Whether SQLite, which follows links, finds none at its files' places; an empty ledger counts as one.

    What it adds belongs to the ledger's owner. Not beside an open Ledger of this process, whose POSIX locks a close()
    would drop. Raises BadUsage, FileNotFoundError when there is no ledger.
    """
    with open_directory(path.parent) as directory:
        there = set(list_names(directory))
    if path.name not in there and not make:
        raise FileNotFoundError(path)
    for name in (path.name, *(f"{path.name}-{suffix}" for suffix in ("wal", "shm", "journal"))):
        if name in there or name == path.name:
            os.close(keep_file(path.with_name(name)))


@contextmanager
def provision(
    cluster: Cluster,
    root: Path,
    directory: Path,
    make_seed: MakeSeed | None,
    window: Window,
    say: Callable[[str], None],
    *,
    address: str | None = None,
    tls_port: int = TLS_PORT,
    listen: Callable[[str, int, str], Any] = listen,
    enter: Callable[[], None] = lambda: None,
    find_mac: Callable[[str], str | None] = find_mac,
    any_address: bool = False,
) -> Iterator[Provisioning]:
    """Serves `root`, the tree of `imagegen pxe`, and, unless `make_seed` is None, seeds; until the context is left.

    `directory` has the ledger; the caller holds it. `address` is where to listen, by default what the nodes are told.
    Raises BadUsage, MachineLacks.
    """
    url = choose_url(cluster)
    check_tree(cluster, root)
    host, port = str(urlsplit(url).hostname), urlsplit(url).port or 80
    address = address or host
    authority = load_authority(cluster.secrets_path.parent)
    names = [node.name for node in cluster.nodes]
    directory = directory.absolute()
    with ExitStack() as stack:
        plain = listen(
            address, port, "choose another one by `pxe: {url: ...}` of the cluster file, then run `imagegen pxe`"
        )
        stack.callback(plain.close)
        tls = listen(address, tls_port, "choose another one by --tls-port")
        stack.callback(tls.close)
        for name in ("server.pem", "server.key"):  # of a version that wrote them, and was killed
            remove_place(directory / name)
        check_ledger(directory / LEDGER, make=True)
        try:
            ledger = Ledger(directory / LEDGER)
        except Unusable as error:
            raise explain_unusable(directory / LEDGER, error) from error
        stack.callback(ledger.close)
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
            root.absolute(),
            authority,
            ledger,
            make_iso if make_seed else None,
            say,
            find_mac,
            any_address,
        )
        server = issue_certificate(authority, sorted({IPv4Address(host), IPv4Address(address)}))
        context = make_tls_context(server.certificate, server.key)
        listeners = [Listener(make_files_app(site), plain), Listener(make_seeds_app(site), tls, context)]
        serving = stack.enter_context(Serving(listeners, enter))
        yield Provisioning(url, seed_url, serving, ledger, left_out)


@contextmanager
def attend(ledger: Ledger) -> Iterator[None]:
    """Writes down that somebody listens, as long as this lasts: a node is not lost because nobody did."""
    ledger.begin_listening()
    ended = Event()

    def work() -> None:
        own = ledger.reopen()
        while not ended.wait(LISTENING / 2):
            own.keep_listening()
        own.close()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def check_tree(cluster: Cluster, root: Path) -> None:
    """Whether `imagegen pxe` was run for these nodes. Raises BadUsage."""
    missing = [node.name for node in cluster.nodes if not is_file(root / f"nodes/{node.name}.ipxe")]
    if missing:
        raise BadUsage(f"{root} has no script for {', '.join(missing[:5])}", "run `imagegen pxe`")


def describe_windows(told: Mapping[str, Any]) -> str:
    """Who may claim a seed now, of Ledger.read(): names, how often still, until when."""
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
    """Which nodes' windows a start did not open, why, and how it is done."""
    who = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    have = "have claimed a seed or were ready" if len(names) > 1 else "has claimed a seed or was ready"
    return f"no window is open for {who}, which {have} before: to reinstall, imagegen serve --arm {names[0]}"
