"""imagegen credentials: for whom, where, and what it leaves alone."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import jsonschema
import pytest
import yaml
from fakes.command_line import Output, files_below

from imagegen.base.errors import ExitCode
from imagegen.cli.run import run_command
from imagegen.model.json_schemas import json_schema

PASSWORD = 'Canary-p@ss/w:r%d"$#{}'
FILES = ["out/clouds.yaml", "out/openrc"]


@pytest.fixture(autouse=True)
def cluster(output: Output) -> None:
    """A cluster of one's own, whose administrator has a known password."""
    run_command(["init", "-q"])
    secrets = yaml.safe_load(Path("secrets.yaml").read_text()) | {"identity_admin": PASSWORD}
    Path("secrets.yaml").write_text(yaml.safe_dump(secrets))
    output()


def read_auth() -> dict[str, str]:
    auth = yaml.safe_load(Path("out/clouds.yaml").read_text())["clouds"]["demo"]["auth"]
    assert isinstance(auth, dict)
    return auth


def test_the_administrators_files(output: Output) -> None:
    """Closed to others whatever the umask; where they are goes to stdout, and the password nowhere else."""
    old = os.umask(0)
    try:
        assert run_command(["credentials"]) == ExitCode.DONE
    finally:
        os.umask(old)
    out, err = output()
    assert out.splitlines() == FILES
    assert err == "export OS_CLIENT_CONFIG_FILE=out/clouds.yaml; openstack --os-cloud demo ...\n"
    assert [stat.S_IMODE(Path(name).stat().st_mode) for name in FILES] == [0o600, 0o600]
    auth = read_auth()
    assert (auth["username"], auth["project_name"], auth["password"]) == ("admin", "admin", PASSWORD)
    assert PASSWORD not in out + err


def test_they_are_written_again(output: Output) -> None:
    """What imagegen made it replaces: after a new password, or for somebody else."""
    assert run_command(["credentials", "--user", "alice", "--project", "web"]) == ExitCode.DONE
    auth = read_auth()
    assert (auth["username"], auth["project_name"], "password" in auth) == ("alice", "web", False)
    assert PASSWORD not in "".join(Path(name).read_text() for name in FILES)
    assert run_command(["credentials", "--user", "admin", "--project", "web"]) == ExitCode.DONE
    assert read_auth()["password"] == PASSWORD


@pytest.mark.parametrize("name", ["clouds.yaml", "openrc"])
def test_files_of_others_are_left_alone(name: str, output: Output) -> None:
    """A clouds.yaml that somebody wrote has passwords that are nowhere else."""
    Path("out").mkdir()
    Path("out", name).write_text("clouds: {mine: {}}\n")
    assert run_command(["credentials"]) == ExitCode.BAD_INPUT
    assert f"out/{name}" in output()[1]
    assert Path("out", name).read_text() == "clouds: {mine: {}}\n"
    assert [path for path in files_below(Path("out")) if path in ("clouds.yaml", "openrc")] == [name]


def test_json_is_by_the_schema(output: Output) -> None:
    for words in (["credentials"], ["credentials", "--user", "alice"], ["credentials", "--bad"]):
        code = run_command([*words, "--output", "json"])
        document = json.loads(output()[0])
        jsonschema.validate(document, json_schema("output"))
        assert (document["command"], document["ok"]) == ("credentials", code == ExitCode.DONE)
        assert document.get("paths") == (FILES if document["ok"] else None)


def test_of_a_keystone_outside_no_administrator_is_known(output: Output) -> None:
    """The message says what to do, and that works."""
    text = Path("cluster.yaml").read_text()
    text = text.replace("identity: {node: linux-node1}", 'identity: {auth_url: "http://10.0.0.5:5000/v3"}')
    Path("cluster.yaml").write_text(text)
    assert run_command(["credentials"]) == ExitCode.BAD_INPUT
    err = output()[1]
    assert "Keystone is outside this cluster" in err and "imagegen credentials --user NAME --project NAME" in err
    assert not Path("out").exists()
    assert run_command(["credentials", "--user", "admin", "--project", "web"]) == ExitCode.DONE
    auth = read_auth()
    assert (auth["auth_url"], "password" in auth) == ("http://10.0.0.5:5000/v3", False)
