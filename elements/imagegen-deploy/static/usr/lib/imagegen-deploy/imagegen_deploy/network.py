"""The node's interface, while the initramfs needs it. cloud-init gets it back as it was: down, without an address."""

from __future__ import annotations

from pathlib import Path

from imagegen_node.engine.errors import Waiting
from imagegen_node.engine.system import run

from imagegen_deploy.plan import Plan

INTERFACES = Path("/sys/class/net")


def find_interface(mac: str) -> str:
    """The name of the interface with that MAC address. Raises Waiting until there is one."""
    for entry in sorted(INTERFACES.iterdir()):
        address = entry / "address"
        if address.is_file() and address.read_text().strip().lower() == mac:
            return entry.name
    raise Waiting(f"an interface with the MAC address {mac}; this machine has: {describe_interfaces()}")


def describe_interfaces() -> str:
    found = [f"{entry.name} {(entry / 'address').read_text().strip()}" for entry in sorted(INTERFACES.iterdir())]
    return ", ".join(found)


def raise_interface(plan: Plan) -> str:
    """Gives the interface its address and route; safe to repeat. Raises Waiting until there is a link."""
    name = find_interface(plan.mac)
    run(["ip", "link", "set", name, "up"])
    carrier = INTERFACES / name / "carrier"
    if carrier.read_text().strip() != "1":
        raise Waiting(f"a link on {name}")
    run(["ip", "address", "flush", "dev", name])
    run(["ip", "address", "add", plan.address, "dev", name])
    if plan.gateway:
        run(["ip", "route", "replace", "default", "via", plan.gateway])
    return f"{name} {plan.address}"


def lower_interface(plan: Plan) -> None:
    name = find_interface(plan.mac)
    run(["ip", "address", "flush", "dev", name])
    run(["ip", "link", "set", name, "down"])
