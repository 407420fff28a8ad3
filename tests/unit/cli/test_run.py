"""The command line: exit codes, what goes to stdout and stderr, JSON by its schema, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
from fakes.command_line import COMMANDS, Output, files_below, keep_ledger, serve_nothing

from imagegen.base.errors import CommandFailed, ExitCode, MachineLacks, NodeNotReady
from imagegen.cli import front
from imagegen.cli.options import Settings
from imagegen.cli.run import cli, run_command
from imagegen.images import build
from imagegen.images.build import FORMATS
from imagegen.local import boot
from imagegen.local.hardware import Firmware
from imagegen.local.request import Boot, NetworkBoot
from imagegen.model.json_schemas import json_schema
from imagegen.model.roles import roles
from imagegen.server.evidence import Reason
from imagegen.server.ledger import Ledger

SCHEMA = json_schema("output")
CANARY = "Canary-p@ss/w:r%d"


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand-ins for what builds and boots; what they were called with, by name."""
    calls: dict[str, Any] = {}

    def build_images(
        cluster: Any, roles: Any, out: Path, *, formats: Any, refresh: bool, report: Any
    ) -> list[build.Image]:
        for phase, detail in (("packages", "1 of 2"), ("packages", "2 of 2"), ("disk", ""), ("built", "in 9 s")):
            report(build.Progress(roles[0], phase, detail))
        calls["build"] = (roles, out, formats, refresh)
        return [
            build.Image(role, "0123456789ab", each, out / f"{role}.{each}", "0" * 64)
            for role in roles
            for each in formats
        ]

    def boot_cluster(asked: Boot, report: Any) -> boot.Booted:
        calls["boot"] = ([node.name for node in asked.nodes], asked.backend, asked.timeout, asked.keep)
        calls["network boot"] = asked.network
        report("linux-node1: databases")
        return boot.Booted(
            [boot.NodeResult(n.name, str(n.role), "ready", "serve", "", 61.4, "abc") for n in asked.nodes]
        )

    monkeypatch.setattr("imagegen.cli.build.build_images", build_images)
    monkeypatch.setattr("imagegen.cli.generate.image_content_id", lambda role, release, static: "0" * 64)
    monkeypatch.setattr("imagegen.cli.boot.boot_cluster", boot_cluster)
    return calls


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes every command that loads a cluster end with that error."""

    def read_cluster(path: Path | None) -> None:
        raise error

    monkeypatch.setattr("imagegen.cli.inputs.read_cluster", read_cluster)


def test_init_writes_a_cluster_that_is_valid(output: Output) -> None:
    """Cluster, secrets and a CA; what is secret readable by its owner alone, whatever the umask."""
    old = os.umask(0)
    try:
        assert run_command(["init"]) == ExitCode.DONE
    finally:
        os.umask(old)
    assert output()[0] == "cluster.yaml\nsecrets.yaml\nca.pem\nca.key\n"
    assert files_below(Path()) == ["ca.key", "ca.pem", "cluster.yaml", "secrets.yaml"]
    assert [stat.S_IMODE(Path(name).stat().st_mode) for name in ("secrets.yaml", "ca.key")] == [0o600, 0o600]
    assert run_command(["validate"]) == ExitCode.DONE


def test_init_makes_the_directory() -> None:
    """Also one in another."""
    assert run_command(["init", "a/b"]) == ExitCode.DONE
    assert files_below(Path("a/b")) == ["ca.key", "ca.pem", "cluster.yaml", "secrets.yaml"]


@pytest.mark.parametrize("name", ["ca.pem", "ca.key"])
def test_init_overwrites_nothing(name: str, output: Output) -> None:
    """If there is a CA, or half of one, nothing is written, and the message says what is there."""
    Path(name).write_text("mine")
    Path("cluster.yaml").write_text("mine too")
    assert run_command(["init"]) == ExitCode.BAD_INPUT
    assert f"Error: refusing to overwrite cluster.yaml and {name}" in output()[1]
    assert files_below(Path()) == sorted(["cluster.yaml", name]) and Path(name).read_text() == "mine"


def test_init_does_not_follow_a_link_out(output: Output) -> None:
    """A dangling link is something that exists."""
    Path("ca.key").symlink_to("elsewhere")
    assert run_command(["init"]) == ExitCode.BAD_INPUT
    assert files_below(Path()) == ["ca.key"]


def test_a_file_that_appears_meanwhile_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the writing nothing can be lost."""
    monkeypatch.setattr("os.path.lexists", lambda path: False)
    Path("cluster.yaml").write_text("mine")
    assert run_command(["init"]) == ExitCode.BAD_INPUT
    assert files_below(Path()) == ["cluster.yaml"] and Path("cluster.yaml").read_text() == "mine"


@pytest.mark.parametrize("argv", [["build"], ["schema"]])
def test_the_default_cluster_serves_what_reads_no_secret(argv: list[str], workers: dict[str, Any]) -> None:
    """Without a cluster file."""
    assert run_command(argv) == ExitCode.DONE


@pytest.mark.parametrize("argv", [["validate"], ["generate"], ["seed"], ["boot"]])
def test_what_is_about_a_cluster_of_ones_own_asks_for_init(argv: list[str], output: Output) -> None:
    """And writes nothing."""
    assert run_command(argv) == ExitCode.BAD_INPUT
    assert "run `imagegen init`" in output()[1]
    assert files_below(Path()) == []


@pytest.mark.parametrize("argv", [["validate"], ["build"], ["generate"]])
def test_a_named_cluster_file_must_be_there(argv: list[str], output: Output) -> None:
    """The default does not stand in for a typo."""
    assert run_command([*argv, "-c", "no.yaml"]) == ExitCode.BAD_INPUT
    assert output() == ("", "no.yaml: not found\n")


def test_a_dangling_cluster_file_is_not_the_default(output: Output) -> None:
    """A link that leads nowhere is a cluster file that cannot be read."""
    Path("cluster.yaml").symlink_to("nowhere")
    assert run_command(["validate"]) == ExitCode.BAD_INPUT


def test_a_missing_secrets_file_is_one_line(output: Output) -> None:
    """Only for commands that read secrets."""
    run_command(["init"])
    Path("secrets.yaml").unlink()
    output()
    assert run_command(["validate", "-q"]) == ExitCode.DONE
    output()
    assert run_command(["seed"]) == ExitCode.BAD_INPUT
    assert output() == ("", "secrets.yaml: not found; `imagegen init` writes one\n")


def test_readable_secrets_are_a_warning(output: Output) -> None:
    """The command goes on."""
    run_command(["init"])
    Path("secrets.yaml").chmod(0o644)
    assert run_command(["seed"]) == ExitCode.DONE
    assert "Warning: secrets.yaml can be read or changed by others (mode 0644)" in output()[1]


def test_at_most_a_hundred_problems_are_printed(output: Output) -> None:
    """Then how many more there are; JSON has all."""
    text = "".join(f"key{i}: 1\n" for i in range(147))
    Path("cluster.yaml").write_text(text)
    assert run_command(["validate"]) == ExitCode.BAD_INPUT
    stdout, stderr = output()
    lines = stderr.splitlines()
    assert stdout == "" and len(lines) == 101 and lines[-1] == "and 50 more"
    assert lines[3] == "cluster.yaml:1: key0: unknown key"
    assert run_command(["validate", "--output", "json"]) == ExitCode.BAD_INPUT
    assert len(json.loads(output()[0])["problems"]) == 150


@pytest.mark.parametrize("where", ["before", "after"])
def test_common_options_stand_before_or_after_the_command(where: str, output: Output) -> None:
    """People type both."""
    run_command(["init", "site"])
    options = ["-c", "site/cluster.yaml", "-o", "res", "-q", "--output", "json"]
    output()
    assert run_command([*options, "seed"] if where == "before" else ["seed", *options]) == ExitCode.DONE
    stdout, stderr = output()
    assert [node["seed"] for node in json.loads(stdout)["nodes"]] == [
        "res/seeds/linux-node1.iso",
        "res/seeds/linux-node2.iso",
    ]
    assert stderr == ""


def test_generate_writes_the_same_bytes_again(workers: dict[str, Any]) -> None:
    """Elements, image definitions and seeds; the seeds' directories and files are closed to others."""
    run_command(["init"])
    assert run_command(["generate"]) == ExitCode.DONE
    first = {path: Path("out", path).read_bytes() for path in files_below(Path("out")) if Path("out", path).is_file()}
    assert {"images.yaml", "seeds/linux-node1/user-data", "seeds/linux-node2/network-config"} <= first.keys()
    assert any(path.startswith("elements/imagegen-base/") for path in first)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in Path("out/seeds").iterdir() if path.is_dir())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in Path("out/seeds").glob("*/*"))
    assert run_command(["generate", "-o", "new"]) == ExitCode.DONE
    second = {path: Path("new", path).read_bytes() for path in files_below(Path("new")) if Path("new", path).is_file()}
    assert first == second


def test_seed_takes_the_named_nodes(output: Output) -> None:
    """And suggests a name for a typo, before anything is written."""
    run_command(["init"])
    output()
    assert run_command(["seed", "linux-node2"]) == ExitCode.DONE
    assert output()[0] == "out/seeds/linux-node2.iso\n"
    assert files_below(Path("out")) == [".imagegen", "seeds", "seeds/.imagegen", "seeds/linux-node2.iso"]
    assert stat.S_IMODE(Path("out/seeds/linux-node2.iso").stat().st_mode) == 0o600
    assert run_command(["seed", "linux-node9", "-o", "other"]) == ExitCode.BAD_INPUT
    assert "has no node `linux-node9`; did you mean `linux-node" in output()[1]
    assert not Path("other").exists()


def test_build_passes_on_what_was_asked(workers: dict[str, Any], output: Output) -> None:
    """Roles in their own order, formats as named, the phases on stderr and a table on stdout."""
    assert run_command(["build", "--role", "compute", "--role", "controller", "--format", "tar", "--refresh"]) == 0
    assert workers["build"] == (roles(), Path("out"), ("tar",), True)
    stdout, stderr = output()
    assert stdout.splitlines()[0].split() == ["ROLE", "FORMAT", "ID", "PATH"]
    assert stdout.splitlines()[1].split() == ["controller", "tar", "0123456789ab", "out/controller.tar"]
    assert stderr.splitlines()[-3:] == ["controller: packages: 1 of 2", "controller: disk", "controller: built: in 9 s"]
    assert run_command(["build"]) == 0
    assert workers["build"] == (
        roles(),
        Path("out"),
        tuple(FORMATS),
        False,
    )


def test_a_terminal_shows_progress_as_it_happens(
    workers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    """Phases that are over stay on the screen with what came of them; stdout is the same."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert run_command(["build", "--format", "tar"]) == 0
    stdout, stderr = output()
    assert len(stdout.splitlines()) == 3
    lines = [line.rpartition("\r")[2].strip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stderr).splitlines()]
    kept = ["controller: packages: 2 of 2", "controller: disk", "controller: built: in 9 s"]
    assert [line for line in lines if line in kept][:3] == kept
    assert "controller: packages: 1 of 2" not in lines


def test_boot_ends_with_the_verdict(workers: dict[str, Any], output: Output) -> None:
    """A table of node, role, state, seconds and image; minutes become seconds."""
    run_command(["init"])
    output()
    assert run_command(["boot", "linux-node1", "--backend", "nspawn", "--timeout", "1.5", "--keep"]) == 0
    assert workers["boot"] == (["linux-node1"], "nspawn", 90.0, True)
    stdout, stderr = output()
    assert [line.split() for line in stdout.splitlines()] == [
        ["NAME", "ROLE", "STATE", "SECONDS", "IMAGE"],
        ["linux-node1", "controller", "ready", "61", "abc"],
    ]
    assert "linux-node1: databases" in stderr
    assert run_command(["boot"]) == 0
    assert workers["boot"] == (["linux-node1", "linux-node2"], "qemu", None, False)
    assert workers["network boot"] is None


def test_boot_over_the_network_says_how(workers: dict[str, Any], output: Output) -> None:
    """Its options belong to --pxe, whose machines have firmware; a node that is none is refused."""
    run_command(["init"])
    assert run_command(["boot", "--pxe"]) == 0
    assert workers["network boot"] == NetworkBoot()
    assert run_command(["boot", "--pxe", "--from-disk", "linux-node1", "--firmware", "bios", "--proxy-dhcp"]) == 0
    assert workers["network boot"] == NetworkBoot(frozenset({"linux-node1"}), Firmware.BIOS, proxy_dhcp=True)
    output()
    for words, said in (
        (["--proxy-dhcp"], "add --pxe"),
        (["--firmware", "bios"], "add --pxe"),
        (["--from-disk", "linux-node1"], "add --pxe"),
        (["--pxe", "--backend", "nspawn"], "leave --backend out"),
        (["--pxe", "--from-disk", "x"], "has no node `x`"),
    ):
        assert run_command(["boot", *words]) == ExitCode.BAD_INPUT
        assert said in output()[1]


def test_a_boot_that_failed_still_ends_with_the_verdict(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    """Exit code 5, the table, and what is wrong."""

    def boot_cluster(*_: Any, **__: Any) -> None:
        ready = boot.NodeResult("linux-node1", "controller", "ready", "serve", "", 61.4, "abc")
        failed = boot.NodeResult("linux-node2", "compute", "failed", "nova", "rc 3", 9.0, "abc", 3)
        raise boot.ClusterNotReady("linux-node2 failed at nova", "look at its console", [ready, failed])

    monkeypatch.setattr("imagegen.cli.boot.boot_cluster", boot_cluster)
    run_command(["init"])
    output()
    assert run_command(["boot"]) == ExitCode.NODE_NOT_READY
    stdout, stderr = output()
    assert stdout.splitlines()[2].split() == ["linux-node2", "compute", "failed", "9", "abc"]
    assert stderr == "Error: linux-node2 failed at nova\nlook at its console\n"
    assert run_command(["boot", "--output", "json"]) == ExitCode.NODE_NOT_READY
    document = json.loads(output()[0])
    jsonschema.validate(document, SCHEMA)
    assert (document["ok"], document["nodes"][1]["rc"]) == (False, 3)
    assert document["problems"][0]["hint"] == "look at its console"


def test_serve_ends_well_by_a_signal(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    """Being ended is how a server ends; it says where the nodes' words are kept."""
    run_command(["init", "-q"])
    monkeypatch.setattr("imagegen.cli.serve.provision", serve_nothing)
    assert run_command(["serve", "--for", "15m"]) == ExitCode.DONE
    said = output()[1]
    assert "seeds at https://x: nobody may claim one" in said and "kept in out/serve: see `imagegen status`" in said
    assert run_command(["serve", "--no-seeds"]) == ExitCode.DONE
    assert "seeds at https://x: none are given out" in output()[1]


def test_serving_without_seeds_reads_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    run_command(["init", "-q"])
    Path("secrets.yaml").unlink()
    monkeypatch.setattr("imagegen.cli.serve.provision", serve_nothing)
    assert run_command(["serve"]) == ExitCode.BAD_INPUT
    assert run_command(["serve", "--no-seeds"]) == ExitCode.DONE


@pytest.mark.parametrize(
    ("states", "code", "faults"),
    [
        ({"a": "ready", "b": "ready"}, ExitCode.DONE, []),
        ({"a": "ready", "b": ""}, ExitCode.FAILED, ["1 node(s) are not ready yet"]),
        (
            {"a": "failed", "b": "waiting", "c": ""},
            ExitCode.NODE_NOT_READY,
            ["a failed in disk: no disk fits", "2 node(s) are not ready yet"],
        ),
    ],
)
def test_status_has_an_exit_code_and_names_what_failed(
    states: dict[str, str], code: ExitCode, faults: list[str], output: Output
) -> None:
    """Failed nodes first, in the table as in the JSON; the totals above."""
    keep_ledger(states)
    assert run_command(["status", "--output", "json"]) == code
    document = json.loads(output()[0])
    jsonschema.validate(document, SCHEMA)
    assert [problem["message"] for problem in document["problems"]] == faults
    assert run_command(["status"]) == code
    totals, head, *rows = output()[0].splitlines()
    assert totals.startswith(f"{len(states)} nodes: ") and head.startswith("NODES ")
    words = list(dict.fromkeys(node["state"] or "silent" for node in document["nodes"]))
    assert len(rows) == len(words) and all(f"  {word}  " in row for word, row in zip(words, rows, strict=True))


def test_status_takes_nodes_and_states(output: Output) -> None:
    """The nodes decide the exit code, the states only what is shown; an unknown node is named."""
    keep_ledger({"node2": "ready", "node10": "failed", "node1": "waiting"})
    assert run_command(["status", "node2", "--output", "json"]) == ExitCode.DONE
    assert [node["name"] for node in json.loads(output()[0])["nodes"]] == ["node2"]
    assert run_command(["status", "--state", "ready", "--output", "json"]) == ExitCode.NODE_NOT_READY
    assert [node["name"] for node in json.loads(output()[0])["nodes"]] == ["node2"]
    assert run_command(["status", "node9"]) == ExitCode.BAD_INPUT
    assert "there is no node node9" in output()[1]
    assert run_command(["status", "--state", "happy"]) == ExitCode.BAD_INPUT


@pytest.mark.parametrize("state", ["ready", "failed", "degraded"])
def test_watching_ends_when_nothing_more_will_come(state: str, output: Output) -> None:
    """Every node is ready or has failed. Where stdout is no terminal, changes are lines on it."""
    keep_ledger({"node1": "ready", "node2": "ready"})
    if state != "ready":
        ledger = Ledger(Path("out/serve/ledger.sqlite"))
        said, detail = ("failed", "no disk") if state == "failed" else ("ready", "degraded: deaf")
        ledger.record({"node": "node2", "state": said, "step": "disk", "detail": detail, "steps": []})
        ledger.close()
    code = {"ready": ExitCode.DONE, "failed": ExitCode.NODE_NOT_READY, "degraded": ExitCode.FAILED}[state]
    assert run_command(["status", "--watch"]) == code
    events = [line for line in output()[0].splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert any(re.search(r"node(2|\[1-2\])", line) and state in line for line in events)
    assert "\x1b" not in "".join(events)


def test_watching_has_an_end(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """--timeout watches so long; who is not ready then has missed its time."""
    keep_ledger({"node1": "waiting", "node2": "ready"})
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("imagegen.cli.status.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("imagegen.cli.status.time.sleep", lambda seconds: None)
    assert run_command(["status", "--timeout", "1m"]) == ExitCode.NODE_NOT_READY
    assert "gave up after 60 seconds" in output()[1]
    assert run_command(["status", "--timeout", "1m", "node2"]) == ExitCode.DONE


def test_status_fits_a_terminal(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 nodes on 80 by 24; coloured, unless NO_COLOR says no; with a choice of nodes it may scroll."""
    keep_ledger({f"node{number}": ("waiting", "failed", "ready", "")[number % 4] for number in range(1, 501)})
    ledger = Ledger(Path("out/serve/ledger.sqlite"))
    for number in range(1, 501, 4):
        reason = f"its own reason {number}: " + "many words " * 20
        ledger.record({"node": f"node{number}", "state": "failed", "step": "disk", "detail": reason, "steps": []})
    for number in range(9):
        ledger.refuse("", Reason.SCRIPT_MAC, f"10.0.0.{number}", "a long text " * 20)
    ledger.close()
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((80, 24)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for colour in ("", "1"):
        monkeypatch.setenv("NO_COLOR", colour)
        monkeypatch.setenv("TERM", "xterm")
        run_command(["status"])
        out, err = output()
        shown = re.sub(r"\x1b\[\d+m", "", out).splitlines() + err.splitlines()
        assert len(shown) < 24 and max(map(len, shown)) <= 80
        assert "more lines" in out and "more refused requests" in err
    run_command(["status", "--state", "failed"])
    assert output()[0].count("its own reason") == 125


@pytest.mark.parametrize("given", ["1", "h", "0m", "-5m", "1.5h", "5w", "99999d", "m5"])
def test_a_duration_is_a_number_with_a_unit(given: str, output: Output) -> None:
    run_command(["init", "-q"])
    assert run_command(["serve", "--for", given]) == ExitCode.BAD_INPUT
    assert "is not a valid duration; write one such as 15m" in output()[1]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MachineLacks("sfdisk is missing: install the package fdisk"), ExitCode.MACHINE_LACKS, "package fdisk"),
        (
            CommandFailed("`x` ended with 7", last_lines=["one", "two"]),
            ExitCode.COMMAND_FAILED,
            "  one\n  two\nError: `x`",
        ),
        (CommandFailed("`x` ended", log=Path("out/logs/x.log")), ExitCode.COMMAND_FAILED, "out/logs/x.log"),
        (NodeNotReady("n1 missed ready"), ExitCode.NODE_NOT_READY, "n1 missed ready"),
        (PermissionError(13, "Permission denied", "/root/x"), ExitCode.FAILED, "/root/x: Permission denied"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
        (click.Abort(), ExitCode.INTERRUPTED, "interrupted"),
        (KeyError(CANARY), ExitCode.FAILED, "imagegen itself failed (KeyError)"),
    ],
)
def test_every_error_is_a_sentence_and_an_exit_code(
    error: BaseException, code: ExitCode, said: str, monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    """No traceback; an unforeseen error does not quote its values, which may be secret."""
    Path("cluster.yaml").touch()
    fail_with(monkeypatch, error)
    assert run_command(["validate"]) == code
    stdout, stderr = output()
    assert stdout == "" and said in stderr
    assert "Traceback" not in stderr and CANARY not in stderr
    assert run_command(["validate", "--output", "json"]) == code
    document = json.loads(output()[0])
    jsonschema.validate(document, SCHEMA)
    assert document["ok"] is False and CANARY not in json.dumps(document)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    """And only that option."""
    Path("cluster.yaml").touch()
    fail_with(monkeypatch, RuntimeError("why"))
    run_command(["--debug", "validate"])
    assert "Traceback" in (stderr := output()[1]) and "RuntimeError: why" in stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["validat"], "No such command"),
        (["build", "--roll", "compute"], "Did you mean '--role'?"),
        (["build", "--role", "storage"], "is not one of 'controller', 'compute'"),
        (["boot", "--timeout", "0"], "is not in the range"),
        (["--output", "xml", "validate"], "is not one of 'text', 'json'"),
        ([], "Usage:"),
    ],
)
def test_bad_usage_ends_with_2(argv: list[str], said: str, output: Output) -> None:
    """And says what there is."""
    assert run_command(argv) == ExitCode.BAD_INPUT
    assert said in output()[1]


def test_quiet_says_nothing_and_no_color_is_honoured(output: Output) -> None:
    """Only what went wrong."""
    assert run_command(["init", "-q"]) == 0 and run_command(["seed", "-q"]) == 0
    assert output()[1] == ""
    run_command(["init", "-q"])
    assert "\x1b" not in output()[1]


def test_explain_shows_no_password(output: Output) -> None:
    """It does not even read them."""
    run_command(["init"])
    text = Path("cluster.yaml").read_text().replace("database: {node: linux-node1}", "database: {host: 10.0.0.5}")
    Path("cluster.yaml").write_text(text)
    Path("secrets.yaml").unlink()
    output()
    assert run_command(["validate", "--explain"]) == 0
    assert "IDENTIFIED BY '<database_nova of secrets.yaml>'" in output()[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_examples(command: str, output: Output) -> None:
    """Every command shows how it is typed."""
    assert run_command([command, "--help"]) == 0
    stdout = output()[0]
    assert "Example" in stdout and f"imagegen {command}" in stdout.replace("imagegen -c demo/cluster.yaml", "imagegen")


def find_node_parameters() -> list[tuple[str, click.Parameter]]:
    """Each parameter of each command that its help calls NODE."""
    context = click.Context(cli)
    commands = {name: cli.get_command(context, name) for name in front.COMMANDS}
    return [
        (name, parameter)
        for name, command in commands.items()
        if command
        for parameter in command.params
        if "NODE" in parameter.make_metavar(context)
    ]


def test_names_of_nodes_are_completed_wherever_they_are_given(output: Output) -> None:
    """From the cluster file that the command line names; without a good one there is nothing, and no error."""
    given = {(name, parameter.name) for name, parameter in find_node_parameters()}
    assert given >= {("status", "names"), ("serve", "armed"), ("boot", "from_disk"), ("seed", "names")}
    for before in (None, "good", "bad"):
        if before == "good":
            run_command(["init", "-q"])
        elif before:
            Path("cluster.yaml").write_text("name: [")
        for name, parameter in find_node_parameters():
            context = click.Context(cli, obj=Settings())
            found = [item.value for item in parameter.shell_complete(context, "linux-node2")]
            assert found == (["linux-node2"] if before == "good" else []), name


def test_help_lists_the_contracts_commands_in_order() -> None:
    """As they are used, and nothing that is not there yet."""
    assert list(front.COMMANDS) == list(COMMANDS)


def test_help_names_every_exit_code(output: Output) -> None:
    """One enum, one table."""
    run_command(["--help"])
    table = output()[0].partition("Exit codes:")[2].partition("Options:")[0]
    assert [code for code in ExitCode if f"{code.value} " not in table] == []


def test_choices_are_the_models() -> None:
    """The document's schema repeats them."""
    assert sorted(FORMATS) == sorted(SCHEMA["$defs"]["image"]["properties"]["format"]["enum"])
    assert sorted(SCHEMA["properties"]["command"]["enum"]) == sorted(["", *COMMANDS])
