"""What the tier boots, and ways into it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from canaries import CLUSTER_FILE, ENVIRONMENT_VARIABLES, KEY_COMMENT
from watch import spell_secret

from imagegen.base.commands import run
from imagegen.images.current import find_current
from imagegen.model.cluster import Cluster, Node
from imagegen.model.roles import find_role

CHECKOUT = Path(__file__).parents[2]
IMAGES = CHECKOUT / "out/images"
BOOT_MINUTES = 60
COMMAND_SECONDS = 300  # for one command inside, under TCG

CLUSTER = """\
name: attic
region: north
network: {{cidr: 10.20.30.0/24, gateway: 10.20.30.254, dns: [10.20.30.253]}}
flavors: [{{name: {canary}, vcpus: 1, ram: 64, disk: 0}}]
ssh_authorized_keys: ["{ssh_key}"]
secrets: secrets.yaml
nodes:
  - {{name: rabbitmq, role: controller, mac: 52-54-00-AA-00-01, address: 10.20.30.1}}
  - {{name: attic-c1, role: compute, mac: 5254.00aa.0002, address: 10.20.30.2}}
"""
SECOND_COMPUTE = """\
  - {name: attic-c3, role: compute, mac: "52:54:00:aa:00:04", address: 10.20.30.4}
"""
LIVE_NODE = """\
  - name: attic-c2
    role: compute
    mac: "525400aa0003"
    address: 10.20.30.3
    deploy: {mode: live}
    root_device: {serial: attic-data}
"""


@dataclass(frozen=True)
class BootedCluster:
    """What `imagegen boot --keep` left running: its return code and output, and a way into each node."""

    cluster: Cluster
    machines: Sequence[Node]  # the nodes that are virtual machines
    from_disk: str  # the one of them that booted from disk image and seed ISO
    directory: Path
    rc: int
    stdout: str
    stderr: str
    logins: dict[str, list[str]]

    def execute(self, node: str, command: str, input: str = "") -> str:
        """The stdout of a shell command on a node, which must succeed."""
        return execute(node, self.logins[node], command, input)


def execute(node: str, login: Sequence[str], command: str, input: str = "") -> str:
    """The stdout of a shell command on the node to which `login` leads; it must succeed."""
    argv = [*login, command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, input=input)
    assert done.returncode == 0, f"{command!r} on {node} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def write_inputs(directory: Path, more_nodes: str = "") -> Path:
    """Puts a cluster file unlike the default one, its secrets and its CA there, with canaries in them."""
    run_imagegen(["init", str(directory / "init")])
    for name in ("secrets.yaml", "ca.pem", "ca.key"):
        (directory / "init" / name).rename(directory / name)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", KEY_COMMENT, "-f", directory / "id"])
    key = (directory / "id.pub").read_text().strip()
    document = CLUSTER.format(ssh_key=key, canary=CLUSTER_FILE)
    (directory / "cluster.yaml").write_text(document + more_nodes)
    return directory


def run_imagegen(
    words: list[str],
    *,
    check: bool = True,
    each_line: Callable[[str], None] = lambda line: None,
    extra: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "imagegen"),
) -> subprocess.CompletedProcess[str]:
    """Runs the command line amid canaries; `each_line` gets what it says on stderr as it says it."""
    argv = [sys.executable, *program, *words]
    environment = {**os.environ, **ENVIRONMENT_VARIABLES, **(extra or {})}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                each_line(line)
            output = process.stdout.read()
        except BaseException:
            process.terminate()  # which ends what it has booted
            raise
    done = subprocess.CompletedProcess(argv, process.returncode, output, "".join(said))
    if check:
        assert done.returncode == 0, done.stderr
    return done


def current_image(role: str) -> str:
    """The content id of the role's image, as files are named after it."""
    image = find_current(IMAGES.parent, find_role(role))
    assert image is not None, f"no image of the role {role} is built"
    return image.id


def find_secrets(paths: Iterable[Path], secrets: dict[str, str]) -> list[str]:
    """The files that hold any spelling of one of these values."""
    spellings = "\n".join(sorted({spelling for value in secrets.values() for spelling in spell_secret(value)}))
    argv = ["grep", "--text", "--fixed-strings", "--files-with-matches", "--file=/dev/stdin", "--", *map(str, paths)]
    done = subprocess.run(
        argv, input=spellings + "\n", capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()
