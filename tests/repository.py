"""Where the checkout is, and which of its files are the project's own."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent
ELEMENTS = ROOT / "elements"
AGENT = ELEMENTS / "imagegen-firstboot/static/usr/lib/imagegen-node"
NETWORK_BOOT = ELEMENTS / "imagegen-deploy/static/usr/lib/imagegen-deploy"


def read_ignored(root: Path) -> tuple[str, ...]:
    """The patterns of .gitignore, which names only files and directories, and .git itself."""
    lines = (root / ".gitignore").read_text().split()
    return ("/.git", *(line.rstrip("/") for line in lines if not line.startswith("#")))


def walk_files(root: Path = ROOT) -> Iterator[Path]:
    """Every file of the checkout that is not ignored: what a commit of everything would hold. Asks no git."""
    ignored = read_ignored(root)
    for directory, subdirectories, names in os.walk(root):
        top = Path(directory) == root
        for kept in (subdirectories, names):
            # A pattern with a slash is for the top only.
            words = {name: (name, f"/{name}") if top else (name,) for name in kept}
            kept[:] = sorted(n for n in kept if not any(fnmatch(w, pattern) for w in words[n] for pattern in ignored))
        yield from (Path(directory, name) for name in names)


def first_line(path: Path) -> str:
    """The first line of a file, empty for one that is not text."""
    with path.open("rb") as stream:
        return stream.readline(200).decode(errors="replace").strip()


def find_scripts(*shells: str, below: Path = ROOT) -> list[Path]:
    """Files whose first line names one of these interpreters (`bash`, `sh`, `python3`)."""
    found = []
    for path in walk_files(below) if below == ROOT else sorted(below.rglob("*")):
        words = first_line(path).removeprefix("#!").split() if path.is_file() else []
        if words and first_line(path).startswith("#!") and any(Path(word).name in shells for word in words[:2]):
            found.append(path)
    return found


def read_modules() -> dict[str, str]:
    """The sources of imagegen/ by their modules' names: `PACKAGE.MODULE`."""
    modules = {
        f"{path.parent.name}.{path.stem}": path.read_text()
        for path in sorted((ROOT / "imagegen").glob("*/*.py"))
        if path.stem != "__init__" and path.parent.name != "data"
    }
    assert len(modules) > 50
    return modules


def find_imports(tree: ast.AST, package: str = "imagegen") -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that is imported, at the top, inside functions and for types alike."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (package if node.level else "", node.module)))
            yield from ((node.lineno, f"{base}.{name.name}") for name in node.names)
