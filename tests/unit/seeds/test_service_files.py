"""The files that elements declare: what each names is there, and a new service needs a declaration and a template."""

from __future__ import annotations

from jinja2 import meta
from repository import ELEMENTS

from imagegen.base.templates import environment
from imagegen.model.declarations import declarations
from imagegen.model.roles import roles
from imagegen.model.secret_keys import derived_secrets, secret_kinds
from imagegen.seeds.service_files import DOCUMENTS

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
