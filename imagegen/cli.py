"""The command line. A command imports the modules that it needs when it runs, so that `imagegen --help` is quick."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TextIO, TypeVar, cast

import click

from imagegen import __version__
from imagegen.errors import BadInput, BadUsage, CommandFailed, ExitCode, ImagegenError, MachineLacks, Problem
from imagegen.streams import RED, YELLOW, OutputLost, open_streams, print_data, print_line, tell, visible

if TYPE_CHECKING:
    from imagegen.document import Findings
    from imagegen.fleet import Screen
    from imagegen.ledger import Ledger
    from imagegen.model import Cluster, Node, Role
    from imagegen.provisioning import Window
    from imagegen.secrets import Secrets

IPXE = Path("/usr/lib/ipxe")  # Debian's package ipxe
DEFAULT_CLUSTER = Path("cluster.yaml")
MAX_PROBLEMS = 100
ROLES = ("controller", "compute")  # model.Role and build.FORMATS; importing them here would cost every start
STATES = ("failed", "lost", "degraded", "waiting", "working", "silent", "ready")  # fleet.ORDER; likewise
FORMATS = ("tar", "raw", "qcow2", "raw.zst", "squashfs", "vmlinuz", "initrd")

Function = TypeVar("Function", bound=Callable[..., Any])
Report = Callable[..., None]


@dataclass
class Settings:
    """The options that every command takes, before or after the command's name."""

    command: str = ""
    cluster: Path | None = None
    given_out: Path = Path("out")
    output: str = "text"
    verbose: int = 0
    quiet: bool = False
    debug: bool = False
    warnings: list[Problem] = field(default_factory=list)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)

    @property
    def out(self) -> Path:
        """Where results go, once it is a place that no other user can change. Raises BadUsage."""
        from imagegen.owners import find_place

        return find_place(self.given_out)


@dataclass(frozen=True)
class Outcome:
    """What a command has for stdout: lines of text, and the keys of the JSON document that apply."""

    lines: Sequence[str] = ()
    images: list[dict[str, Any]] | None = None
    nodes: list[dict[str, Any]] | None = None
    claims: dict[str, Any] | None = None
    problems: list[Problem] = field(default_factory=list)
    code: ExitCode = ExitCode.DONE
    colours: bool = False  # whether the lines are coloured
    paths: list[str] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def document(self, settings: Settings) -> dict[str, Any]:
        """What `--output json` prints (data/output.schema.json)."""
        rows = {"images": self.images, "nodes": self.nodes, "claims": self.claims, "paths": self.paths}
        return {
            "version": 1,
            "command": settings.command,
            "ok": self.code is ExitCode.DONE,
            "problems": [_describe_problem(problem) for problem in self.problems],
            "warnings": [_describe_problem(warning) for warning in settings.warnings],
            **{key: value for key, value in rows.items() if value is not None},
            **self.more,
        }


def _describe_problem(problem: Problem) -> dict[str, Any]:
    return {key: value for key, value in asdict(problem).items() if key != "hint" or value}


def _print_paths(*paths: Path) -> Outcome:
    """The outcome of a command that wrote these."""
    named = [os.fspath(path) for path in paths]
    return Outcome(named, paths=named)


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if context.parent:
        context.obj.command = context.info_name
    if value and parameter.name:
        setattr(context.obj, parameter.name, value)


def _common(function: Function) -> Function:
    """Adds the common options; what they say lands in Settings."""
    path = click.Path(path_type=Path)

    @wraps(function)
    def run(*args: Any, **given: Any) -> Any:
        with redirect_stdout(click.get_current_context().obj.stdout):  # see run_command()
            return function(*args, **given)

    for names, attributes in (
        (("--debug",), {"is_flag": True, "help": "Show tracebacks."}),
        (("-q", "--quiet"), {"is_flag": True, "help": "Print only what went wrong."}),
        (("-v", "--verbose"), {"count": True, "help": "Print more."}),
        (("--output",), {"type": click.Choice(["text", "json"]), "help": "Output format. Default: text."}),
        (
            ("-o", "--out", "given_out"),
            {"type": _Directory(path_type=Path), "metavar": "DIR", "help": "Where results go. Default: ./out."},
        ),
        (
            ("-c", "--cluster"),
            {"type": path, "metavar": "FILE", "help": "The cluster file; - is stdin. Default: ./cluster.yaml."},
        ),
    ):
        run = click.option(*names, expose_value=False, callback=_keep, **attributes)(run)  # type: ignore[arg-type]
    return cast(Function, run)


class _Directory(click.Path):
    """A directory's path. Empty, as from a variable that is not set, it would be this directory."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if value == "":
            self.fail("must not be empty; use `.` for the current directory", parameter, context)
        return super().convert(value, parameter, context)


class _Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, from a number with s, m, h or d."""

    name = "DURATION"
    units: ClassVar = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        digits, unit = value[:-1], value[-1:]
        if unit not in self.units or not digits.isdecimal() or not 0 < int(digits) <= 10_000:
            self.fail(f"{value!r} is not a valid duration; write one such as 15m, 2h or 1d", parameter, context)
        return int(digits) * self.units[unit]


class _Address(click.ParamType):  # type: ignore[type-arg]
    """An IPv4 address, as text."""

    name = "ADDRESS"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        from ipaddress import IPv4Address

        try:
            return str(IPv4Address(value))
        except ValueError:
            self.fail(f"{value!r} is not an IPv4 address; write one such as 192.168.56.1", parameter, context)


def _complete_nodes(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """The names of nodes for a shell's completion; none when there is no good cluster file."""
    from imagegen.cluster import load_cluster

    with suppress(ImagegenError):
        names = [node.name for node in load_cluster(context.obj.cluster or DEFAULT_CLUSTER).nodes]
        return [name for name in names if name.startswith(begun)]
    return []


def _complete_commands(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    return [name for name in cli.commands if name.startswith(begun)]


class _InOrder(click.Group):
    """Commands in the order of their use, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
@_common
def cli() -> None:
    """Turn one cluster file into OpenStack Nova nodes that configure themselves.

    Data goes to stdout, progress and problems to stderr. NO_COLOR is honoured.

    \b
    From nothing to a verified cluster on this machine:
      imagegen init                           write cluster.yaml and secrets.yaml
      imagegen validate                       check cluster.yaml
      sudo "$(command -v imagegen)" build     build one image per role
      imagegen boot                           boot the nodes here and wait until they are ready

    \b
    Exit codes:
      0 done   1 failed   2 bad usage or bad input   3 this machine lacks something
      4 a command failed   5 a node did not become ready
      130 interrupted   141 stdout was closed early
    """


@cli.command(short_help="Write a first cluster.yaml and secrets.yaml.")
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@_common
@click.pass_obj
def init(settings: Settings, directory: Path) -> Outcome:
    """Write cluster.yaml (one controller, one compute), secrets.yaml (generated, 0600) and a CA to DIR.

    Nodes recognise `imagegen serve` by the CA (ca.pem, ca.key). Existing files are never overwritten. Next to a cluster
    file or secrets of an earlier version, only the CA is made.

    \b
    Examples:
      imagegen init
      imagegen init demo && imagegen -c demo/cluster.yaml validate
    """
    from imagegen.authority import CERTIFICATE, KEY, explain_half, generate_authority
    from imagegen.cluster import default_text
    from imagegen.handles import open_directory
    from imagegen.secrets import generate_secrets
    from imagegen.tree import File, text

    authority = generate_authority()
    texts = {"cluster.yaml": text(default_text()), "secrets.yaml": text(generate_secrets(), 0o600)}
    pair = {CERTIFICATE: File(authority.certificate), KEY: File(authority.key, 0o600)}
    there = [directory / name for name in (*texts, *pair) if os.path.lexists(directory / name)]
    if there and any(path.name in pair for path in there):
        names = " and ".join(map(os.fspath, there))
        lost = [directory / name for name in pair if directory / name not in there]
        half = next(path for path in there if path.name in pair)
        hint = explain_half(half, *lost)[1] if lost else "choose another directory"
        raise BadUsage(f"refusing to overwrite {names}", hint)
    files = {directory / name: file for name, file in (pair if there else texts | pair).items()}
    with open_directory(directory.resolve(), make=True):
        for path, file in files.items():
            _write_new(path, file)
    if there:
        _say(settings, f"made only the CA; kept {' and '.join(map(os.fspath, there))}")
    else:
        _say(
            settings, "edit cluster.yaml, then run `imagegen validate`; secrets.yaml and ca.key are for your eyes only"
        )
    return _print_paths(*files)


@cli.command(short_help="Check the cluster file; print every problem at once.")
@click.option("--explain", is_flag=True, help="Print what you must create at services outside the cluster.")
@click.option("--strict", is_flag=True, help="Exit with 2 for warnings, too.")
@_common
@click.pass_obj
def validate(settings: Settings, explain: bool, strict: bool) -> Outcome:
    """Check the cluster file and print every problem as FILE:LINE: PATH: MESSAGE.

    A file without problems may still have warnings: FILE:LINE: PATH: warning: MESSAGE. Secrets are not read. --explain
    prints the commands for the administrators of services outside the cluster.

    \b
    Examples:
      imagegen validate
      imagegen -c site/cluster.yaml validate --output json
      ./make-cluster | imagegen validate --strict -c -
      imagegen validate --explain
    """
    from imagegen.external import explain_external
    from imagegen.pxe import find_long_lines
    from imagegen.warnings import find_warnings

    cluster, found = _read_own_cluster(settings)
    for path, message in find_long_lines(cluster):
        found.add(path, message)
    if found.problems:
        raise BadInput(found.problems)
    settings.warnings += find_warnings(cluster, found)
    for warning in settings.warnings:
        tell(str(replace(warning, message=f"warning: {warning.message}")))
    lines = explain_external(cluster) if explain else []
    if explain and not lines:
        _say(settings, "every service is in the cluster: you need not create anything")
    more = {"explain": lines} if explain else {}
    if strict and settings.warnings:
        fault = f"{found.file} has {len(settings.warnings)} warning(s), and --strict allows none"
        _complain(fault)
        return Outcome(lines, problems=[Problem("", 0, "", fault)], code=ExitCode.BAD_INPUT, more=more)
    _say(settings, f"{found.file}: no problems, {len(cluster.nodes)} node(s)")
    return Outcome(lines, more=more)


@cli.command(short_help="Write elements, image definitions and seeds as text.")
@_common
@click.pass_obj
def generate(settings: Settings) -> Outcome:
    """Write elements/, images.yaml and seeds/NODE/ to the out directory.

    Text only. Needs neither root nor a network. The same input gives the same bytes, so you can compare results.

    \b
    Examples:
      imagegen generate
      imagegen generate -o new && diff -r out/elements new/elements
    """
    cluster, secrets = _load_inputs(settings)
    return _print_paths(*_write_texts(settings, cluster, secrets))


@cli.command(short_help="Build one image per role (root).")
@click.option(
    "--role", "roles", multiple=True, type=click.Choice(ROLES), help="Repeatable. Default: the cluster's roles."
)
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(FORMATS), help="Repeatable. Default: all of them."
)
@click.option("--refresh", is_flag=True, help="Build even if an image with the same ID exists.")
@click.option("--untested", is_flag=True, help="Build a release or distro that nobody has built and booted yet.")
@_common
@click.pass_obj
def build(
    settings: Settings, roles: tuple[str, ...], formats: tuple[str, ...], refresh: bool, untested: bool
) -> Outcome:
    """Build images/ROLE/ROLE-ID.{tar,raw,qcow2}: diskimage-builder makes the tree, imagegen the disk.

    An image holds no secret and no identity, so it suits every cluster of that release. Needs root; sudo does not
    search a virtual environment, hence the long form below. The whole log goes to logs/ in the out directory.

    \b
    Examples:
      sudo "$(command -v imagegen)" build --role controller
      sudo "$(command -v imagegen)" build --format qcow2 --refresh
    """
    from imagegen.warnings import untested_release

    cluster = _load_cluster(settings)
    if not untested and (sentence := untested_release(cluster)):
        raise BadUsage(sentence, "choose another `release` and `distro`, or try this one with --untested")
    images = _build_images(settings, cluster, roles, formats or FORMATS, refresh)
    return Outcome(_table(images, ("role", "format", "id", "path")), images=images)


@cli.command(short_help="Make one seed ISO per node.")
@click.argument("names", metavar="[NODE]...", nargs=-1, shell_complete=_complete_nodes)
@_common
@click.pass_obj
def seed(settings: Settings, names: tuple[str, ...]) -> Outcome:
    """Write seeds/NODE.iso (0600, label cidata) for the named nodes, or for all.

    A seed holds the node's secrets: attach it to that machine and to no other.

    \b
    Examples:
      imagegen seed
      imagegen seed linux-node1 -o /srv/seeds
    """
    cluster, secrets = _load_inputs(settings)
    chosen = _choose_nodes(settings, cluster, names)
    paths = _write_isos(settings, cluster, secrets, chosen, whole=not names)
    rows = [
        {"name": n.name, "role": str(n.role), "seed": os.fspath(path)} for n, path in zip(chosen, paths, strict=True)
    ]
    return replace(_print_paths(*paths), nodes=rows)


@cli.command(short_help="Boot the nodes on this machine and verify them.")
@click.argument("names", metavar="[NODE]...", nargs=-1, shell_complete=_complete_nodes)
@click.option(
    "--backend",
    type=click.Choice(["qemu", "nspawn"]),
    default="qemu",
    show_default=True,
    help="nspawn needs root.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Default: 20, without KVM 60.",
)
@click.option("--keep", is_flag=True, help="Leave the nodes running and print how to log in.")
@click.option("--pxe", "over_network", is_flag=True, help="Boot blank machines over the network (root).")
@click.option(
    "--from-disk", multiple=True, metavar="NODE", help="Repeatable. With --pxe: boot this node from its image and ISO."
)
@click.option(
    "--firmware", type=click.Choice(["bios", "uefi"]), help="With --pxe: the blank machines' firmware. Default: uefi."
)
@click.option("--proxy-dhcp", is_flag=True, help="With --pxe: leave addresses to another DHCP server.")
@_common
@click.pass_obj
def boot(
    settings: Settings,
    names: tuple[str, ...],
    backend: str,
    timeout: float | None,
    keep: bool,
    over_network: bool,
    from_disk: tuple[str, ...],
    firmware: str | None,
    proxy_dhcp: bool,
) -> Outcome:
    """Boot the named nodes, or all, from built images and fresh seeds; wait until they are ready; check the cluster.

    Exit code 0 means that every node is ready and was verified from outside. With --pxe the machines start with blank
    disks: they get DHCP, the files of `imagegen pxe` and their seeds over a network inside this machine.

    \b
    Examples:
      imagegen boot
      imagegen boot linux-node1 --timeout 90
      sudo "$(command -v imagegen)" boot --backend nspawn --keep
      imagegen pxe && sudo "$(command -v imagegen)" boot --pxe --from-disk linux-node1
    """
    if not over_network and (from_disk or firmware or proxy_dhcp):
        raise BadUsage("--from-disk, --firmware and --proxy-dhcp apply only to network boots", "add --pxe")
    if over_network and backend != "qemu":
        raise BadUsage("--pxe needs virtual machines", "leave --backend out")
    cluster, secrets = _load_inputs(settings)
    chosen = _choose_nodes(settings, cluster, names)
    _choose_nodes(settings, cluster, from_disk)
    how = {"from_disk": frozenset(from_disk), "firmware": firmware or "uefi", "proxy_dhcp": proxy_dhcp}
    network_boot = how if over_network else None
    return _boot_nodes(settings, cluster, secrets, chosen, backend, timeout and timeout * 60, keep, network_boot)


@cli.command(short_help="Make the files for booting the nodes over the network.")
@_common
@click.pass_obj
def pxe(settings: Settings) -> Outcome:
    """Write pxe/: iPXE scripts, hard links to the built images, and configurations for dnsmasq and nginx.

    Nothing in it is secret, and any web and TFTP server can serve it. A node writes its image to its disk
    (`deploy: {mode: deploy}`, the default) or runs it live from memory.

    \b
    Examples:
      imagegen pxe
      sudo dnsmasq --conf-file="$PWD/out/pxe/dnsmasq.conf"
    """
    from imagegen.access import explain_closed
    from imagegen.marks import mark_tree
    from imagegen.outdir import work_in
    from imagegen.pxe import LOADERS, find_images, link_files, pxe_tree
    from imagegen.tree import write_tree

    cluster, out = _load_own_cluster(settings), settings.out
    images = find_images(cluster, out)
    root = out.absolute() / "pxe"
    tree = pxe_tree(cluster, images, root)
    loaders = {f"ipxe/{name}": (IPXE / name).resolve() for name in LOADERS if (IPXE / name).is_file()}
    if not loaders:
        raise MachineLacks("iPXE's boot files are missing", f"install the package ipxe: they belong in {IPXE}")
    with work_in(out, ["pxe"], "pxe", lambda line: _say(settings, line)):
        write_tree(mark_tree(tree), root, links={**link_files(images.values()), **loaders})
    if warning := explain_closed(root / "ipxe"):
        _warn(settings, warning)
    rows = [{"name": n.name, "role": str(n.role), "image": images[n.role].id} for n in cluster.nodes]
    return replace(_print_paths(out / "pxe"), nodes=rows)


@cli.command(short_help="Serve the network boot, seeds and a status page while machines are provisioned.")
@click.option("--arm", "armed", multiple=True, metavar="NODE", help="Repeatable. Default: every new node.")
@click.option(
    "--for",
    "seconds",
    type=_Duration(),
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
    "--listen", "address", type=_Address(), help="Address to listen on. Default: the one in the nodes' boot URL."
)
@click.option("--any-address", is_flag=True, help="Do not check addresses: nodes are behind a router or NAT.")
@click.option("--tls-port", type=click.IntRange(1, 65535), default=8443, show_default=True, help="The port for seeds.")
@_common
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
    from imagegen.provisioning import Window

    window = Window(armed, seconds, claims)
    if no_seeds and armed:
        raise BadUsage("--no-seeds gives out no seeds, but --arm opens a window for one", "use only one of the two")
    listening = {"address": address, "tls_port": tls_port, "any_address": any_address}
    return _serve(settings, window, seeds=not no_seeds, listening=listening)


@cli.command(short_help="Show the nodes that `imagegen serve` provisions.")
@click.argument("names", nargs=-1, metavar="[NODE]...")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Show only these. Repeatable.")
@click.option("--watch", is_flag=True, help="Keep watching until every node is ready or has failed.")
@click.option("--timeout", type=_Duration(), help="Watch, and give up after this long, such as 20m or 2h.")
@_common
@click.pass_obj
def status(
    settings: Settings, names: tuple[str, ...], states: tuple[str, ...], watch: bool, timeout: float | None
) -> Outcome:
    """Print each node's state, step and what it waits for, as reported to `imagegen serve`; failed nodes come first.

    Nodes in the same state for the same reason share one line. Nodes report every minute, and every five minutes once
    they are ready: after three missed reports a node is lost, until it reports again. A ready node that does not do
    all its work is degraded. On a terminal everything fits on the screen; with NODE or --state, and in a pipe, nothing
    is left out.

    Exit code 0 means that every node is ready, 5 that one has failed or missed the timeout, 1 that some are on their
    way, lost or degraded. NODE limits which nodes count for that, --state only which are shown.

    \b
    Examples:
      imagegen status
      imagegen status --watch --timeout 30m
      imagegen status linux-node2 linux-node3
      imagegen status --state failed --state lost
      imagegen status --output json | jq '.nodes[] | select(.state == "failed")'
    """
    return _show_status(settings, names, states, watch or timeout is not None, timeout)


@cli.command(short_help="Write the files for Ironic and Metal3.")
@click.option("--ironic", is_flag=True, help="Write Ironic's files only, unless --metal3 is given too.")
@click.option("--metal3", is_flag=True, help="Write Metal3's files only, unless --ironic is given too.")
@click.option("--driver", default="redfish", show_default=True, help="The driver of the nodes in Ironic.")
@_common
@click.pass_obj
def baremetal(settings: Settings, ironic: bool, metal3: bool, driver: str) -> Outcome:
    """Write ironic/ (nodes.yaml, instance-info/, configdrive/) and metal3/ (BareMetalHosts with their Secrets).

    Config drives and Secrets hold the nodes' secrets. Images are named by their URL in the tree of `imagegen pxe` and
    their sha256. Live nodes are left out, because Ironic and Metal3 write images to disks. root_device selects the same
    disk everywhere. A hint that Metal3 cannot express stops the command before it writes anything; --ironic leaves
    Metal3 out.

    \b
    Examples:
      imagegen baremetal && openstack baremetal create out/ironic/nodes.yaml
      kubectl apply -f out/metal3/linux-node2.yaml
    """
    from imagegen.baremetal import SUFFIXES, ironic_tree, metal3_tree
    from imagegen.marks import mark_tree
    from imagegen.outdir import work_in
    from imagegen.pxe import find_images
    from imagegen.seeds import seed_trees
    from imagegen.tree import write_tree

    whole, secrets = _load_inputs(settings)
    cluster = replace(whole, nodes=tuple(node for node in whole.nodes if node.deploy.mode == "deploy"))
    if live := [node.name for node in whole.nodes if node not in cluster.nodes]:
        _say(settings, f"left out, because they are live: {', '.join(live)}")
    images, seeds = find_images(cluster, settings.out, SUFFIXES), seed_trees(cluster, secrets)
    trees = {}
    if ironic or not metal3:
        trees["ironic"] = ironic_tree(cluster, images, seeds, driver)
    if metal3 or not ironic:
        trees["metal3"] = metal3_tree(cluster, images, seeds)
    with work_in(settings.out, list(trees), "baremetal", lambda line: _say(settings, line)):
        for name, tree in trees.items():
            write_tree(mark_tree(tree), settings.out / name, directory_mode=0o700)
    rows = [{"name": n.name, "role": str(n.role), "image": images[n.role].id} for n in cluster.nodes]
    return replace(_print_paths(*(settings.out / name for name in trees)), nodes=rows)


@cli.command(short_help="Print the cluster file's JSON schema, for editors.")
@_common
@click.pass_obj
def schema(settings: Settings) -> Outcome:
    """Print the JSON schema of the cluster file.

    \b
    Example, for editors that use the YAML language server:
      imagegen schema > cluster.schema.json
      and in cluster.yaml:  # yaml-language-server: $schema=cluster.schema.json
    """
    from imagegen.cluster import cluster_schema

    return Outcome(json.dumps(cluster_schema(), indent=2).splitlines())


@cli.command("help", short_help="Show this help, or the help of a command.")
@click.argument("name", metavar="[COMMAND]", required=False, shell_complete=_complete_commands)
@_common
@click.pass_context
def show_help(context: click.Context, name: str | None) -> Outcome:
    """Show the help of imagegen, or of one command, as --help does.

    \b
    Examples:
      imagegen help
      imagegen help serve
    """
    root = context.find_root()
    if name is None:
        text = root.get_help()
    else:
        _, command, _ = cli.resolve_command(root, [name])
        assert command is not None  # noqa: S101 - an unknown name is a UsageError
        text = command.get_help(click.Context(command, info_name=name, parent=root))
    return Outcome(text.splitlines(), more={"help": text})


def main() -> NoReturn:
    """The command `imagegen`. SIGTERM ends it as SIGINT does: what was begun is cleaned up."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    open_streams()
    try:
        code = run_command(sys.argv[1:])
    except KeyboardInterrupt:  # while it said how it ended
        code = ExitCode.INTERRUPTED
    sys.exit(code)


def run_command(argv: Sequence[str]) -> ExitCode:
    """Runs one command line; what went wrong is on stderr, the outcome on stdout."""
    settings, taken = Settings(), io.BytesIO()
    try:
        # Where click's help goes, and a shell's completion.
        with redirect_stdout(io.TextIOWrapper(taken, "utf-8", write_through=True)):
            outcome = cli.main(args=list(argv), prog_name="imagegen", standalone_mode=False, obj=settings)
    except SystemExit as ended:  # of click's completion
        outcome = None if ended.code in (0, None) else Outcome(code=ExitCode.FAILED)
    except OutputLost as lost:
        return _end_without_stdout(lost)
    except BaseException as error:
        settings.output = "json" if _asks_for_json(argv) else "text"
        outcome = _explain(settings, error)
    if not isinstance(outcome, Outcome):  # --help, --version
        outcome, text = Outcome(), taken.getvalue().decode()
    elif settings.output == "text" or (settings.command == "schema" and outcome.code is ExitCode.DONE):
        text = "".join(f"{line}\n" for line in outcome.lines)
    else:
        text = json.dumps(outcome.document(settings), indent=2) + "\n"
    try:
        print_data(text, colours=outcome.colours)
    except OutputLost as lost:
        return outcome.code or _end_without_stdout(lost)
    return outcome.code


def _end_without_stdout(lost: OutputLost) -> ExitCode:
    """The exit code when nobody reads what was to be said, or its disk is full, which is said."""
    if lost.closed:
        return ExitCode.OUTPUT_CLOSED
    _complain(f"stdout cannot be written: {lost}", "free some space there, then run it again")
    return ExitCode.MACHINE_LACKS


def _asks_for_json(argv: Sequence[str]) -> bool:
    """Whether a command line says `--output json`, though it may be one that click does not understand."""
    words = list(argv[: argv.index("--")] if "--" in argv else argv)
    return "--output=json" in words or ("--output", "json") in pairwise(words)


def _explain(settings: Settings, error: BaseException) -> Outcome:
    """Says why the command ended, and gives the same for JSON."""
    if settings.debug:
        tell("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, BadInput):
        for problem in error.problems[:MAX_PROBLEMS]:
            tell(str(problem))
        if len(error.problems) > MAX_PROBLEMS:
            tell(f"and {len(error.problems) - MAX_PROBLEMS} more")
        return Outcome(problems=error.problems, code=error.exit_code)
    if isinstance(error, click.UsageError) and error.ctx:
        settings.command = settings.command or (str(error.ctx.info_name) if error.ctx.parent else "")
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            tell(error.message)
            return Outcome(code=ExitCode.BAD_INPUT)
        tell(error.ctx.get_usage())
    message, hint, code = _describe(error)
    more: dict[str, Any] = {}
    if isinstance(error, CommandFailed):
        more = {"last_lines": error.last_lines} | ({"log": os.fspath(error.log)} if error.log else {})
        for line in error.last_lines:
            tell(f"  {line}")
    _complain(message, hint)
    return Outcome(problems=[Problem("", 0, "", message, hint)], code=code, more=more)


def _describe(error: BaseException) -> tuple[str, str, ExitCode]:
    """Message, hint and exit code of an error that is no list of problems."""
    if isinstance(error, ImagegenError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", "", ExitCode.INTERRUPTED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {error}", "free some space, then run it again", ExitCode.MACHINE_LACKS
    if isinstance(error, click.ClickException):
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "imagegen"
        return error.format_message(), f"see `{path} --help`", ExitCode.BAD_INPUT
    if isinstance(error, OSError):
        where = f"{os.fspath(error.filename)}: " if isinstance(error.filename, str | Path) else ""
        return f"{where}{error.strerror or type(error).__name__}", "", ExitCode.FAILED
    # The text of an unforeseen error may quote any value, a secret too: it is shown on request only.
    return (
        f"imagegen itself failed ({type(error).__name__})",
        "run it again with --debug, and report what it prints",
        ExitCode.FAILED,
    )


def _say(settings: Settings, line: str) -> None:
    if not settings.quiet:
        tell(line)


def _complain(message: str, hint: str = "") -> None:
    tell(message + (f"\n{hint}" if hint else ""), "Error:", RED)


def _warn(settings: Settings, message: str) -> None:
    """A warning that is about no line of the cluster file."""
    settings.warnings.append(Problem("", 0, "", message))
    tell(message, "Warning:", YELLOW)


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Aligned columns under a head line."""
    cells = [[column.upper() for column in columns], *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(value: Any) -> str:
    return "-" if value in (None, "") else f"{value:.0f}" if isinstance(value, float) else str(value)


@contextmanager
def _progress(settings: Settings, *, every_line: bool = False) -> Iterator[Report]:
    """Gives report(phase, detail): a live line on a terminal, else a line a phase; with `every_line` always lines."""
    if settings.quiet:
        yield lambda phase, detail="": None
    elif sys.stderr.isatty() and not every_line:
        with _live_progress() as report:
            yield report
    else:
        last = ""

        def report(phase: str, detail: str = "") -> None:
            nonlocal last
            if phase != last or every_line or settings.verbose:
                tell(f"{phase}: {detail}" if detail else phase)
            last = phase

        yield report


@contextmanager
def _live_progress() -> Iterator[Report]:
    """The phase at work is a line that lives; each phase that is over stays above it, with its last detail."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    phases: list[tuple[str, str]] = []

    def line() -> Text:
        return Text(visible(": ".join(filter(None, phases[-1]))))

    with console.status("") as status:

        def report(phase: str, detail: str = "") -> None:
            if phases and phases[-1][0] != phase:
                console.print(line())
            phases.append((phase, detail))
            status.update(line())

        try:
            yield report
        finally:
            if phases:
                console.print(line())


def _cluster_name(settings: Settings) -> str:
    from imagegen.document import name_file

    return name_file(settings.cluster or DEFAULT_CLUSTER)


def _load_cluster(settings: Settings) -> Cluster:
    """The cluster file, or the embedded default when none was named and none is there."""
    from imagegen.cluster import load_cluster

    if settings.cluster is None and not os.path.lexists(DEFAULT_CLUSTER):
        _say(settings, f"{DEFAULT_CLUSTER} not found; using the built-in example")
        return load_cluster(None)
    return load_cluster(settings.cluster or DEFAULT_CLUSTER)


def _load_own_cluster(settings: Settings) -> Cluster:
    """The cluster file. Raises BadInput, and BadUsage when there is none."""
    return _read_own_cluster(settings)[0]


def _read_own_cluster(settings: Settings) -> tuple[Cluster, Findings]:
    """The same, and what stands where in it."""
    from imagegen.cluster import read_cluster

    if settings.cluster is None and not os.path.lexists(DEFAULT_CLUSTER):
        raise BadUsage(f"{DEFAULT_CLUSTER} not found", "run `imagegen init`, or name a cluster file with -c")
    return read_cluster(settings.cluster or DEFAULT_CLUSTER)


def _load_inputs(settings: Settings) -> tuple[Cluster, Secrets]:
    """The cluster file and its secrets. Raises as _load_own_cluster()."""
    from imagegen.logins import typed_secrets
    from imagegen.secrets import load_secrets

    cluster = _load_own_cluster(settings)
    secrets = load_secrets(cluster.secrets_path, typed_secrets(cluster))
    _warn_of_readers(settings, cluster)
    return cluster, secrets


def _warn_of_readers(settings: Settings, cluster: Cluster) -> None:
    """Says when other people can read secrets.yaml, or the key of the CA next to it."""
    from imagegen.secrets import secrets_warnings

    for path in (cluster.secrets_path, cluster.secrets_path.parent / "ca.key"):
        for warning in secrets_warnings(path):
            _warn(settings, warning)


def _choose_nodes(settings: Settings, cluster: Cluster, names: Sequence[str]) -> tuple[Node, ...]:
    """The named nodes in file order; without names all of them. Raises BadUsage for a name that no node has."""
    from imagegen.document import quoted, suggest

    known = [node.name for node in cluster.nodes]
    for name in names:
        if name not in known:
            raise BadUsage(f"{_cluster_name(settings)} has no node {quoted(name)}{suggest(name, known)}")
    return tuple(node for node in cluster.nodes if not names or node.name in names)


def _write_new(path: Path, file: Any) -> None:
    """Writes a file that must not be there yet, whole or not at all. Raises BadUsage when it is."""
    from imagegen.tree import write_file

    beside = path.parent.resolve() / f".{path.name}.{os.getpid()}"
    write_file(beside, file)
    try:
        os.link(beside, path)
    except FileExistsError:
        raise BadUsage(f"refusing to overwrite {path}", "choose another directory") from None
    finally:
        beside.unlink()


# The glue: from here on the modules that do the work are called.


def _write_texts(settings: Settings, cluster: Cluster, secrets: Secrets) -> list[Path]:
    from imagegen.build import image_content_id
    from imagegen.elements import elements_tree, images_yaml
    from imagegen.marks import mark_tree
    from imagegen.outdir import work_in
    from imagegen.releases import find_release
    from imagegen.resources import data_directory
    from imagegen.seeds import seed_tree
    from imagegen.tree import read_tree, write_file, write_tree

    out, release = settings.out, find_release(cluster.release, cluster.distro)
    static = read_tree(data_directory("elements"))
    ids = {role: image_content_id(role, release, static) for role in cluster.roles}
    elements = elements_tree(static, cluster.roles, release, ids)
    seeds = {out / "seeds" / node.name: seed_tree(cluster, node, secrets) for node in cluster.nodes}
    with work_in(out, ["elements", "images.yaml", "seeds"], "generate", lambda line: _say(settings, line)):
        write_tree(mark_tree(elements), out / "elements")
        write_file(out / "images.yaml", images_yaml(cluster.roles, cluster.distro))
        for place, tree in seeds.items():
            write_tree(tree, place, directory_mode=0o700)
        _remove_old_seeds(settings, out, cluster)
    return [out / "elements", out / "images.yaml", *seeds]


def _remove_old_seeds(settings: Settings, out: Path, cluster: Cluster) -> None:
    from imagegen.marks import remove_old_seeds

    for place in remove_old_seeds(out / "seeds", [node.name for node in cluster.nodes]):
        _say(settings, f"removed {place}: {_cluster_name(settings)} has no such node")


def _build_images(
    settings: Settings, cluster: Cluster, roles: Sequence[str], formats: Sequence[str], refresh: bool
) -> list[dict[str, Any]]:
    from imagegen.build import build_images
    from imagegen.model import Role

    chosen: tuple[Role, ...] = tuple(role for role in Role if role in roles) or cluster.roles
    with _progress(settings) as report:
        images = build_images(
            cluster,
            chosen,
            settings.out,
            formats=formats,
            refresh=refresh,
            report=lambda progress: report(f"{progress.role}: {progress.phase}", progress.detail),
        )
    return [{**asdict(image), "role": str(image.role), "path": os.fspath(image.path)} for image in images]


def _write_isos(
    settings: Settings, cluster: Cluster, secrets: Secrets, nodes: Sequence[Node], *, whole: bool
) -> list[Path]:
    """The ISOs of these nodes; `whole`: they are all of the cluster's, and what others are there goes."""
    from imagegen.iso import write_seed_iso
    from imagegen.outdir import work_in
    from imagegen.seeds import seed_tree

    out = settings.out
    seeds = out / "seeds"
    with work_in(out, ["seeds"], "seed", lambda line: _say(settings, line)), _progress(settings) as report:
        for number, node in enumerate(nodes, 1):
            report("writing seeds", f"{number} of {len(nodes)}")
            write_seed_iso(seed_tree(cluster, node, secrets), seeds / f"{node.name}.iso")
        if whole:
            _remove_old_seeds(settings, out, cluster)
    return [seeds / f"{node.name}.iso" for node in nodes]


def _boot_nodes(
    settings: Settings,
    cluster: Cluster,
    secrets: Secrets,
    nodes: Sequence[Node],
    backend: str,
    timeout: float | None,
    keep: bool,
    network_boot: dict[str, Any] | None,
) -> Outcome:
    from imagegen.boot import ClusterNotReady, NetworkBoot, boot_cluster

    columns = ("name", "role", "state", "seconds", "image")
    try:
        with _progress(settings, every_line=True) as report:
            how = NetworkBoot(**network_boot) if network_boot else None
            results = boot_cluster(
                cluster, secrets, settings.out, nodes, backend, timeout, keep, report, network_boot=how
            )
    except ClusterNotReady as error:
        if settings.debug:
            tell("".join(traceback.format_exception(error)).rstrip())
        _complain(error.message, error.hint)
        rows = [asdict(result) for result in error.nodes]
        problems = [Problem("", 0, "", error.message, error.hint)]
        return Outcome(_table(rows, columns), nodes=rows, problems=problems, code=error.exit_code)
    rows = [asdict(result) for result in results]
    return Outcome(_table(rows, columns), nodes=rows)


def _serve(settings: Settings, window: Window, *, seeds: bool, listening: dict[str, Any]) -> Outcome:
    from imagegen.ledger import Unusable, explain_unusable
    from imagegen.provisioning import (
        DIRECTORY,
        LEDGER,
        describe_left_out,
        describe_windows,
        hold_directory,
        provision,
    )
    from imagegen.seeds import seed_tree
    from imagegen.signals import end_on_signals

    cluster, secrets = _load_inputs(settings) if seeds else (_load_own_cluster(settings), None)
    _choose_nodes(settings, cluster, window.names)
    if not seeds:
        _warn_of_readers(settings, cluster)
    root, directory = settings.out / "pxe", settings.out / DIRECTORY
    make_seed = (lambda cluster, node: seed_tree(cluster, node, secrets)) if secrets else None
    try:
        with hold_directory(settings.out) as alone:
            if not alone:
                return _arm_running(settings, window)
            with (
                _say_in_background(settings) as say,
                end_on_signals(),
                provision(cluster, root, directory, make_seed, window, say, **listening) as at_work,
            ):
                say(f"serving {at_work.url} (files, status page); Ctrl-C stops it")
                windows = describe_windows(at_work.ledger.read()) if seeds else "none are given out"
                if at_work.left_out:
                    say(describe_left_out(at_work.left_out))
                say(f"seeds at {at_work.seed_url}: {windows}")
                while True:
                    at_work.serving.wait(1.0)
    except KeyboardInterrupt:
        with suppress(OSError):  # nobody may be there to hear it
            _say(settings, f"stopped; the nodes' reports are kept in {directory}: see `imagegen status`")
    except Unusable as error:
        raise explain_unusable(directory / LEDGER, error) from error
    return Outcome()


def _arm_running(settings: Settings, window: Window) -> Outcome:
    """Opens windows in the ledger of the server that is at work. Raises BadUsage."""
    from imagegen.provisioning import describe_windows, open_ledger

    at_work = f"another `imagegen serve` is running in {settings.out}"
    if not window.names:
        raise BadUsage(at_work, "arm nodes there with --arm, or choose another directory with -o")
    ledger = open_ledger(settings.out)
    try:
        if unknown := ledger.find_unknown(window.names):
            raise BadUsage(f"{at_work}, and does not know {', '.join(unknown)}", "restart it")
        if not ledger.gives_seeds:
            raise BadUsage(f"{at_work}, and gives out no seeds", "restart it without --no-seeds")
        ledger.open_windows(window.names, window.seconds, window.claims)
        _say(settings, f"seeds from the running `imagegen serve`: {describe_windows(ledger.read())}")
    finally:
        ledger.close()
    return Outcome()


@contextmanager
def _say_in_background(settings: Settings) -> Iterator[Callable[[str], None]]:
    """Gives say(line) that never waits and never fails: a terminal that is stopped or gone must not stop a server."""
    from queue import Full, Queue
    from threading import Thread

    lines: Queue[str | None] = Queue(1000)

    def work() -> None:
        while (line := lines.get()) is not None:
            with suppress(OSError, ValueError):
                _say(settings, line)

    def say(line: str) -> None:
        with suppress(Full):
            lines.put_nowait(f"{time.strftime('%H:%M:%S')} {line}")

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield say
    finally:
        with suppress(Full):
            lines.put_nowait(None)
        thread.join(1.0)


def _show_status(
    settings: Settings, names: Sequence[str], states: Sequence[str], watch: bool, timeout: float | None
) -> Outcome:
    from imagegen.fleet import find_faults, node_rows, render, select
    from imagegen.provisioning import open_ledger

    ledger = open_ledger(settings.out)
    try:
        if unknown := ledger.find_unknown(names):
            raise BadUsage(f"there is no node {', '.join(unknown)}", "`imagegen status` lists all nodes")
        if watch:
            end = None if timeout is None else time.monotonic() + timeout
            _watch_ledger(settings, ledger, names, states, end)
        told = ledger.read()
    finally:
        ledger.close()
    rows = select(node_rows(told, settings.out), names)
    faults = find_faults(rows)
    late = any(row["state"] not in ("ready", "degraded", "failed") for row in rows)
    if timeout is not None and late:
        faults.append(f"gave up after {timeout:.0f} seconds")
        _complain(faults[-1])
    failed = any(row["state"] == "failed" for row in rows) or (timeout is not None and late)
    code = ExitCode.NODE_NOT_READY if failed else ExitCode.FAILED if faults else ExitCode.DONE
    screen = _measure_screen(settings)
    taken = _say_claims(settings, told, screen)
    if told["listened"] < told["now"]:
        _say(
            settings,
            f"`imagegen serve` is not running: this is the state of {_clock(told['listened'], '%Y-%m-%d %H:%M:%S')}",
        )
        taken += 1
    if screen:
        screen = replace(screen, height=0 if names or states else max(4, screen.height - taken))
    shown = select(rows, states=states)
    problems = [Problem("", 0, "", fault) for fault in faults]
    lines = render(shown, told["now"], screen)
    claims = {"granted": told["grants"], "refused": told["reports"], "more": told["more"]}
    colours = bool(screen and screen.colour)
    return Outcome(lines, nodes=shown, claims=claims, problems=problems, code=code, colours=colours)


def _measure_screen(settings: Settings) -> Screen | None:
    """The terminal on which the answer goes, with a line to spare for the prompt; None: stdout is none."""
    import shutil

    from imagegen.fleet import Screen

    if settings.output != "text" or not sys.stdout.isatty():
        return None
    size = shutil.get_terminal_size()
    return Screen(size.columns, size.lines - 1, not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")


def _say_claims(settings: Settings, told: dict[str, Any], screen: Screen | None) -> int:
    """Who got a seed and who was refused what, the weightiest first; returns how many lines that took.

    On a terminal only three refusals, unless -v asks for all.
    """
    whole = screen is None or bool(settings.verbose)
    refused = told["reports"] if whole else told["reports"][:3]
    lines = [f"refused {_clock(report['at'])} {report['address']}: {report['text']}" for report in refused]
    if hidden := len(told["reports"]) - len(refused):
        lines.append(f"{hidden} more refused requests: -v shows them")
    if whole:
        for grant in told["grants"]:
            times = f" ({grant['times']} times)" if grant["times"] > 1 else ""
            lines.append(f"claimed {_clock(grant['at'])} {grant['address']}: the seed of {grant['node']}{times}")
        if told["more"]:
            lines.append(f"the ledger has {told['more']} more refused requests of less importance")
    for line in lines:
        _say(settings, line if screen is None else line[: screen.width])
    return 0 if settings.quiet else len(lines)


def _watch_ledger(
    settings: Settings, ledger: Ledger, names: Sequence[str], states: Sequence[str], end: float | None
) -> None:
    """Until every node is ready or failed, or the time is over: a table that lives, or a line a change."""
    from imagegen.fleet import find_changes, is_settled, node_rows, render, select

    before: list[dict[str, Any]] = []
    with _live_table(settings) as show:
        while True:
            told = ledger.read()
            rows = select(node_rows(told, settings.out), names)
            shown = select(rows, states=states)
            if show:
                show(render(shown, told["now"], _measure_screen(settings)))
            elif not settings.quiet:
                for line in find_changes(before, shown, told["now"]):
                    (tell if settings.output == "json" else print_line)(line)
            before = shown
            if is_settled(rows) or (end is not None and time.monotonic() >= end):
                return
            time.sleep(1.0 if end is None else max(0.0, min(1.0, end - time.monotonic())))


@contextmanager
def _live_table(settings: Settings) -> Iterator[Callable[[Sequence[str]], None] | None]:
    """Gives show(lines) that redraws a table on a terminal; None elsewhere."""
    if settings.quiet or settings.output != "text" or not sys.stdout.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        yield lambda lines: live.update(
            Text.from_ansi(visible("\n".join(lines), colours=True), no_wrap=True), refresh=True
        )


def _clock(at: float, form: str = "%H:%M:%S") -> str:
    return time.strftime(form, time.localtime(at))
