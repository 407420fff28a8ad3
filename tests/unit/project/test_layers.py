"""Packages import only from those before them, each outside tool has one module; the agent brings nothing to a node."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from repository import AGENT, NETWORK_BOOT, ROOT, find_imports, read_modules

# The way of the data, and what all of it stands on: a package imports from itself and from those before it.
PACKAGES = ("base", "model", "inputs", "seeds", "images", "outputs", "server", "local", "cli")

# The one module or package that may import it, or those that write formats of its; what starts processes besides
# subprocess has none.
OWNERS: dict[str, str | tuple[str, ...] | None] = {
    "subprocess": "base.commands",
    "jinja2": "base.templates",
    "pycdlib": "seeds.iso",
    "click": "cli",
    "rich": "cli.progress",
    "cryptography": ("inputs.ca", "seeds.migration", "seeds.openssh"),
    "sqlite3": "server.tables",
    "starlette": "server.app",
    "uvicorn": "server.listener",
    "multiprocessing": None,
    "pty": None,
}
PROCESS_CALLS = ("system", "popen", "fork", "forkpty", "exec", "spawn", "posix_spawn")

# Likewise for the agent's packages; what stands beside them comes last.
AGENT_LAYERS = ("engine", "node", "openstack", "roles")

# What the agent may import besides the standard library: it comes with the image's packages.
AGENT_PACKAGES = {
    "amqp": {"openstack.backing"},
    "pymysql": {"openstack.database", "openstack.lease"},
    "openstack": {"openstack.identity_objects"},
    "keystoneauth1": {"openstack.identity_objects"},
    "nova": {"openstack.cell_mappings"},
    "oslo_db": {"openstack.cell_mappings"},
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
DEVICE_WRITERS = {"engine.status", "node.seed"}
DISK_WRITERS = {"deploy", "live"}


def find_module_faults(module: str, source: str) -> list[str]:
    """What the source of a module, such as `seeds.iso`, breaks: `LINE: what`, empty when all is well."""
    tree = ast.parse(source)
    own = module.partition(".")[0]
    if own not in PACKAGES:
        return [f"0: {module} is in no package of the table in {Path(__file__).name}"]
    faults = []
    for line, name in find_imports(tree):
        package, *rest = name.split(".")
        if package == "imagegen" and rest != ["__version__"] and rest[0] not in PACKAGES[: PACKAGES.index(own) + 1]:
            faults.append(f"{line}: {module} imports {name}, which comes later")
        owner = OWNERS.get(package, module)
        owners = owner if isinstance(owner, tuple) else (owner,)
        if not {module, own} & set(owners):
            faults.append(f"{line}: {module} imports {package}, which belongs to {owner or 'no module'}")
    faults += [
        f"{line}: {module} imports {name} inside a function"
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for line, name in find_imports(function)
    ]
    faults += [
        f"{node.lineno}: {module} calls os.{node.attr}; only base/commands.py starts processes"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        if node.attr.rstrip("lvpe") in {call.rstrip("lvpe") for call in PROCESS_CALLS}
    ]
    return list(dict.fromkeys(faults))


def find_circle(sources: dict[str, str], package: str = "imagegen") -> list[str]:
    """Modules of which each imports the next, and the last the first; empty when there is no such circle."""
    names = {
        module: [name.removeprefix(f"{package}.") for _, name in find_imports(ast.parse(source), package)]
        for module, source in sources.items()
    }
    wanted = {
        module: {one for name in each for one in (name, name.rpartition(".")[0]) if one in sources and one != module}
        for module, each in names.items()
    }
    try:
        tuple(TopologicalSorter(wanted).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def find_writing_faults(module: str, tree: ast.AST) -> Iterator[str]:
    """How a node's module writes files beside files.py: `LINE: what`."""
    for node in ast.walk(tree):
        if module == "engine.files" or not isinstance(node, ast.Call):
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


def find_layer_faults(module: str, imports: Sequence[tuple[int, str]]) -> Iterator[str]:
    """Imports of an agent's module that point upwards: `LINE: what`."""
    before = AGENT_LAYERS.index(module.partition(".")[0]) if "." in module else len(AGENT_LAYERS)
    for line, name in imports:
        package, *rest = name.split(".")
        if package == "imagegen_node" and before < len(AGENT_LAYERS) and rest[0] not in AGENT_LAYERS[: before + 1]:
            yield f"{line}: {module} imports {name}, which comes later"


def find_agent_faults(module: str, source: str, own: tuple[str, ...] = ("imagegen_node",)) -> list[str]:
    """What the source of a node's module breaks: imports that a node does not have, syntax newer than Python 3.9."""
    try:
        tree = ast.parse(source, feature_version=(3, 9))
    except SyntaxError as error:
        return [f"{error.lineno}: not Python 3.9: {error.msg}"]
    imports = list(find_imports(tree, "imagegen_node"))
    faults = [*find_writing_faults(module, tree), *find_layer_faults(module, imports)]
    for line, name in imports:
        package = name.partition(".")[0]
        standard = package in sys.stdlib_module_names and package not in NEWER_THAN_3_9
        if not standard and package not in own and module not in AGENT_PACKAGES.get(package, ()):
            faults.append(f"{line}: {module} imports {package}")
    annotated = any(getattr(node, "annotation", None) or getattr(node, "returns", None) for node in ast.walk(tree))
    if annotated and "__future__.annotations" not in [name for _, name in imports]:
        faults.append("0: `from __future__ import annotations` is missing, which Python 3.9 needs for `X | None`")
    return faults


def test_packages_import_only_from_those_before_them() -> None:
    """The order of docs/architecture.md, one owner for each outside tool, and nothing hides in a function."""
    faults = [
        f"{module}:{fault}" for module, source in read_modules().items() for fault in find_module_faults(module, source)
    ]
    assert not faults, "\n".join(faults)


def test_no_circle_within_a_package() -> None:
    """Nor across packages."""
    assert find_circle(read_modules()) == []
    assert find_circle({"a.b": "from imagegen.a import c", "a.c": "from imagegen.a.b import x"}) != []


def test_every_package_is_in_the_table() -> None:
    """imagegen/ has these folders, and data/; every __init__ is empty: no import escapes the walk."""
    package = ROOT / "imagegen"
    folders = {path.parent.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert folders == {".", "data", *PACKAGES}
    assert {path.name for path in package.glob("*.py")} == {"__init__.py", "__main__.py"}
    assert [path for path in package.glob("*/__init__.py") if path.read_text()] == []
    init = (package / "__init__.py").read_text()
    assert [name for _, name in find_imports(ast.parse(init)) if not name.startswith("__future__")] == []


def read_node_modules(program: Path) -> dict[str, str]:
    """The sources of a program of a node, by their modules' names in its package: `PACKAGE.MODULE`, or `MODULE`."""
    (top,) = (path.parent for path in program.rglob("__main__.py"))
    found = {".".join(path.relative_to(top).with_suffix("").parts): path.read_text() for path in top.rglob("*.py")}
    modules = {name: source for name, source in found.items() if not name.endswith(".__init__")}
    assert len(modules) > 5
    assert {source for name, source in found.items() if name not in modules} <= {""}
    return modules


def test_the_agent_imports_only_what_a_node_has() -> None:
    """The standard library and a short list that comes with the packages; Nova's own code only where it must be."""
    modules = read_node_modules(AGENT)
    faults = [f"{module}:{fault}" for module, source in modules.items() for fault in find_agent_faults(module, source)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("program", [AGENT, NETWORK_BOOT])
def test_no_circle_on_a_node(program: Path) -> None:
    """Neither in the agent nor in the network boot, for types either."""
    (package,) = {path.parent for path in program.rglob("__main__.py")}
    assert find_circle(read_node_modules(program), package.name) == []


def test_the_network_boot_imports_the_agent_s_engine_and_nothing_else() -> None:
    """What it imports lies in the initramfs."""
    modules = read_node_modules(NETWORK_BOOT)
    own = ("imagegen_node", "imagegen_deploy")
    faults = [f"{module}:{f}" for module, source in modules.items() for f in find_agent_faults(module, source, own)]
    assert not faults, "\n".join(faults)
    imports = {name for source in modules.values() for _, name in find_imports(ast.parse(source), "imagegen_deploy")}
    assert {name.split(".")[1] for name in imports if name.startswith("imagegen_node.")} == {"engine"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("base.tree", "from imagegen.inputs.cluster_file import load_cluster"),
        ("base.tree", "import imagegen.cli.main"),
        ("base.tree", "from imagegen.seeds import seed"),
        ("base.tree", "from imagegen import cli"),
        ("model.cluster", "from imagegen.inputs import warnings"),
        ("seeds.seed", "def late():\n    from imagegen.base.errors import BadUsage"),
        ("local.boot", "import subprocess"),
        ("local.boot", "from subprocess import run"),
        ("local.boot", "import os\nos.execvp('true', ['true'])"),
        ("local.boot", "import os\nos.posix_spawn('true', ['true'], {})"),
        ("local.boot", "import os\nos.system('true')"),
        ("base.commands", "import multiprocessing"),
        ("seeds.seed", "from jinja2 import Environment"),
        ("seeds.seed", "import pycdlib.pycdlibexception"),
        ("images.build", "import click"),
        ("cli.status", "import rich.progress"),
        ("utils.text", "x = 1"),
    ],
)
def test_a_planted_import_is_found(module: str, source: str) -> None:
    """Each rule of the layers bites."""
    assert len(find_module_faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli.boot", "import click\nfrom imagegen import __version__\nfrom imagegen.local.boot import boot_cluster"),
        ("cli.progress", "import rich.progress"),
        ("base.commands", "import os, subprocess\nos.environ.get('HOME')"),
    ],
)
def test_a_lawful_import_is_let_be(module: str, source: str) -> None:
    """The rules do not forbid what they should allow."""
    assert find_module_faults(module, source) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine.steps", "import requests"),
        ("engine.steps", "import nova.objects"),
        ("engine.steps", "def late():\n    from nova import context"),
        ("openstack.database", "import tomllib"),
        ("engine.steps", "match 1:\n    case 1: pass"),
        ("engine.steps", "def f(x: int | None): pass"),
        ("roles.compute", "COMPUTE_ID.write_text('x')"),
        ("node.machine", "open('/etc/x', 'w')"),
        ("node.machine", "STAMP.open(mode='a')"),
        ("deploy", "path.open('wb')"),
        ("engine.system", "import os\nos.open('x', os.O_WRONLY | os.O_CREAT)"),
        ("openstack.backing", "import os\nos.chown('x', 0, 0)"),
        ("engine.health", "from imagegen_node.node import declared"),
        ("node.metadata", "from imagegen_node.openstack.database import fetch_rows"),
        ("roles.compute", "def late():\n    from imagegen_node import cli"),
    ],
)
def test_a_planted_fault_of_the_agent_is_found(module: str, source: str) -> None:
    """Each rule for the agent bites."""
    assert len(find_agent_faults(module, source)) == 1
