"""nginx itself takes the site that `imagegen pxe` writes. That it serves what it should is in tests/cluster."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from netboot_images import make_images

from imagegen.inputs.cluster_file import load_cluster
from imagegen.outputs import pxe

AROUND = Path(__file__).parents[2] / "data/nginx.conf"
URL = "http://127.0.0.1:8080"  # `nginx -t` binds: another machine's address is refused, a port that is in use is not


@pytest.fixture
def place(tmp_path: Path) -> Path:
    shutil.copy(AROUND, tmp_path / "nginx.conf")
    return tmp_path


def write_site(place: Path, root: Path) -> str:
    """The emitted site for a tree at `root`."""
    if not (place / "out").exists():
        make_images(place / "out")
    cluster = replace(load_cluster(None), pxe_url=URL)
    tree = pxe.pxe_tree(cluster, pxe.find_images(cluster, place / "out"), root)
    return tree["nginx.conf"].data.decode()


def try_site(place: Path, site: str) -> str:
    """What `nginx -t` has against it, else nothing. Skips the test, which CI does not allow, without nginx."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("nginx is missing: it comes with the Debian package nginx, `make unit` installs it")
    (place / "site.conf").write_text(site)
    argv = [program, "-t", "-q", "-p", str(place), "-c", str(place / "nginx.conf")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode == 0) == (done.stderr == ""), done
    return done.stderr


@pytest.mark.allow_process("nginx")
def test_nginx_itself_takes_the_site(place: Path) -> None:
    """A planted word is not taken, and neither is a line that lacks its end."""
    site = write_site(place, place / "out/pxe")
    assert f"listen {URL.removeprefix('http://')};" in site
    assert try_site(place, site) == ""
    assert 'unknown directive "sendfiel"' in try_site(place, site.replace("sendfile", "sendfiel"))
    assert "invalid number of arguments" in try_site(place, site.replace("sendfile on;", "sendfile on"))


@pytest.mark.allow_process("nginx")
@pytest.mark.parametrize("name", ["two words", "a;b", "a{b}", "a #b", 'a"b', "a\\b", "it's", "é"])
def test_a_directory_may_have_any_name_that_a_shell_quotes(name: str, place: Path) -> None:
    """`--out` is the operator's choice."""
    assert try_site(place, write_site(place, place / name / "pxe")) == ""
