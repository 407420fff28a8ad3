"""secrets.yaml: what is generated loads, what is wrong is named, and no value ever shows."""

from __future__ import annotations

import base64
import hmac
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imagegen.base.errors import BadInput
from imagegen.inputs.secrets_file import Secrets, generate_secrets, load_secrets, secrets_warnings
from imagegen.model.secret_keys import secret_kinds

CONTRACT = """database_nova database_placement database_keystone database_imagegen messaging_openstack messaging_cookie
identity_admin identity_nova identity_placement seed_key keystone_fernet_key keystone_credential_key"""
OPTIONAL = """database_glance database_neutron identity_glance identity_neutron identity_nova_compute
messaging_compute_cell1 messaging_neutron migration_ca neutron_metadata""".split()
CANARY = "Canary-7x!"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "secrets.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def change(**values: object) -> str:
    """Generated secrets with some values replaced; None removes a key."""
    data = {**yaml.safe_load(generate_secrets()), **values}
    return json.dumps({name: value for name, value in data.items() if value is not None})


def find_problems(path: Path) -> list[str]:
    with pytest.raises(BadInput) as caught:
        load_secrets(path)
    return [str(problem).removeprefix(f"{path}") for problem in caught.value.problems]


def test_the_names_are_the_contracts() -> None:
    """Twelve keys that every file has, and what `init` adds for the default cluster."""
    assert sorted(secret_kinds()) == sorted(CONTRACT.split())
    assert sorted(yaml.safe_load(generate_secrets())) == sorted([*secret_kinds(), *OPTIONAL])


def test_a_file_of_an_earlier_version_has_all_it_needs(tmp_path: Path) -> None:
    """Passwords that it lacks are made from their parents': one for each key and each parent, the same each time."""
    old = change(identity_nova_compute=None, messaging_compute_cell1=None)
    secrets = load_secrets(write(tmp_path, old))
    names = ["identity_nova_compute", "messaging_compute_cell1", "messaging_compute_far_away2"]
    made = [secrets[name] for name in names]
    assert made == [load_secrets(tmp_path / "secrets.yaml")[name] for name in names]
    rotated = Secrets({**secrets.values, "messaging_openstack": "another", "identity_nova": "another"})
    everything = [*made, *(rotated[name] for name in names), *json.loads(old).values()]
    assert len(set(everything)) == len(everything)
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", password) for password in made)


def test_a_derived_password_is_an_hmac(tmp_path: Path) -> None:
    """HMAC-SHA256 keyed with the parent: who knows the child does not know the parent. By another road than ours."""
    secrets = load_secrets(write(tmp_path, change(identity_nova="Jefe-and-more", identity_nova_compute=None)))
    digest = hmac.digest(b"Jefe-and-more", b"imagegen/identity_nova_compute", "sha256")
    assert base64.urlsafe_b64decode(secrets["identity_nova_compute"] + "=") == digest


def test_what_the_file_says_counts(tmp_path: Path) -> None:
    """An optional key is taken as it is, checked as any; there is no other."""
    text = change(messaging_compute_far=CANARY)
    secrets = load_secrets(write(tmp_path, text))
    assert secrets["messaging_compute_far"] == CANARY
    assert secrets["database_nova"] == json.loads(text)["database_nova"]
    with pytest.raises(KeyError):
        secrets["database_compute_far"]
    assert find_problems(write(tmp_path, change(messaging_compute_far=" x"))) == [
        ":1: messaging_compute_far: must not start or end with a space"
    ]
    assert find_problems(write(tmp_path, change(optional="x"))) == [":1: unknown key"]


def test_a_password_that_is_typed_elsewhere_must_be_in_the_file(tmp_path: Path) -> None:
    """One of our making would be known to nobody there; the problem says which key and why."""
    path = write(tmp_path, change(identity_nova_compute=None))
    with pytest.raises(BadInput) as caught:
        load_secrets(path, {"identity_nova_compute": "because", "messaging_compute_cell1": "it is there"})
    assert [str(problem) for problem in caught.value.problems] == [
        f"{path}:1: the key `identity_nova_compute` is missing: because"
    ]


def test_generated_secrets_load(tmp_path: Path) -> None:
    """And each has the form that its service wants."""
    secrets = load_secrets(write(tmp_path, generate_secrets()))
    assert len(base64.urlsafe_b64decode(secrets["keystone_fernet_key"])) == 32
    assert len(base64.urlsafe_b64decode(secrets["keystone_credential_key"])) == 32
    assert secrets["messaging_cookie"].isalnum() and secrets["messaging_cookie"] == secrets["messaging_cookie"].upper()
    assert all(len(secrets[key]) >= 32 for key in secret_kinds())


def test_secrets_differ_each_time_and_from_each_other() -> None:
    """Nothing is derived from anything."""
    values = [value for _ in range(20) for value in yaml.safe_load(generate_secrets()).values()]
    assert len(set(values)) == 20 * (len(secret_kinds()) + len(OPTIONAL))


def test_secrets_do_not_show_themselves(tmp_path: Path) -> None:
    """Not in a log line, a traceback or a failing assertion."""
    secrets = load_secrets(write(tmp_path, change(identity_admin=CANARY)))
    assert CANARY not in f"{secrets!r} {secrets} {[secrets]}"
    assert secrets["identity_admin"] == CANARY


passwords = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=8, max_size=80).filter(
    lambda text: text == text.strip(" ")
)


@given(passwords)
def test_any_printable_ascii_password_is_taken(tmp_path_factory: pytest.TempPathFactory, password: str) -> None:
    """As it is, whatever it means in YAML, SQL, shells or URLs."""
    path = tmp_path_factory.getbasetemp() / "any-password.yaml"
    path.write_text(change(database_nova=password))
    assert load_secrets(path)["database_nova"] == password


def test_a_nasty_password_in_yamls_own_quotes(tmp_path: Path) -> None:
    """The issue's example, as a person writes it."""
    line = "database_nova: 'p@ss/w:r%d\"$#{}\\''''x'\n"
    rest = "".join(line for line in generate_secrets().splitlines(True) if not line.startswith("database_nova"))
    assert load_secrets(write(tmp_path, rest + line))["database_nova"] == "p@ss/w:r%d\"$#{}\\''x"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"database_nova": None}, ":1: the key `database_nova` is missing"),
        ({"database_nova": ""}, ":1: database_nova: must not be empty"),
        ({"database_nova": "x" * 7}, ":1: database_nova: must have at least 8 characters"),
        ({"seed_key": "short"}, ":1: seed_key: must have at least 8 characters"),
        ({"database_nova": " x"}, ":1: database_nova: must not start or end with a space"),
        ({"database_nova": "x "}, ":1: database_nova: must not start or end with a space"),
        ({"database_nova": "é"}, ":1: database_nova: must be printable ASCII"),
        ({"database_nova": "a\nb"}, ":1: database_nova: must be printable ASCII"),
        ({"database_nova": "x" * 256}, ":1: database_nova: must have at most 255 characters"),
        ({"database_nova": 12345}, ":1: database_nova: must be a string; put it in quotes"),
        ({"database_nova": [CANARY]}, ":1: database_nova: must be a string, not a list"),
        ({"messaging_cookie": "lower"}, ":1: messaging_cookie: must be 20 to 255 upper-case letters and digits"),
        (
            {"keystone_fernet_key": "x" * 44},
            ":1: keystone_fernet_key: must be a fernet key: 32 bytes in urlsafe base64",
        ),
        (
            {"keystone_credential_key": "é"},
            ":1: keystone_credential_key: must be a fernet key: 32 bytes in urlsafe base64",
        ),
        ({"databse_nova": "x"}, ":1: unknown key; did you mean `database_nova`?"),
    ],
)
def test_each_wrong_secret_is_named(tmp_path: Path, values: dict[str, object], problem: str) -> None:
    """With its key and line, and without its value."""
    assert find_problems(write(tmp_path, change(**values))) == [problem]


def test_all_problems_come_together(tmp_path: Path) -> None:
    """A person mends a file once."""
    problems = find_problems(write(tmp_path, 'database_nova: ""\nseed_key: 5\nseed_key: "x"\nother: x\n'))
    assert len([line for line in problems if "is missing" in line]) == 10
    assert {line for line in problems if "is missing" not in line} == {
        ":1: database_nova: must not be empty",
        ":2: seed_key: must be a string; put it in quotes",
        ":3: duplicate key; it is already on line 2",
        ":4: unknown key",
    }


@pytest.mark.parametrize(
    "text",
    [
        f"database_nova:{CANARY}\n",
        f"database_nova: *{CANARY}\n",
        "database_nova: *Canary-7x\n",
        f"database_nova: !{CANARY} x\n",
        f"database_nova: &{CANARY}\n",
        f"database_nova: @{CANARY}\n",
        f"database_nova: %{CANARY}\n",
        f'database_nova: "{CANARY}\n',
        f'database_nova: "\\q{CANARY}"\n',
        f"{{database_nova:{CANARY}, {CANARY}: 1}}\n",
        f"database_nova: {{{CANARY}: x}}\n",
        f"{CANARY}\n",
        f"- {CANARY}\n",
        f"database_nova: |\n  {CANARY}\n  é\n",
        f"seed_key: 7\n\tdatabase_nova: {CANARY}\n",
        f"{CANARY}: {CANARY}\n{CANARY}: {CANARY}\n",
    ],
)
def test_a_broken_file_does_not_tell_what_is_in_it(tmp_path: Path, text: str) -> None:
    """A password that breaks YAML is still a password."""
    problems = "\n".join(find_problems(write(tmp_path, text)))
    assert problems
    assert CANARY not in problems and "Canary" not in problems


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    """By imagegen init, in the same directory; it writes no other name."""
    assert find_problems(tmp_path / "secrets.yaml") == [f": not found; `imagegen init {tmp_path}` writes one"]
    assert f"`imagegen init {tmp_path}` writes a secrets.yaml" in find_problems(tmp_path / "site.yaml")[0]


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o620, True)]
)
def test_a_file_that_others_can_read_is_a_warning(tmp_path: Path, mode: int, warned: bool) -> None:
    """The file still loads."""
    path = write(tmp_path, generate_secrets())
    path.chmod(mode)
    assert bool(secrets_warnings(path)) == warned
    assert isinstance(load_secrets(path), Secrets)
