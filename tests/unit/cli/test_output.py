"""What leaves imagegen: JSON by its schema, streams that are closed or full, text that steers no terminal."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fakes.booted import FakeNetwork, document
from fakes.builder import FakeMachine, machine
from fakes.command_line import COMMANDS, Output, files_below, keep_ledger, serve_nothing
from hypothesis import given
from hypothesis import strategies as st
from netboot_images import make_loaders
from repository import read_modules

from imagegen import __version__
from imagegen.base import streams
from imagegen.base.errors import CommandFailed, ExitCode, Problem
from imagegen.base.resources import PACKAGE
from imagegen.cli.run import run_command
from imagegen.local import boot
from imagegen.model.json_schemas import json_schema
from imagegen.server import provisioning
from imagegen.server.evidence import Reason

__all__ = ["machine"]  # a fixture

SCHEMA = json_schema("output")
READY = [{}, document("ready")]


@pytest.fixture(autouse=True)
def _place(machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where builds cost nothing, nodes are ready at once, and a server is ended as soon as it serves."""
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    monkeypatch.setenv("IMAGEGEN_MIRROR", "http://mirror.example/debian")
    monkeypatch.setattr("imagegen.cli.pxe.IPXE", make_loaders(tmp_path / "ipxe"))
    monkeypatch.setattr("imagegen.cli.inputs.DEFAULT_CLUSTER", Path("cluster.yaml"))
    monkeypatch.setattr(boot, "open_backend", lambda *_: FakeNetwork([READY, READY]))
    monkeypatch.setattr(boot, "verify_cluster", lambda *_: [])
    monkeypatch.setattr("imagegen.cli.verify.verify_cluster", lambda *_: [])
    monkeypatch.setattr("imagegen.cli.verify._find_controller", lambda _: (None, "nobody is there"))
    monkeypatch.setattr("imagegen.cli.serve.provision", serve_nothing)


def run_json(output: Output, *argv: str) -> tuple[ExitCode, dict[str, Any]]:
    """The exit code and the one document on stdout, which its schema takes."""
    output()
    code = run_command([*argv, "--output", "json"])
    told = json.loads(output()[0])
    jsonschema.validate(told, SCHEMA)
    assert told["ok"] is (code == ExitCode.DONE)
    return code, told


BEFORE = {"boot": ["build"], "pxe": ["build"], "serve": ["build"], "baremetal": ["build"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_real_document_of_every_command_follows_the_schema(command: str, output: Output) -> None:
    """As the command itself makes it, from what the commands before it left."""
    for before in [*(["init"] if command != "init" else []), *BEFORE.get(command, [])]:
        assert run_command([before, "-q"]) == ExitCode.DONE
    if command == "status":
        keep_ledger({"linux-node1": "ready"})
    code, told = run_json(output, command)
    assert (code, told["command"]) == (ExitCode.DONE, command)
    for path in told.get("paths", []):
        assert Path(path).exists()
    rows = {
        "build": "images",
        "seed": "nodes",
        "boot": "nodes",
        "pxe": "nodes",
        "status": "nodes",
        "baremetal": "nodes",
    }
    assert told.get(rows.get(command, ""), True)


def test_schema_prints_the_schema_itself_for_editors(output: Output) -> None:
    """`imagegen schema > cluster.schema.json`; the document of --output json has the same under a key."""
    schema = run_json(output, "schema")[1]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert run_command(["schema"]) == ExitCode.DONE
    assert json.loads(output()[0]) == schema


def test_help_and_version_have_a_document(output: Output) -> None:
    """--help that of `imagegen help`, wherever it stands."""
    assert run_json(output, "--version")[1]["imagegen_version"] == __version__
    for options, command in ((["--help"], []), (["-h"], []), (["seed", "--help"], ["seed"])):
        told = run_json(output, *options)[1]
        assert told == run_json(output, "help", *command)[1]
        assert run_command(options) == ExitCode.DONE
        assert output()[0] == told["help"] + "\n"
    assert run_command(["--output=json", "seed", "-h"]) == ExitCode.DONE
    assert json.loads(output()[0]) == told


def test_completion_is_the_shells_whatever_the_line_asks_for(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    monkeypatch.setenv("_IMAGEGEN_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "imagegen --output json stat")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert run_command([]) == ExitCode.DONE
    assert output()[0] == "plain,status\n"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("init", "status", "schema", "help")])
def test_the_json_of_bad_input_follows_the_schema(command: str, output: Output) -> None:
    """The same problems on stderr and on stdout."""
    Path("cluster.yaml").write_text("name: demo\n")
    assert run_command([command, "--output", "json"]) == ExitCode.BAD_INPUT
    stdout, stderr = output()
    told = json.loads(stdout)
    jsonschema.validate(told, SCHEMA)
    assert (told["command"], told["ok"]) == (command, False)
    assert stderr.splitlines() == [str(Problem(**problem)) for problem in told["problems"]]
    assert files_below(Path()) == [
        "cluster.yaml",
        "ipxe",
        *(f"ipxe/{path.name}" for path in sorted(Path("ipxe").iterdir())),
    ]


@pytest.mark.parametrize(
    ("argv", "command", "said"),
    [
        (["build", "--roll", "x"], "build", "No such option '--roll'"),
        (["build", "--role", "x"], "build", "is not one of"),
        (["serve", "--for", "5"], "serve", "is not a valid duration"),
        (["validat"], "", "No such command 'validat'"),
        (["--nosuch"], "", "No such option"),
        (["help", "nosuch"], "help", "No such command 'nosuch'"),
        (["boot", "--proxy-dhcp"], "boot", "apply only to network boots"),
        ([], "", "Missing command"),
    ],
)
def test_bad_usage_has_a_document_too(argv: list[str], command: str, said: str, output: Output) -> None:
    """Also when click does not get as far as the option that asks for it, wherever that stands."""
    for words in ([*argv, "--output", "json"], ["--output=json", *argv]):
        assert run_command(words) == ExitCode.BAD_INPUT
        told = json.loads(output()[0])
        jsonschema.validate(told, SCHEMA)
        (problem,) = told["problems"]
        assert said in problem["message"] and problem["hint"]
        assert told["command"] == command
    assert run_command([*argv, "--", "--output", "json"]) == ExitCode.BAD_INPUT
    assert output()[0] == ""


def test_the_document_has_what_the_text_has(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    """Hints, paths, warnings, the lines for external services, and where the log of a failed command is."""
    assert run_json(output, "seed")[1]["problems"][0]["hint"].startswith("run `imagegen init`")
    assert run_json(output, "init")[1]["paths"] == ["cluster.yaml", "secrets.yaml", "ca.pem", "ca.key"]
    text = Path("cluster.yaml").read_text().replace("database: {node: linux-node1}", "database: {host: 10.0.0.5}")
    Path("cluster.yaml").write_text(text)
    Path("secrets.yaml").chmod(0o644)
    told = run_json(output, "validate", "--explain")[1]
    assert any("GRANT ALL" in line for line in told["explain"])
    assert [warning["path"] for warning in told["warnings"]] == ["ssh_authorized_keys"]
    assert "chmod 600" in run_json(output, "seed")[1]["warnings"][0]["message"]

    def build_images(*_: Any, **__: Any) -> None:
        raise CommandFailed("dib failed", log=Path("out/logs/x.log"), last_lines=["E: one"])

    monkeypatch.setattr("imagegen.cli.build.build_images", build_images)
    code, told = run_json(output, "build")
    assert (code, told["log"], told["last_lines"]) == (ExitCode.COMMAND_FAILED, "out/logs/x.log", ["E: one"])


def test_the_output_schema_is_strict() -> None:
    """It refuses what no command prints."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    good = {"version": 1, "command": "validate", "ok": True, "problems": [], "warnings": []}
    jsonschema.validate(good, SCHEMA)
    changes: list[dict[str, Any]] = [{"ok": False}, {"version": 2}, {"command": "x"}, {"extra": 1}, {"images": []}]
    changes += [{"nodes": []}, {"paths": ["x"]}, {"help": "x"}, {"log": "x"}, {"last_lines": []}, {"warnings": ["x"]}]
    changes += [{"schema": {}}, {"imagegen_version": "1"}]
    for change in [*changes, *({"command": name} for name in ("build", "init", "help", "schema", ""))]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, **change}, SCHEMA)


# streams


class Broken(io.StringIO):
    """A stream that takes nothing, as a full disk or a pipe without a reader."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    "argv", [["schema"], ["--help"], ["--version"], ["help"], ["init"], ["validate", "--output", "json"]]
)
def test_stdout_that_nobody_reads_ends_a_command_quietly(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    """As `| head` does; the code is that of a process that SIGPIPE ended."""
    run_command(["init", "-q", "x"])
    output()
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError(32, "Broken pipe")))
    assert run_command([*argv, "-q", "-c", "x/cluster.yaml"] if argv[0][0] != "-" else argv) == ExitCode.OUTPUT_CLOSED
    assert "Error" not in output()[1]


@pytest.mark.parametrize("argv", [["schema"], ["--help"], ["help"]])
def test_a_full_stdout_is_a_sentence(argv: list[str], monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    """And what the machine lacks; what went wrong before has its own code."""
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    assert run_command(argv) == ExitCode.MACHINE_LACKS
    assert output()[1].startswith("Error: stdout cannot be written: No space left on device\n")
    assert run_command(["seed", "--output", "json"]) == ExitCode.BAD_INPUT


def test_work_goes_on_when_nobody_hears_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """stderr is closed or full."""
    for error in (BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), BlockingIOError(11, "busy")):
        monkeypatch.setattr(sys, "stderr", Broken(error))
        assert run_command(["init", f"{error.errno}"]) == ExitCode.DONE


PROGRAM = f"import sys; sys.path.insert(0, {os.fspath(PACKAGE.parent)!r}); from imagegen.cli.main import main; main()"


@pytest.mark.allow_process("sh")
@pytest.mark.parametrize(
    ("where", "argv", "code", "said"),
    [
        ("full", ["schema"], 3, "stdout cannot be written"),
        ("full", ["--help"], 3, "stdout cannot be written"),
        ("closed pipe", ["schema"], 141, ""),
        ("closed pipe", ["--help"], 141, ""),
        ("closed", ["schema"], 0, ""),
        ("full stderr", ["init"], 0, ""),
        ("closed stderr", ["seed"], 0, ""),
        ("closed stderr", ["nosuch"], 2, ""),
        ("all closed", ["seed"], 0, ""),
        ("all closed", ["status", "--watch"], 0, ""),
    ],
)
def test_real_streams(where: str, argv: list[str], code: int, said: str, tmp_path: Path) -> None:
    """A process with such streams: Python's own flush at its end finds nothing to complain of, and what shows progress
    or a table works without them.
    """
    if argv[0] == "seed":
        run_command(["init", "-q"])
    keep_ledger({"n": "ready"})
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    streams = {"full": (full, pipe), "full stderr": (nowhere, full), "closed stderr": (nowhere, pipe)}
    stdout, stderr = streams.get(where, (writer, pipe))
    closed = {"closed": ">&-", "closed stderr": "2>&-", "all closed": "<&- >&- 2>&-"}.get(where, "")
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", PROGRAM, *argv]
    done = subprocess.run(command, stdout=stdout, stderr=stderr, text=True)
    for number in (full, writer):
        os.close(number)
    heard = done.stderr or ""
    assert (done.returncode, said in heard, bool(said)) == (code, True, bool(heard)), heard


# text


@given(st.text())
def test_visible_text_steers_no_terminal(text: str) -> None:
    """No control or format character is left, nothing is lost, and plain text is as it was."""
    shown = streams.visible(text)
    bad = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    assert not [c for c in shown if unicodedata.category(c) in bad and c not in "\n\t"]
    if "\\" not in text:
        assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape") == text


EVIL = "\x1b]0;x\x07\x9b2J\u202e\u2028\x85"


def evil_argument(place: Path) -> list[str]:
    return ["seed", EVIL]


def evil_file(place: Path) -> list[str]:
    (place / "evil.yaml").write_text(json.dumps({"name": EVIL, EVIL: EVIL, "release": EVIL, "nodes": [{EVIL: 1}]}))
    return ["validate", "-c", "evil.yaml"]


def evil_file_name(place: Path) -> list[str]:
    return ["validate", "-c", f"{EVIL}.yaml"]


def evil_status(place: Path) -> list[str]:
    keep_ledger({"n": "failed"})
    with provisioning.use_ledger(Path("out/serve")) as ledger:
        ledger.refuse("n", Reason.SCRIPT_MAC, EVIL, EVIL)
        ledger._db.execute("UPDATE node SET detail = ?, step = ?", (EVIL, EVIL))  # as a tampered file would have it
    return ["status"]


@pytest.mark.parametrize("prepare", [evil_argument, evil_file, evil_file_name, evil_status])
def test_no_input_steers_a_terminal(prepare: Callable[[Path], list[str]], tmp_path: Path, output: Output) -> None:
    """Escape sequences, C1 controls, bidirectional overrides and line separators arrive as text."""
    run_command(["init", "-q"])
    argv = prepare(tmp_path)
    output()
    assert run_command(argv) != ExitCode.DONE
    shown = "".join(output())
    assert not [c for c in shown if not c.isprintable() and c != "\n"], repr(shown)
    assert r"\x9b2J" in shown


def test_what_a_failed_command_said_steers_no_terminal(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    """dib's log holds what packages print; a traceback holds whatever there is."""

    def build_images(*_: Any, **__: Any) -> None:
        raise CommandFailed(f"dib {EVIL}", last_lines=[EVIL])

    monkeypatch.setattr("imagegen.cli.build.build_images", build_images)
    assert run_command(["build", "--debug"]) == ExitCode.COMMAND_FAILED
    assert not [c for c in output()[1] if not c.isprintable() and c not in "\n\t"]


WRITERS = ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write", "traceback.print_exception")
WRITERS += ("traceback.print_exc", "os.write")


def find_writers(source: str) -> list[str]:
    """The calls in a source that write to a standard stream by themselves."""
    return [
        ast.unparse(n.func)
        for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.Call) and ast.unparse(n.func) in WRITERS
    ]


def test_text_leaves_by_one_door() -> None:
    """No module but streams.py writes to stdout or stderr; what lives on a terminal (rich) is made visible first."""
    assert find_writers("import click\ndef f():\n    click.echo('x')\n    print(1)") == ["click.echo", "print"]
    sources = read_modules()
    assert {name for name, source in sources.items() if find_writers(source)} == {"base.streams"}
    drawn = [line for source in sources.values() for line in source.splitlines() if "Text(" in line]
    assert drawn and all("visible(" in line or line.strip() == "live.update(Text(" for line in drawn), drawn
