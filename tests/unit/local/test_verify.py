"""verify.py: good facts give no finding, and each planted fault gives exactly its own."""

from __future__ import annotations

import copy
import json
import runpy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT

from imagegen.base.commands import Completed
from imagegen.base.errors import CommandFailed
from imagegen.base.resources import PACKAGE
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.secrets_file import Secrets
from imagegen.local import verify
from imagegen.model.secret_keys import secret_kinds
from imagegen.seeds.node_json import node_document

NASTY = "p@ss/w:r%d\"$#{}\\'x|é"[:-1]
SECRETS = Secrets({key: f"{NASTY}{number}" for number, key in enumerate(secret_kinds())})
CLUSTER = load_cluster(None)
CONTROLLER, COMPUTE = CLUSTER.nodes
EXPECTED = node_document(CLUSTER, CONTROLLER, SECRETS)


def make_facts() -> verify.Facts:
    """What a ready default cluster answers, with a stranger's rows among it."""
    cells = [
        {
            "Name": cell["name"],
            "UUID": cell["uuid"],
            "Transport URL": cell["transport_url"],
            "Database Connection": cell["database_connection"],
            "Disabled": "False",
        }
        for cell in EXPECTED["cells"]
    ]
    catalog = EXPECTED["identity"]["services"]
    services = [{"id": f"s{n}", "name": one["name"], "type": one["type"]} for n, one in enumerate(catalog, 1)]
    services.append({"id": "s0", "name": "keystone", "type": "identity"})
    endpoints = [
        {"service_id": f"s{n}", "interface": interface, "region": region, "url": service["url"], "enabled": True}
        for n, service in enumerate(catalog, 1)
        for interface in verify.INTERFACES
        for region in ("RegionOne", "RegionTwo")
    ]
    up = {"state": "up", "status": "enabled"}
    return verify.Facts(
        cells=cells,
        hosts=[{"Cell Name": "cell1", "Cell UUID": cells[1]["UUID"], "Hostname": "linux-node2"}],
        services=services,
        endpoints=endpoints,
        compute_services=[
            {"binary": "nova-conductor", "host": "linux-node1", "updated_at": "2026-01-01T00:00:00.000000", **up},
            {"binary": "nova-scheduler", "host": "linux-node1", "updated_at": "2026-01-01T00:00:00.000000", **up},
            {"binary": "nova-compute", "host": "linux-node2", "updated_at": "2026-01-01T00:00:00.000000", **up},
            {"binary": "nova-compute", "host": "linux-node9", "state": "down", "status": "disabled"},
        ],
        hypervisors=[{"hypervisor_hostname": "linux-node2.example", "service": {"host": "linux-node2"}, **up}],
        agents=[
            {"host": "linux-node2", "agent_type": "OVN Controller agent", "alive": True},
            {"host": "linux-node2", "agent_type": "OVN Metadata agent", "alive": True},
            {"host": "linux-node9", "agent_type": "OVN Metadata agent", "alive": False},
        ],
    )


def check(facts: verify.Facts) -> list[str]:
    return [str(finding) for finding in verify.check_facts(CLUSTER, CLUSTER.nodes, EXPECTED, facts)]


def test_a_ready_cluster_has_no_finding() -> None:
    """Other regions' endpoints and other hosts' services are nobody's business here."""
    assert check(make_facts()) == []


Plant = Callable[[verify.Facts], Any]


def wrong_password(column: str) -> Plant:
    def plant(facts: verify.Facts) -> None:
        row = facts.cells[1]
        row[column] = row[column].replace(EXPECTED_PASSWORD, "other")

    return plant


EXPECTED_PASSWORD = EXPECTED["cells"][1]["transport_url"].split("://openstack:")[1].split("@")[0][:20]


def test_a_controller_has_a_conductor_for_each_cell() -> None:
    """nova-conductor is listed once a cell, under the same host."""
    facts, cluster = make_facts(), replace(CLUSTER, cells=("cell1", "cell2"))
    said = "linux-node1: nova-conductor is listed 1 times, not 2 times"
    assert said in [str(found) for found in verify.check_facts(cluster, cluster.nodes, EXPECTED, facts)]
    assert isinstance(facts.compute_services, list)
    facts.compute_services.append(facts.compute_services[0])
    assert verify.check_facts(cluster, cluster.nodes, EXPECTED, facts) == []


def service_of(facts: verify.Facts, name: str) -> Any:
    return next(row for row in facts.services if row["name"] == name)


def endpoint_of(facts: verify.Facts, name: str, interface: str) -> Any:
    """That in the cluster's own region."""
    wanted = (service_of(facts, name)["id"], interface, CLUSTER.region)
    return next(row for row in facts.endpoints if (row["service_id"], row["interface"], row["region"]) == wanted)


FAULTS: list[tuple[str, Plant, str]] = [
    ("cell0 absent", lambda f: f.cells.pop(0), "cell cell0: is listed 0 times, not once"),
    ("cell1 twice", lambda f: f.cells.append(f.cells[1]), "cell cell1: is listed 2 times, not once"),
    ("a foreign cell", lambda f: f.cells.append(f.cells[1] | {"Name": "x"}), "cell x: is not in the cluster file"),
    ("another uuid", lambda f: f.cells[1].update(UUID="u"), "cell cell1: has the uuid u, not "),
    ("disabled", lambda f: f.cells[1].update(Disabled="True"), "cell cell1: is disabled"),
    (
        "cell0 with a message queue",
        lambda f: f.cells[0].update({"Transport URL": f.cells[1]["Transport URL"]}),
        "cell cell0: its Transport URL is not the seed's: scheme, user, password, host, port, path differ(s)",
    ),
    (
        "cell0 in cell1's database",
        lambda f: f.cells[0].update({"Database Connection": f.cells[1]["Database Connection"]}),
        "cell cell0: its Database Connection is not the seed's: path differ(s)",
    ),
    (
        "an old message queue password",
        wrong_password("Transport URL"),
        "cell cell1: its Transport URL is not the seed's: password differ(s)",
    ),
    (
        "an old database password",
        wrong_password("Database Connection"),
        "cell cell1: its Database Connection is not the seed's: password differ(s)",
    ),
    (
        "conductor down",
        lambda f: f.compute_services[0].update(state="down"),
        "linux-node1: nova-conductor is down and enabled, not up and enabled",
    ),
    (
        "conductor that crashes since its first start",
        lambda f: f.compute_services[0].update(updated_at=None),
        "linux-node1: nova-conductor has never reported since it was registered",
    ),
    ("no scheduler", lambda f: f.compute_services.pop(1), "linux-node1: nova-scheduler is listed 0 times, not once"),
    (
        "compute disabled",
        lambda f: f.compute_services[2].update(status="disabled"),
        "linux-node2: nova-compute is up and disabled, not up and enabled",
    ),
    ("host not mapped", lambda f: f.hosts.pop(), "linux-node2: is mapped to no cell, not to cell1 once"),
    (
        "host in cell0",
        lambda f: f.hosts[0].update({"Cell Name": "cell0"}),
        "linux-node2: is mapped to cell0, not to cell1 once",
    ),
    ("no hypervisor", lambda f: f.hypervisors.pop(), "linux-node2: its hypervisor is listed 0 times, not once"),
    (
        "hypervisor down",
        lambda f: f.hypervisors[0].update(state="down"),
        "linux-node2: its hypervisor is down and enabled, not up and enabled",
    ),
    (
        "nova not registered",
        lambda f: f.services.remove(service_of(f, "nova")),
        "service nova: of type compute is registered 0 times, not once",
    ),
    (
        "an endpoint gone",
        lambda f: f.endpoints.remove(endpoint_of(f, "nova", "admin")),
        "service nova: its admin endpoint in RegionOne is missing, not http://192.168.56.11:8774/v2.1 once",
    ),
    (
        "an endpoint twice",
        lambda f: f.endpoints.append(endpoint_of(f, "placement", "admin")),
        "service placement: its admin endpoint in RegionOne is http://192.168.56.11:8778, http://192.168.56.11:8778,",
    ),
    (
        "an endpoint disabled",
        lambda f: endpoint_of(f, "placement", "admin").update(enabled=False),
        "service placement: its admin endpoint in RegionOne is missing, not http://192.168.56.11:8778 once",
    ),
    (
        "an endpoint elsewhere",
        lambda f: endpoint_of(f, "nova", "public").update(url="http://10.0.0.1:8774/v2.1"),
        "service nova: its public endpoint in RegionOne is http://10.0.0.1:8774/v2.1, not http",
    ),
    (
        "Glance registered twice",
        lambda f: f.services.append(service_of(f, "glance")),
        "service glance: of type image is registered 2 times, not once",
    ),
    ("no agent", lambda f: f.agents.pop(0), "linux-node2: Neutron does not call its OVN Controller agent alive"),
    (
        "an agent that is dead",
        lambda f: f.agents[1].update(alive=False),
        "linux-node2: Neutron does not call its OVN Metadata agent alive",
    ),
    ("something unreadable", lambda f: f.errors.append("no token"), "cluster: no token"),
]


@pytest.mark.parametrize(("plant", "finding"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_found_alone(plant: Plant, finding: str) -> None:
    """One fault, one finding, and no password in it."""
    facts = copy.deepcopy(replace(make_facts(), errors=[]))
    plant(facts)
    found = check(facts)
    assert [text[: len(finding)] for text in found] == [finding]
    assert EXPECTED_PASSWORD not in found[0]
    assert NASTY not in found[0]


def test_only_the_booted_nodes_are_looked_for() -> None:
    """A controller booted alone is verified without the computes of its cluster file."""
    services = make_facts().compute_services[:2]
    facts = replace(make_facts(), hosts=[], hypervisors=[], agents=[], compute_services=services)
    assert verify.check_facts(CLUSTER, [CONTROLLER], EXPECTED, facts) == []


def test_without_ovn_of_the_clusters_no_agent_is_looked_for() -> None:
    """Somebody else's Neutron may have any agents; with somebody else's OVN, they are the computes' own."""
    node = Node(answers_of(replace(make_facts(), agents=[])))
    for southbound, faults in ((None, 0), ("tcp:10.0.0.5:6642", len(verify.AGENTS))):
        theirs = replace(CLUSTER, services=replace(CLUSTER.services, southbound=southbound))
        found = verify.verify_cluster(theirs, SECRETS, CLUSTER.nodes, node, 1, node)
        assert len([fault for fault in found if "Neutron" in fault.message]) == faults


def test_without_a_controller_cells_are_nobodys_business() -> None:
    """What only nova-manage knows is not checked, and all else is."""
    facts = replace(make_facts(), cells=None, hosts=None)
    assert check(facts) == []
    assert check(replace(facts, agents=[], hypervisors=[]))


def draw_table(rows: Sequence[dict[str, Any]]) -> str:
    """The form of prettytable, which nova-manage prints with."""
    titles = list(rows[0])
    widths = [max(len(str(row[title])) for row in [*rows, {t: t for t in titles}]) for title in titles]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [dict(zip(titles, titles, strict=True)), *rows]
    drawn = [
        "| " + " | ".join(str(row[t]).center(w) for t, w in zip(titles, widths, strict=True)) + " |" for row in lines
    ]
    return "\n".join([rule, drawn[0], rule, *drawn[1:], rule, ""])


cells_of_a_table = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="|"), min_size=0)


@given(st.lists(st.tuples(cells_of_a_table, cells_of_a_table, cells_of_a_table)))
def test_a_table_is_parsed_by_exact_columns(values: list[tuple[str, str, str]]) -> None:
    """Whatever stands in a cell, it comes back in its own column only; a table without rows has none."""
    titles = ("Cell Name", "Cell UUID", "Hostname")
    rows = [dict(zip(titles, row, strict=True)) for row in values]
    table = draw_table(rows or [dict(zip(titles, titles, strict=True))])
    parsed = verify.parse_table(table)
    assert parsed == (rows or [dict(zip(titles, titles, strict=True))])


def test_warnings_around_a_table_are_no_rows() -> None:
    """nova-manage's modules print deprecations beside the table; nothing at all is no rows either."""
    rows = make_facts().cells
    assert verify.parse_table("Deprecated: | x |\n" + draw_table(rows) + "bye |\n") == list(rows)
    assert verify.parse_table("") == []


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)), st.text())
def test_urls_are_compared_without_showing_them(password: str, other: str) -> None:
    """Any difference is found, whatever the text is; only names of parts are told."""
    parts = {"scheme", "user", "password", "host", "port", "path", "query", "form", "spelling"}
    wanted = f"rabbit://u:{password}@h:5672/nova"
    assert verify.compare_urls(wanted, wanted) == []
    assert other == wanted or set(verify.compare_urls(wanted, other)) - parts == set()
    assert other == wanted or verify.compare_urls(wanted, other) != []


class Node:
    """A controller that answers from a script: (return code, stdout) by the command's last words, or an exception."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.calls = answers, []

    def execute(self, argv: Sequence[str], input: bytes | None = None, timeout: float | None = None) -> Completed:
        self.calls.append((argv, input))
        answer = next(self.answers[key] for key in self.answers if key in argv)
        if isinstance(answer, Exception):
            raise answer
        return Completed(argv, answer[0], answer[1], b"Traceback: mysql://u:secret@h\nOperationalError: (2003)\n")


def answered() -> dict[str, Any]:
    """What the observer prints of a good cluster."""
    return json.loads(answers_of(make_facts())["python3"][1])


def answers_of(facts: verify.Facts) -> dict[str, Any]:
    read = {k: getattr(facts, k) for k in ("services", "endpoints", "compute_services", "hypervisors", "agents")}
    return {
        "list_cells": (0, draw_table(facts.cells).encode()),
        "list_hosts": (0, draw_table(facts.hosts).encode()),
        "python3": (0, json.dumps({**read, "errors": []}).encode()),
    }


def test_a_cluster_is_asked_by_nova_manage_and_the_apis() -> None:
    """The whole path from answers to findings; passwords go by standard input, never as an argument."""
    node = Node(answers_of(make_facts()))
    assert verify.verify_cluster(CLUSTER, SECRETS, CLUSTER.nodes, node, 1, node) == []
    words = [word for argv, _ in node.calls for word in argv]
    assert not [word for word in words if NASTY[:6] in word]
    assert [argv[:3] for argv, _ in node.calls[:2]] == [["runuser", "-u", "nova"]] * 2
    assert repr(SECRETS["identity_nova"]).encode() in node.calls[2][1]


def test_the_apis_are_asked_from_here_and_nova_manage_there() -> None:
    """Who reaches the APIs need not be who knows the cells; without the latter the former is asked all the same."""
    here, there = Node(answers_of(make_facts())), Node(answers_of(make_facts()))
    assert verify.verify_cluster(CLUSTER, SECRETS, CLUSTER.nodes, here, 1, there) == []
    assert [[argv[0] for argv, _ in node.calls] for node in (here, there)] == [["python3"], ["runuser", "runuser"]]
    assert verify.verify_cluster(CLUSTER, SECRETS, CLUSTER.nodes, here, 1, None) == []
    assert len(here.calls) == 2 and len(there.calls) == 2


@pytest.mark.parametrize(
    ("key", "answer", "finding"),
    [
        ("list_cells", (1, b""), "nova-manage cell_v2 list_cells ended with 1: OperationalError: (2003)"),
        ("list_hosts", (255, b""), "nova-manage cell_v2 list_hosts ended with 255: OperationalError: (2003)"),
        ("python3", (0, b"oops"), "the answer about the APIs is not JSON"),
        ("python3", (0, b"{}"), "the answer about the APIs is incomplete"),
        (
            "python3",
            CommandFailed("`nsenter` did not end within 9 seconds"),
            "reading the APIs failed: `nsenter`",
        ),
    ],
)
def test_what_cannot_be_asked_is_a_finding(key: str, answer: Any, finding: str) -> None:
    """The only one: what follows from it is not said. A silent controller is never taken for a good one, and a
    traceback's URL is not shown.
    """
    node = Node(answers_of(make_facts()) | {key: answer})
    (found,) = map(str, verify.verify_cluster(CLUSTER, SECRETS, CLUSTER.nodes, node, 1, node))
    assert found.startswith(f"cluster: {finding}")
    assert "secret" not in found


def test_the_apis_are_asked_as_nova() -> None:
    """It may read all that is asked, and no administrator's password exists for a Keystone outside the cluster."""
    program = verify.observe_program(CLUSTER, SECRETS).decode()
    assert program.endswith(f"'nova', {SECRETS['identity_nova']!r}, 'service'))\n")
    assert repr(SECRETS["identity_admin"]) not in program
    assert "'http://192.168.56.11:9292', 'http://192.168.56.11:9696', 'nova'" in program
    outside = replace(CLUSTER, services=replace(CLUSTER.services, southbound=None))
    assert "'http://192.168.56.11:9292', None, 'nova'" in verify.observe_program(outside, SECRETS).decode()
    compile(program, "program", "exec")


class FakeApis:
    """Stands in for urllib: answers by URL, and keeps what was asked."""

    def __init__(self, pages: dict[str, Any]) -> None:
        self.pages, self.asked = pages, []

    def __call__(self, url: str, token: str = "", body: Any = None, timeout: float = 60) -> Any:
        self.asked.append((url, token, body))
        if url not in self.pages:
            raise OSError(f"HTTP Error 404 for {url}")
        return self.pages[url]


def observe(
    pages: dict[str, Any], capsys: pytest.CaptureFixture[str], network_url: str | None = "http://q"
) -> tuple[dict[str, Any], FakeApis]:
    """Runs the script's main() against such pages."""
    apis = FakeApis(pages)
    main = runpy.run_path(str(ROOT / "imagegen/data/observe.py"))["main"]
    main.__globals__["fetch"] = apis
    main("http://k/v3", "http://n/v2.1", "http://g", network_url, "nova", NASTY, "service")
    return json.loads(capsys.readouterr().out), apis


CATALOG = [
    {"id": "s1", "name": "nova", "type": "compute", "endpoints": [{"id": "e1", "interface": "public", "url": "u"}]},
    {"id": "s2", "name": "placement", "type": "placement", "endpoints": []},
]
PAGES: dict[str, Any] = {
    "http://k/v3/auth/tokens": ({"X-Subject-Token": "t"}, {}),
    "http://k/v3/auth/catalog": ({}, {"catalog": CATALOG}),
    "http://n/v2.1/os-services": ({}, {"services": [3]}),
    "http://n/v2.1/os-hypervisors/detail": ({}, {"hypervisors": [4]}),
    "http://q/v2.0/agents": ({}, {"agents": [5]}),
    "http://g/v2/schemas/image": ({}, {"name": "image"}),
}


def test_the_observer_reads_five_lists(capsys: pytest.CaptureFixture[str]) -> None:
    """One token, all readings with it; the password is only in the first request."""
    facts, apis = observe(PAGES, capsys)
    assert facts == {
        "services": [{key: service[key] for key in ("id", "name", "type")} for service in CATALOG],
        "endpoints": [{"id": "e1", "interface": "public", "url": "u", "service_id": "s1", "enabled": True}],
        "compute_services": [3],
        "hypervisors": [4],
        "agents": [5],
        "errors": [],
    }
    assert [token for _, token, _ in apis.asked] == ["", "t", "t", "t", "t", "t"]
    assert apis.asked[0][2]["auth"]["identity"]["password"]["user"]["password"] == NASTY


def test_the_observer_turns_pages(capsys: pytest.CaptureFixture[str]) -> None:
    """Always at the address that it was given; a list that is cut off is an error."""
    more = {**PAGES, "http://n/v2.1/os-services": ({}, {"services": [3], "truncated": True})}
    detail = "http://n/v2.1/os-hypervisors/detail"
    for number in (4, 5):
        links = [{"rel": "next", "href": f"https://far/v2.1/os-hypervisors/detail?marker={number}"}]
        url = detail + ("?marker=4" if number == 5 else "")
        more[url] = ({}, {"hypervisors": [number], "hypervisors_links": links})
    more[detail + "?marker=5"] = ({}, {"hypervisors": [6]})
    facts, _ = observe(more, capsys)
    assert (facts["hypervisors"], facts["compute_services"]) == ([4, 5, 6], None)
    assert facts["errors"] == ["http://n/v2.1/os-services cannot be read: the API cuts the list off at its list_limit"]


@pytest.mark.parametrize("gone", PAGES)
def test_the_observer_says_what_it_could_not_read(gone: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each page that does not answer is an error with its URL, and the others are read all the same."""
    facts, _ = observe({url: page for url, page in PAGES.items() if url != gone}, capsys)
    assert len(facts["errors"]) == 1
    assert gone in facts["errors"][0].replace("http://k/v3:", "http://k/v3/auth/tokens:")
    assert NASTY not in facts["errors"][0]


def test_the_observer_asks_nothing_without_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    """The others would only say 401, each."""
    _, apis = observe({"http://k/v3": ({}, {})}, capsys)
    assert [url for url, _, _ in apis.asked] == ["http://k/v3/auth/tokens"]


def test_the_observer_asks_no_neutron_without_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    facts, apis = observe(PAGES, capsys, None)
    assert (facts["agents"], facts["errors"]) == (None, [])
    assert [url for url, _, _ in apis.asked if "agents" in url or "None" in url] == []


def test_a_glance_that_does_not_answer_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    """From the observer's word to the sentence that people read."""
    facts, _ = observe({url: page for url, page in PAGES.items() if not url.startswith("http://g")}, capsys)
    node = Node(
        answers_of(make_facts()) | {"python3": (0, json.dumps(answered() | {"errors": facts["errors"]}).encode())}
    )
    found = [str(each) for each in verify.verify_cluster(CLUSTER, SECRETS, CLUSTER.nodes, node, 1, node)]
    assert found == ["cluster: http://g does not answer: HTTP Error 404 for http://g/v2/schemas/image"]


def test_the_observer_is_text_for_any_python_of_a_node() -> None:
    """It is sent to the node's own python3, so its syntax is no newer than Python 3.9."""
    import ast

    source = PACKAGE / "data/observe.py"
    assert ast.parse(source.read_text(), feature_version=(3, 9)).body
