"""What only the machine itself can say: worker counts and the kind of virtualisation."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from imagegen_node.engine.files import put_file

SERVICES_ENVIRONMENT = Path("/run/imagegen/services.env")
CELLS = Path("/run/imagegen/cells")  # a digest of what Nova's table of cells must hold
NOVA_WORKERS = Path("/etc/nova/nova.conf.d/30-workers.conf")
NOVA_VIRT_TYPE = Path("/etc/nova/nova.conf.d/40-virt-type.conf")
MARIADB_CONNECTIONS = Path("/etc/mysql/mariadb.conf.d/95-connections.cnf")
CPUINFO = Path("/proc/cpuinfo")
KVM = Path("/dev/kvm")
WORKERS = Path("/etc/imagegen/workers")  # a number in it overrides the number of cores
MOST_WORKERS = 4
# By virt_type. Without KVM QEMU makes a processor itself: it has all of Nehalem, the least that current systems boot on
# (x86-64-v2), and the same on every host.
CPU_MODELS = {"kvm": "cpu_mode = host-model\n", "qemu": "cpu_mode = custom\ncpu_models = Nehalem\n"}


def count_workers() -> int:
    """Processes of each service: what /etc/imagegen/workers says, else the cores of this machine, at most 4."""
    if WORKERS.exists():
        return max(1, int(WORKERS.read_text()))
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def configure_controller(node: dict[str, Any]) -> str:
    """Address and worker count for the uwsgi units, worker counts of Nova's daemons, connections of MariaDB."""
    workers = count_workers()
    put_file(SERVICES_ENVIRONMENT, f"IMAGEGEN_ADDRESS={node['address']}\nIMAGEGEN_WORKERS={workers}\n")
    put_file(CELLS, hashlib.sha256(json.dumps(node["cells"]).encode()).hexdigest() + "\n", 0o600)
    nova = f"[conductor]\nworkers = {workers}\n\n[scheduler]\nworkers = {workers}\n"
    put_file(NOVA_WORKERS, nova, 0o640, "root", "nova")
    if "database" in node["hosts"]:
        # Every worker of every service keeps a pool of up to 55 connections, of which few are ever used.
        limit = f"[mariadbd]\nmax_connections = {200 + 200 * workers}\n"
        put_file(MARIADB_CONNECTIONS, limit)
    return f"{workers} workers per service"


def choose_virt_type() -> tuple[str, str]:
    """(virt_type, why): kvm when the processor can and /dev/kvm is there, else qemu."""
    lines = CPUINFO.read_text().splitlines()
    flags = {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}
    can = sorted(flags & {"vmx", "svm"})
    if not can:
        return "qemu", "the processor shows neither vmx nor svm"
    if not KVM.exists():
        return "qemu", f"the processor shows {can[0]}, but there is no {KVM}"
    return "kvm", f"the processor shows {can[0]}, and {KVM} is there"


def configure_compute() -> str:
    """Writes virt_type to a drop-in for Nova; says which, and why."""
    virt_type, why = choose_virt_type()
    put_file(NOVA_VIRT_TYPE, f"[libvirt]\nvirt_type = {virt_type}\n{CPU_MODELS[virt_type]}", 0o640, "root", "nova")
    return f"virt_type {virt_type}: {why}"
