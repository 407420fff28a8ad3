"""Modules import only from lower rows, each outside tool has one module, and the agent brings nothing to a node."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import AGENT, NETWORK_BOOT, ROOT

# Lowest first. A module imports only from the rows before its own.
ROWS = (
    {"model", "errors", "resources", "endpoint", "sshkeys", "streams", "access", "signals", "switch", "admission"},
    {"callers", "tokens", "evidence"},
    {"document", "handles", "hints"},
    {"secrets", "releases", "render", "tree", "lock", "owners", "run", "console", "authority", "server"},
    {"bounds", "cluster", "logins", "warnings", "disk", "iso", "manifest", "mirrors", "lan", "ledger", "marks"},
    {"elements", "seeds", "external", "configdrive", "netboot", "pxe", "serve", "qemu", "nspawn", "store"},
    {"outdir"},
    {"dib", "verify", "baremetal", "provisioning", "fleet"},
    {"build", "pxeboot"},
    {"boot"},
    {"cli"},
    {"__main__"},
)
ROW_OF = {module: number for number, row in enumerate(ROWS) for module in row}

# The one module that may import it; what starts processes besides subprocess has none.
OWNERS = {
    "subprocess": "run",
    "jinja2": "render",
    "pycdlib": "iso",
    "click": "cli",
    "cryptography": "authority",
    "sqlite3": "ledger",
    "starlette": "serve",
    "uvicorn": "server",
    "multiprocessing": None,
    "pty": None,
}
PROCESS_CALLS = ("system", "popen", "fork", "forkpty", "exec", "spawn", "posix_spawn")

# What the agent may import besides the standard library: it comes with the image's packages.
AGENT_PACKAGES = {
    "amqp": {"backing"},
    "pymysql": {"database", "lease"},
    "openstack": {"identity_objects"},
    "keystoneauth1": {"identity_objects"},
    "nova": {"cell_mappings"},
    "oslo_db": {"cell_mappings"},
}
NEWER_THAN_3_9 = {"tomllib"}

# Files of a node are written by files.py alone, which no planted link leads astray. What others open by `os.open` are
# devices, and by `r+b` disks.
WRITING_CALLS = {
    "write_text",
    "write_bytes",
    "touch",
    "chmod",
    "chown",
    "fchmod",
    "fchown",
    "lchmod",
    "lchown",
    "mkfifo",
}
DEVICE_WRITERS = {"status", "seed"}
DISK_WRITERS = {"deploy", "live"}


def find_imports(tree: ast.AST, package: str = "imagegen") -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that is imported, at the top, inside functions and for types alike."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (package if node.level else "", node.module)))
            yield from ((node.lineno, f"{base}.{name.name}") for name in node.names)


def find_module_faults(module: str, source: str) -> list[str]:
    """What the source of imagegen/MODULE.py breaks: `LINE: what`, empty when all is well."""
    tree = ast.parse(source)
    own_row = ROW_OF.get(module)
    if own_row is None:
        return [f"0: {module} has no row: give it one in {Path(__file__).name}"]
    faults = []
    for line, name in find_imports(tree):
        package, _, rest = name.partition(".")
        imported = rest.partition(".")[0]
        if package == "imagegen" and imported != "__version__" and ROW_OF.get(imported, own_row) >= own_row:
            faults.append(f"{line}: {module} imports {imported}, which is in no lower row")
        if package in OWNERS and OWNERS[package] != module:
            faults.append(f"{line}: {module} imports {package}, which belongs to {OWNERS[package] or 'no module'}")
    faults += [
        f"{node.lineno}: {module} imports rich at its top; only a terminal needs it, so import it where it is used"
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for _, name in find_imports(node)
        if name.partition(".")[0] == "rich"
    ]
    faults += [
        f"{node.lineno}: {module} calls os.{node.attr}; only run.py starts processes"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        if node.attr.rstrip("lvpe") in {call.rstrip("lvpe") for call in PROCESS_CALLS}
    ]
    return list(dict.fromkeys(faults))


def find_writing_faults(module: str, tree: ast.AST) -> Iterator[str]:
    """How a node's module writes files beside files.py: `LINE: what`."""
    for node in ast.walk(tree):
        if module == "files" or not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        of_os = isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "os"
        modes = [
            arg.value for arg in (*node.args, *(word.value for word in node.keywords)) if isinstance(arg, ast.Constant)
        ]
        writes = name == "open" and any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)
        disk = module in DISK_WRITERS and modes == ["r+b"]
        if (
            name in WRITING_CALLS
            or (writes and not disk)
            or (of_os and name == "open" and module not in DEVICE_WRITERS)
        ):
            yield f"{node.lineno}: {module} writes by {name}; only files.py writes files"


def find_agent_faults(module: str, source: str, own: tuple[str, ...] = ("imagegen_node",)) -> list[str]:
    """What the source of a node's module breaks: imports that a node does not have, syntax newer than Python 3.9."""
    try:
        tree = ast.parse(source, feature_version=(3, 9))
    except SyntaxError as error:
        return [f"{error.lineno}: not Python 3.9: {error.msg}"]
    faults = list(find_writing_faults(module, tree))
    imports = list(find_imports(tree, "imagegen_node"))
    for line, name in imports:
        package = name.partition(".")[0]
        standard = package in sys.stdlib_module_names and package not in NEWER_THAN_3_9
        if not standard and package not in own and module not in AGENT_PACKAGES.get(package, ()):
            faults.append(f"{line}: {module} imports {package}")
    annotated = any(getattr(node, "annotation", None) or getattr(node, "returns", None) for node in ast.walk(tree))
    if annotated and "__future__.annotations" not in [name for _, name in imports]:
        faults.append("0: `from __future__ import annotations` is missing, which Python 3.9 needs for `X | None`")
    return faults


def test_modules_import_only_from_lower_rows() -> None:
    """The layers of docs/architecture.md, and one owner for each outside tool."""
    modules = [path for path in sorted((ROOT / "imagegen").glob("*.py")) if path.stem != "__init__"]
    assert len(modules) > 5
    faults = [f"{path.name}:{fault}" for path in modules for fault in find_module_faults(path.stem, path.read_text())]
    assert not faults, "\n".join(faults)


def test_every_row_names_modules_that_exist() -> None:
    """A module that was renamed leaves no row behind."""
    assert sorted(module for module in ROW_OF if not (ROOT / f"imagegen/{module}.py").is_file()) == []


def test_the_package_has_no_hidden_modules() -> None:
    """imagegen/ is flat, and its __init__ imports nothing: no import escapes the walk."""
    assert [
        p.name for p in sorted((ROOT / "imagegen").rglob("*.py")) if p.parent.name not in ("imagegen", "data")
    ] == []
    init = (ROOT / "imagegen/__init__.py").read_text()
    assert [name for _, name in find_imports(ast.parse(init)) if not name.startswith("__future__")] == []


def test_the_agent_imports_only_what_a_node_has() -> None:
    """The standard library and a short list that comes with the packages; Nova's own code only where it must be."""
    modules = sorted(AGENT.rglob("*.py"))
    assert len(modules) > 5
    faults = [f"{path.name}:{fault}" for path in modules for fault in find_agent_faults(path.stem, path.read_text())]
    assert not faults, "\n".join(faults)


def test_the_network_boot_imports_the_agent_and_nothing_else() -> None:
    """What it imports lies in the initramfs."""
    modules = sorted(NETWORK_BOOT.rglob("*.py"))
    assert len(modules) > 5
    own = ("imagegen_node", "imagegen_deploy")
    faults = [f"{path.name}:{f}" for path in modules for f in find_agent_faults(path.stem, path.read_text(), own)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tree", "from imagegen.cluster import load_cluster"),
        ("tree", "import imagegen.cli"),
        ("tree", "from imagegen import run"),
        ("tree", "from .run import start"),
        ("model", "from imagegen.errors import Problem"),
        ("seeds", "def late():\n    from imagegen.qemu import Machine"),
        ("boot", "import subprocess"),
        ("boot", "from subprocess import run"),
        ("boot", "import os\nos.execvp('true', ['true'])"),
        ("boot", "import os\nos.posix_spawn('true', ['true'], {})"),
        ("boot", "import os\nos.system('true')"),
        ("run", "import multiprocessing"),
        ("seeds", "from jinja2 import Environment"),
        ("seeds", "import pycdlib.pycdlibexception"),
        ("build", "import click"),
        ("cli", "import rich.progress"),
        ("helper", "x = 1"),
    ],
)
def test_a_planted_import_is_found(module: str, source: str) -> None:
    """Each rule of the layers bites."""
    assert len(find_module_faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli", "import click\nfrom imagegen import __version__\nfrom imagegen.boot import boot_cluster"),
        ("cli", "def show():\n    import rich.progress"),
        ("run", "import os, subprocess\nos.environ.get('HOME')"),
    ],
)
def test_a_lawful_import_is_let_be(module: str, source: str) -> None:
    """The rules do not forbid what they should allow."""
    assert find_module_faults(module, source) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("steps", "import requests"),
        ("steps", "import nova.objects"),
        ("steps", "def late():\n    from nova import context"),
        ("database", "import tomllib"),
        ("steps", "match 1:\n    case 1: pass"),
        ("steps", "def f(x: int | None): pass"),
        ("compute", "COMPUTE_ID.write_text('x')"),
        ("machine", "open('/etc/x', 'w')"),
        ("machine", "STAMP.open(mode='a')"),
        ("deploy", "path.open('wb')"),
        ("system", "import os\nos.open('x', os.O_WRONLY | os.O_CREAT)"),
        ("backing", "import os\nos.chown('x', 0, 0)"),
    ],
)
def test_a_planted_fault_of_the_agent_is_found(module: str, source: str) -> None:
    """Each rule for the agent bites."""
    assert len(find_agent_faults(module, source)) == 1
