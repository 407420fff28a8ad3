"""Open vSwitch and OVN: their databases, which are on their node's disk, and what their tools print of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from fakes.nova_manage import DONE, Answer

READ_WRITE = 'read-write role="" '  # what everybody may do there who is not told otherwise
OPTIONS_OF_CHASSIS = ("ovn-encap-ip", "ovn-encap-type", "system-id")  # without them ovn-controller makes no chassis


@dataclass
class Database:
    """OVN's northbound or southbound one. It has its socket, and listens where it is told."""

    tool: str
    unit: str
    before: str = ""  # what the tool prints before each place
    targets: list[str] = field(default_factory=list)

    def answer(self, words: Sequence[str], up: bool) -> Answer:
        if not up:
            return 1, "", f"{self.tool}: unix:/var/run/ovn/db.sock: database connection failed (No such file or directory)"
        verb, *targets = words
        if verb == "get-connection":
            return 0, "".join(f"{self.before}{target}\n" for target in sorted(self.targets)), ""
        assert verb == "set-connection", verb
        self.targets = targets
        if self.before:
            self.before = READ_WRITE
        return DONE

    def listens(self, address: str, port: int) -> bool:
        return {f"ptcp:{port}:{address}", f"ptcp:{port}:0.0.0.0", f"ptcp:{port}"} & set(self.targets) != set()


def northbound() -> Database:
    return Database("ovn-nbctl", "ovn-ovsdb-server-nb.service")


def southbound() -> Database:
    """Its tool says who may do what there as well (ovn-sbctl.c, cmd_get_connection)."""
    return Database("ovn-sbctl", "ovn-ovsdb-server-sb.service", READ_WRITE)


class OpenVSwitch:
    """The database of one machine's Open vSwitch."""

    def __init__(self) -> None:
        self.external_ids: dict[str, str] = {}
        self.managers: list[str] = []
        self.bridges: dict[str, dict[str, list[str]]] = {}  # name -> its options and ports

    def start(self, hostname: str, system_id: str | None) -> None:
        """What ovs-ctl writes when ovsdb-server starts; the hostname only where there is none."""
        self.external_ids |= {"rundir": "/var/run/openvswitch", "system-id": system_id or "made up"}
        self.external_ids.setdefault("hostname", hostname)

    def answer(self, words: Sequence[str], up: bool, switching: bool) -> Answer:
        """ovs-vsctl. Without --no-wait it waits for ovs-vswitchd to do what has changed."""
        if not up:
            return 1, "", "ovs-vsctl: unix:/var/run/openvswitch/db.sock: database connection failed (No such file)"
        if "add-br" in words:
            self.add_bridge(words)
            return DONE
        options = {word for word in words if word.startswith("--")}
        verb, *more = (word for word in words if not word.startswith("--"))
        if verb == "list":
            assert options == {"--format=json", "--columns=external_ids"} and more == ["Open_vSwitch", "."]
            pairs = [[key, value] for key, value in sorted(self.external_ids.items())]
            return 0, json.dumps({"data": [[["map", pairs]]], "headings": ["external_ids"]}), ""
        if verb == "get-manager":
            return 0, "".join(f"{manager}\n" for manager in sorted(self.managers)), ""
        assert "--no-wait" in options or switching, "it would wait for ever"
        if verb == "set-manager":
            self.managers = more
            return DONE
        assert verb == "set" and more[:2] == ["Open_vSwitch", "."], words
        for word in more[2:]:
            key, _, value = word.removeprefix("external_ids:").partition("=")
            assert value.startswith('"'), "an address would be taken for a syntax error"
            self.external_ids[key] = json.loads(value)
        return DONE

    def add_bridge(self, words: Sequence[str]) -> None:
        """Adds a bridge with a port, where they are missing, and sets the bridge's options."""
        for command in " ".join(words).split(" -- "):
            verb, *more = (word for word in command.split() if not word.startswith("--"))
            if verb == "add-port":
                self.bridges[more[0]]["ports"] = sorted({*self.bridges[more[0]].get("ports", []), more[1]})
            elif verb == "set":
                assert more[0] == "bridge"
                self.bridges[more[1]]["options"] = more[2:]
            else:
                assert verb == "add-br" and "--may-exist" in command, command
                self.bridges.setdefault(more[0], {})

    def is_chassis(self) -> bool:
        return all(self.external_ids.get(key) for key in OPTIONS_OF_CHASSIS)
