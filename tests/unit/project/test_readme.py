"""The README and the architecture page say what the code does: commands, options, exit codes, files, transcripts."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import yaml
from repository import AGENT, NETWORK_BOOT, ROOT

from imagegen.base.errors import ExitCode
from imagegen.base.resources import PACKAGE
from imagegen.cli import front
from imagegen.cli.run import cli, run_command
from imagegen.images.services_json import services_document
from imagegen.inputs.cluster_file import load_cluster
from imagegen.model.releases import Distro, find_release
from imagegen.model.roles import find_role

README = (ROOT / "README.md").read_text()
COMMANDS = tuple(front.COMMANDS)
OFFLINE = ("init", "validate", "generate", "seed", "schema")
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def read_blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def read_section(title: str) -> str:
    """The text under a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no section {title}"
    return found[1]


def read_table(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def read_files() -> dict[str, str]:
    """The YAML files that the README shows, by the name in their first line."""
    named = {re.match(r"# (\S+\.yaml)\n", block): block for block in read_blocks("yaml")}
    return {match[1]: block for match, block in named.items() if match}


def list_options(name: str) -> set[str]:
    """Every spelling of every option of a command; of imagegen itself for an empty name."""
    command = cli.get_command(click.Context(cli), name) if name else cli
    parent = click.Context(cli) if name else None
    with click.Context(command, info_name=name, parent=parent, help_option_names=["-h", "--help"]) as context:
        return {word for option in command.get_params(context) for word in (*option.opts, *option.secondary_opts)}


def find_calls(text: str) -> Iterator[tuple[str, list[str]]]:
    """(command, options) of every `imagegen ...` in code, whether in a block or within a line."""
    code = [line for block in re.findall(r"^```\w+\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]
    code += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    for line in code:
        found = re.match(r'(?:[$#] )?(?:sudo )?(?:"\$\(command -v imagegen\)"|imagegen) (.+)', line)
        if found:
            words = re.split(r" (?:#|>|\||&&) ?", found[1])[0].split()
            commands = [word for word in words if word in COMMANDS]
            yield (commands or [""])[0], [word for word in words if re.match(r"--?[a-z]", word)]


def test_the_exit_codes_are_the_enums() -> None:
    """One table, in order, with every code under its name and with words for each."""
    rows = read_table(read_section("Exit codes"))
    assert [(row[0], row[1]) for row in rows] == [(str(code.value), code.name) for code in ExitCode]
    assert all(len(row) == 4 and all(row) for row in rows)


def test_every_command_has_a_section() -> None:
    """In the order of the help, and none that the command line lacks."""
    assert tuple(re.findall(r"^### imagegen (\w+)$", README, re.MULTILINE)) == COMMANDS


def test_every_option_that_is_named_exists() -> None:
    """A call in the README works: the option belongs to that command, a lone option to some command."""
    calls = list(find_calls(README))
    assert {name for name, _ in calls} >= set(COMMANDS)
    for name, options in calls:
        assert set(options) <= list_options(name) | list_options(""), (name, options)
    somewhere = set().union(*(list_options(name) for name in ("", *COMMANDS)))
    alone = set(re.findall(r"`(--?[a-z][a-z-]*)(?: [^`]*)?`", README)) - {"-t", "--json"}  # dib's, imagegen-node's
    assert len(alone) > 10
    assert alone <= somewhere


def test_no_option_is_left_out() -> None:
    """Every spelling of every option stands in the README."""
    for name in ("", *COMMANDS):
        for option in list_options(name):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", README), (name, option)


def test_a_wrong_option_would_be_found() -> None:
    """The search sees calls in blocks and in lines, behind sudo and before redirections."""
    text = "```sh\nsudo imagegen build --rolle x > y --no\n```\nor `imagegen -c f seed --kep` and `imagegen`\n"
    assert sorted(find_calls(text)) == [("build", ["--rolle"]), ("seed", ["-c", "--kep"])]


def test_the_cluster_file_is_the_one_that_init_writes(tmp_path: Path) -> None:
    """The README's cluster.yaml validates, and is the embedded default."""
    (tmp_path / "cluster.yaml").write_text(read_files()["cluster.yaml"])
    shown = load_cluster(tmp_path / "cluster.yaml")
    assert replace(shown, secrets_path=Path("secrets.yaml")) == load_cluster(None)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the files that the README shows, as its reader has them before the first command."""
    for name, block in read_files().items():
        if name != "cluster.yaml":  # init writes that one
            (tmp_path / name).write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return tmp_path


def run_line(line: str, last: ExitCode) -> tuple[str, ExitCode]:
    """What a terminal shows after one line, and its exit code."""
    if line == "echo $?":
        return f"{last.value}\n", ExitCode.DONE
    words = shlex.split(line)
    target = words[words.index(">") + 1] if ">" in words else None
    shown = io.StringIO()
    printed = io.StringIO() if target else shown
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(shown):
        code = run_command(words[1 : words.index(">") if target else None])
    if target:
        Path(target).write_text(printed.getvalue())
    return shown.getvalue(), code


def test_the_offline_transcripts_are_real(session: Path) -> None:
    """What the README shows of the commands that need neither root nor a network is what they print, in its order."""
    ran, code = set(), ExitCode.DONE
    for block in read_blocks("console"):
        calls = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
        if not any(re.match(rf"imagegen .*\b({'|'.join(OFFLINE)})\b", call) for call in calls):
            continue
        for call in calls:
            line, _, expected = call.partition("\n")
            shown, code = run_line(line, code)
            assert shown == expected, line
            ran |= set(line.split()) & set(OFFLINE)
    assert ran == set(OFFLINE)


def test_build_and_boot_have_transcripts() -> None:
    """They were really run, so they show names that only a run gives: an image's ID and nodes' seconds."""
    blocks = "\n".join(read_blocks("console"))
    built = re.findall(r"^\S+ +(?:tar|raw|qcow2) +([0-9a-f]{12}) +(\S+)$", blocks, re.MULTILINE)
    assert built
    assert all(Path(path).name.startswith(f"controller-{id}.") or f"compute-{id}." in path for id, path in built)
    assert re.search(r"^linux-node1 +controller +ready +\d+ +controller-[0-9a-f]{12}\.\w+$", blocks, re.MULTILINE)
    assert re.search(r"^linux-node2 +compute +ready +\d+ +compute-[0-9a-f]{12}\.\w+$", blocks, re.MULTILINE)


def test_the_support_table_is_releases_yaml() -> None:
    """Each suite is listed with what was booted there and what is data only; nothing is claimed beside."""
    data = yaml.safe_load((PACKAGE / "data/releases.yaml").read_text())
    order = [str(row["id"]) for row in data["releases"]]
    wanted = {}
    for name, distro in data["distros"].items():
        for suite, row in distro["suites"].items():
            booted = [str(release) for release in row.get("booted", [])]
            offered = {str(row["ships"]), *map(str, row.get("releases", []))} - set(booted)
            wanted[name, str(suite)] = [booted, sorted(offered, key=order.index)]
    rows = read_table(read_section("What is supported"))
    assert {(row[0], row[1]): [cell.split(", ") if cell else [] for cell in row[2:]] for row in rows} == wanted
    assert len(rows) == len(wanted)


def test_make_targets_that_are_named_exist() -> None:
    """Every `make TARGET` of the pages is one."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE)
    }
    assert {"image", "test"} <= named <= targets


def test_links_lead_somewhere() -> None:
    """Relative links of all pages name files of the checkout."""
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())]
    assert len(links) > 10
    assert [str(link) for page, link in links if not (page.parent / unquote(link)).exists()] == []


def test_every_decision_is_listed() -> None:
    """docs/adr/README.md has each page once, under the page's own number and in order."""
    pages = sorted(path.name for path in (ROOT / "docs/adr").glob("[0-9]*.md"))
    assert len(pages) > 5
    assert re.findall(r"\((\d{4}-[\w-]+\.md)\)", (ROOT / "docs/adr/README.md").read_text()) == pages
    for number, name in enumerate(pages, 1):
        text = (ROOT / "docs/adr" / name).read_text()
        assert name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number}. ")
        assert re.findall(r"^## (.+?)(?: \(.*\))?$", text, re.MULTILINE) == [
            "The question",
            "What was found",
            "Decision",
            "What follows",
        ]


def test_the_first_boot_names_every_step_of_the_agent() -> None:
    """The picture in docs/architecture.md has each step of both roles, and no other is in the table of items."""
    sources = "\n".join(path.read_text() for path in AGENT.rglob("*.py"))
    steps = set(re.findall(r'\bStep\("([a-z-]+)"', sources))
    for element in services_document(find_role("controller"), find_release("2025.1", Distro()))["elements"]:
        steps |= {unit["step"] for unit in element["units"]} | set(element["steps"])
        steps |= {
            f"{schema['name']}-schema" for schema in element["schemas"] if schema["sync"] and not element["hosted"]
        }
    text = (ROOT / "docs/architecture.md").read_text()
    picture = read_blocks("text", text.partition("\n## The first boot\n")[2])[0]
    assert len(steps) > 20
    assert {step for step in steps if not re.search(rf"(?<![\w-]){step}(?![\w-])", picture)} == set()
    named = {step for line in re.findall(r"\bsteps? (`.*)$", text, re.M) for step in re.findall(r"`([a-z-]+)`", line)}
    assert "cells" in named
    assert named <= steps


def test_the_network_boot_names_every_step_of_the_initramfs() -> None:
    """The picture in docs/architecture.md has each step of both ways, but those before a disk is looked for."""
    sources = "\n".join(path.read_text() for path in NETWORK_BOOT.rglob("*.py"))
    steps = set(re.findall(r'\bStep\("([a-z-]+)"', sources)) - {"plan", "network"}
    text = (ROOT / "docs/architecture.md").read_text()
    picture = read_blocks("text", text.partition("\n## The network boot\n")[2])[0]
    assert len(steps) == 7
    assert {step for step in steps if not re.search(rf"(?<![\w-]){step}(?![\w-])", picture)} == set()


def test_every_item_of_the_manual_installation_has_its_place() -> None:
    """The table lists items 1 to 27 in order, and the files that it names exist."""
    text = (ROOT / "docs/architecture.md").read_text()
    rows = [row for row in re.findall(r"^\| (\d+) \|.*\| (.+) \|$", text, re.MULTILINE)]
    assert [int(number) for number, _ in rows] == list(range(1, 28))
    paths = {path for _, where in rows for path in re.findall(r"`((?:elements|imagegen)/[\w./-]+)`", where)}
    assert len(paths) > 5
    assert {path for path in paths if not (ROOT / path).exists()} == set()
