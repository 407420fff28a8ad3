"""The files that elements declare: what each names is there, and a new service needs a declaration and a template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml
from jinja2 import ChoiceLoader, DictLoader, meta
from repository import ELEMENTS

from imagegen.base.errors import BadInput
from imagegen.base.resources import PACKAGE
from imagegen.base.templates import environment
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import generate_secrets, load_secrets
from imagegen.model.declarations import declarations
from imagegen.model.releases import find_release
from imagegen.model.roles import roles
from imagegen.model.secret_keys import derived_secrets, secret_kinds
from imagegen.model.services import services
from imagegen.seeds.service_files import DOCUMENTS, SeedFile, node_files

DECLARED = [(element, file) for element, one in declarations().items() for file in one.get("files", ())]
TEMPLATES = {f"{element}/seed/{file['template']}" for element, file in DECLARED if "template" in file}


def with_imports(names: set[str]) -> set[str]:
    """The templates, and all that they import."""
    found: set[str] = set()
    while names:
        found |= names
        parsed = [environment().parse((ELEMENTS / name).read_text()) for name in names]
        names = {str(one) for tree in parsed for one in meta.find_referenced_templates(tree)} - found
    return found


def test_every_template_is_some_files() -> None:
    """Each declared file's is there, and none is left over."""
    assert with_imports(TEMPLATES) == {str(path.relative_to(ELEMENTS)) for path in ELEMENTS.glob("*/seed/*")}


def test_what_a_declared_file_holds_is_there() -> None:
    """Its secret is a key of secrets.yaml, its document a function's."""
    assert {file["secret"] for _, file in DECLARED if "secret" in file} <= secret_kinds().keys()
    assert {file["document"] for _, file in DECLARED if "document" in file} == DOCUMENTS.keys()
    assert set(derived_secrets().values()) <= secret_kinds().keys()


def test_every_element_that_declares_files_is_at_work_in_a_role() -> None:
    """So no declared file is forgotten."""
    at_work = {element for role in roles() for element in (*role.services, *role.hosts)}
    assert {element for element, _ in DECLARED} <= at_work


TOY = {
    "packages": {"toy": {"all": "toy"}},
    "needs": ["keystone", "mariadb-server"],
    "schemas": [{"name": "toy_main", "user": "toy", "revisions": "toy/migrations"}],
    "users": ["toy"],
    "secrets": {"toy_salt": "password"},
    "files": [{"path": "/etc/toy/toy.conf", "owner": "root:toy", "mode": "0640", "template": "toy.conf.j2"}],
}
TEMPLATE = """\
connection = {{ databases.toy_main | oslo }}
password = {{ secrets.identity_toy | oslo }}
salt = {{ secrets.toy_salt | oslo }}
"""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One more service on controllers: an element with a declaration and a template, and its name in the role."""
    jsonschema.validate(TOY, json.loads((PACKAGE / "data/declaration.schema.json").read_bytes()))
    controller = declarations()["nova-controller"]
    role = {**controller["role"], "services": [*controller["role"]["services"], "toy-api"]}
    monkeypatch.setitem(declarations(), "toy-api", TOY)
    monkeypatch.setitem(declarations(), "nova-controller", {**controller, "role": role})
    with_toy = ChoiceLoader([DictLoader({"toy-api/seed/toy.conf.j2": TEMPLATE}), environment().loader])
    monkeypatch.setattr(environment(), "loader", with_toy)
    caches = services, find_release, roles  # made from the declarations
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.usefixtures("toy")
def test_a_new_service_needs_no_python(tmp_path: Path) -> None:
    """`init` makes its secrets, every file must have them, and they reach its template and the agent, quoted."""
    path = tmp_path / "secrets.yaml"
    values = yaml.safe_load(generate_secrets())
    assert {"database_toy", "identity_toy", "toy_salt"} < values.keys()
    own = {"database_toy": 'p@ss "$x', "identity_toy": 'id "$x y', "toy_salt": "salt$salt"}
    path.write_text(json.dumps({key: value for key, value in values.items() if key not in own}))
    with pytest.raises(BadInput) as caught:
        load_secrets(path)
    assert [problem.message for problem in caught.value.problems] == [f"the key `{key}` is missing" for key in own]
    path.write_text(json.dumps(values | own))

    cluster = load_cluster(None)
    controller, compute = (
        {file.path: file for file in node_files(cluster, node, load_secrets(path))} for node in cluster.nodes
    )
    assert controller["/etc/toy/toy.conf"] == SeedFile(
        "/etc/toy/toy.conf",
        "root:toy",
        0o640,
        'connection = "mysql+pymysql://toy:p%40ss%20%22%24x@192.168.56.11:3306/toy_main"\n'
        'password = "id "\\$x y"\n'
        'salt = "salt\\$salt"\n',
    )
    assert "/etc/toy/toy.conf" not in compute
    node = json.loads(controller["/etc/imagegen/node.json"].content)
    assert {"name": "toy_main", "user": "toy", "password": own["database_toy"]} in node["database"]["schemas"]
    assert own["identity_toy"] in [user["password"] for user in node["identity"]["users"]]
