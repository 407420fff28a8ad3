"""credentials.py: what a reader of YAML and a shell make of the files, whatever the password is."""

from __future__ import annotations

import shlex
from dataclasses import replace

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from imagegen.base.marks import HEADS
from imagegen.inputs.cluster_file import load_cluster
from imagegen.outputs.credentials import Credentials, credentials_tree

CLUSTER = load_cluster(None)
NASTY = r"""p@ss/w:r%d"$#{}\'x $$ \$ ${HOME} $(id) `id` %(a)s;& !! # "' """[:-1]
printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40)
passwords = printable.filter(lambda text: text == text.strip(" "))
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


def read_openrc(text: str) -> dict[str, str]:
    """The variables that a shell exports when it reads the file."""
    found = {}
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["export"] and "=" in words[1]:
            assert len(words) == 2
            name, _, value = words[1].partition("=")
            found[name] = value
    return found


@given(passwords, passwords, passwords, labels)
@example(NASTY, NASTY, NASTY, "on")
@example("12345678", "null", "1e3", "123")
def test_what_is_written_is_read_back(password: str, user: str, project: str, name: str) -> None:
    """By a reader of YAML and by a shell: every character of the password, and the cloud's name as text."""
    cluster = replace(CLUSTER, name=name)
    tree = credentials_tree(cluster, Credentials(user, project, password))
    (cloud,) = yaml.safe_load(tree["clouds.yaml"].data)["clouds"].items()
    assert cloud == (
        name,
        {
            "auth": {
                "auth_url": "http://192.168.56.11:5000/v3",
                "username": user,
                "password": password,
                "project_name": project,
                "user_domain_name": "Default",
                "project_domain_name": "Default",
            },
            "region_name": "RegionOne",
            "interface": "public",
            "identity_api_version": "3",
        },
    )
    assert read_openrc(tree["openrc"].data.decode()) == {
        **{f"OS_{key.upper()}": value for key, value in cloud[1]["auth"].items()},
        "OS_REGION_NAME": "RegionOne",
        "OS_INTERFACE": "public",
        "OS_IDENTITY_API_VERSION": "3",
    }


@given(passwords)
def test_without_a_password_clients_ask(user: str) -> None:
    """No file has one, not even an empty one; openrc asks without showing it, and keeps blanks and backslashes."""
    tree = credentials_tree(CLUSTER, Credentials(user, "web", None))
    assert "password" not in yaml.safe_load(tree["clouds.yaml"].data)["clouds"]["demo"]["auth"]
    text = tree["openrc"].data.decode()
    assert "OS_PASSWORD" not in read_openrc(text)
    asked = text.splitlines()[-6:]
    assert asked[1:] == ["stty -echo", "IFS= read -r OS_PASSWORD", "stty echo", "echo", "export OS_PASSWORD"]
    assert shlex.split(asked[0]) == ["printf", "%s", f"Password of {user}: "]


def test_they_are_for_their_owner_alone_and_known_again() -> None:
    """Mode 0600; they begin with the mark by which imagegen replaces its own files and no others."""
    tree = credentials_tree(CLUSTER, Credentials("admin", "admin", NASTY))
    assert sorted(tree) == ["clouds.yaml", "openrc"]
    assert {file.mode for file in tree.values()} == {0o600}
    assert all(file.data.startswith(HEADS[name]) for name, file in tree.items())


def test_a_cloud_of_the_environment_does_not_interfere() -> None:
    """OS_CLOUD would go before all that openrc says."""
    text = credentials_tree(CLUSTER, Credentials("admin", "admin", NASTY))["openrc"].data.decode()
    assert text.splitlines()[1] == "unset OS_CLOUD"


def test_a_password_is_not_said() -> None:
    assert NASTY not in repr(Credentials("admin", "admin", NASTY))
