"""imagegen serve."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Full, Queue
from threading import Thread

import click

from imagegen.base.errors import BadUsage
from imagegen.base.signals import end_on_signals
from imagegen.base.streams import Say
from imagegen.cli.inputs import NodeName, choose_nodes, load_inputs, load_own_cluster, warn_of_readers
from imagegen.cli.options import Address, Duration, Settings, common_options
from imagegen.cli.output import Outcome, say
from imagegen.seeds.seed import seed_tree
from imagegen.server.provisioning import (
    DIRECTORY,
    Serve,
    Window,
    describe_left_out,
    describe_windows,
    hold_directory,
    provision,
    use_ledger,
)


@click.command()
@click.option("--arm", "armed", multiple=True, type=NodeName(), help="Repeatable. Default: every new node.")
@click.option(
    "--for",
    "seconds",
    type=Duration(),
    default="1h",
    show_default=True,
    help="How long seeds may be claimed, such as 15m or 2h.",
)
@click.option(
    "--claims",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How often each armed node may claim its seed.",
)
@click.option("--no-seeds", is_flag=True, help="Give out no seeds: they come from media or Ironic.")
@click.option(
    "--listen", "address", type=Address(), help="Address to listen on. Default: the one in the nodes' boot URL."
)
@click.option("--any-address", is_flag=True, help="Do not check addresses: nodes are behind a router or NAT.")
@click.option("--tls-port", type=click.IntRange(1, 65535), default=8443, show_default=True, help="The port for seeds.")
@common_options
@click.pass_obj
def serve(
    settings: Settings,
    armed: tuple[str, ...],
    seconds: float,
    claims: int,
    no_seeds: bool,
    address: str | None,
    any_address: bool,
    tls_port: int,
) -> Outcome:
    """Serve pxe/ over HTTP, each node's seed over TLS, and a page that shows how far each node is; Ctrl-C stops it.

    A node may claim its seed while its window is open, as often as it has claims. Without --arm, every node that has
    never claimed a seed and never been ready may claim once within the hour; the others are listed, and get a window
    only with --arm. A live node claims at each boot. To open another window while the server runs, run the command
    again with --arm. docs/threat-model.md says what an attacker on that network can do in the meantime.

    \b
    Examples:
      imagegen pxe && imagegen serve
      imagegen serve --arm linux-node2 --for 15m
      imagegen serve --arm live-1 --for 30d --claims 100
      imagegen serve --no-seeds
    """
    if no_seeds and armed:
        raise BadUsage("--no-seeds gives out no seeds, but --arm opens a window for one", "use only one of the two")
    cluster, secrets = (load_own_cluster(settings), None) if no_seeds else load_inputs(settings)
    choose_nodes(settings, cluster, armed)
    if no_seeds:
        warn_of_readers(settings, cluster)
    make_seed = (lambda cluster, node: seed_tree(cluster, node, secrets)) if secrets else None
    window, out = Window(armed, seconds, claims), settings.out
    return _serve(
        settings, Serve(cluster, out / "pxe", out / DIRECTORY, make_seed, window, address, tls_port, any_address)
    )


def _serve(settings: Settings, asked: Serve) -> Outcome:
    try:
        with hold_directory(settings.out, lambda line: say(settings, line)) as alone:
            if not alone:
                return _arm_running(settings, asked.window)
            with (
                _say_in_background(settings) as announce,
                end_on_signals(),
                provision(asked, announce) as at_work,
            ):
                announce(f"serving {at_work.url} (files, status page); Ctrl-C stops it")
                windows = describe_windows(at_work.ledger.read()) if asked.make_seed else "none are given out"
                if at_work.left_out:
                    announce(describe_left_out(at_work.left_out))
                announce(f"seeds at {at_work.seed_url}: {windows}")
                while True:
                    at_work.serving.wait(1.0)
    except KeyboardInterrupt:
        with suppress(OSError):  # nobody may be there to hear it
            say(settings, f"stopped; the nodes' reports are kept in {asked.directory}: see `imagegen status`")
    return Outcome()


def _arm_running(settings: Settings, window: Window) -> Outcome:
    """Opens windows in the ledger of the server that is at work. Raises BadUsage."""
    at_work = f"another `imagegen serve` is running in {settings.out}"
    if not window.names:
        raise BadUsage(at_work, "arm nodes there with --arm, or choose another directory with -o")
    with use_ledger(settings.out / DIRECTORY) as ledger:
        if unknown := ledger.find_unknown(window.names):
            raise BadUsage(f"{at_work}, and does not know {', '.join(unknown)}", "restart it")
        if not ledger.gives_seeds:
            raise BadUsage(f"{at_work}, and gives out no seeds", "restart it without --no-seeds")
        ledger.open_windows(window.names, window.seconds, window.claims)
        say(settings, f"seeds from the running `imagegen serve`: {describe_windows(ledger.read())}")
    return Outcome()


@contextmanager
def _say_in_background(settings: Settings) -> Iterator[Say]:
    """Gives announce(line) that never waits and never fails: a terminal that is stopped or gone stops no server."""
    lines: Queue[str | None] = Queue(1000)

    def work() -> None:
        while (line := lines.get()) is not None:
            with suppress(OSError, ValueError):
                say(settings, line)

    def announce(line: str) -> None:
        with suppress(Full):
            lines.put_nowait(f"{time.strftime('%H:%M:%S')} {line}")

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield announce
    finally:
        with suppress(Full):
            lines.put_nowait(None)
        thread.join(1.0)
