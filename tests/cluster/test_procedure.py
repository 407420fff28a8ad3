"""The 27 items of the manual procedure, each seen on nodes that nobody typed anything on."""

from __future__ import annotations

import re
from typing import Any

import pytest
from answers import CONTROLLER_DAEMONS, Answers
from deployment import Deployment, RunningNode
from expected import CONSOLE_PORTS, NOVA_COMPUTE, list_cell_options, list_options

from imagegen.model.cluster import Node
from imagegen.seeds.node_json import node_document

CELL0 = "00000000-0000-0000-0000-000000000000"
CONTROLLER_UNITS = [*CONTROLLER_DAEMONS, "nova-conductor@oost", "nova-novncproxy@oost", "placement-api"]


def installed(node: RunningNode, *packages: str) -> dict[str, str]:
    """Package -> dpkg's word for its state."""
    lines = node.ask("dpkg-query", "--show", "--showformat=${Package}\\t${db:Status-Status}\\n", *packages).splitlines()
    return dict(line.split("\t") for line in lines)


def option_values(answers: Answers, *names: str) -> dict[str, dict[str, Any]]:
    """Daemon -> these options as it has them in effect, for Nova's daemons of the controller."""
    return {unit: {name: said["options"][name] for name in names} for unit, said in answers["options of nova"].items()}


def expect_everywhere(values: dict[str, dict[str, Any]], expected: dict[str, Any]) -> None:
    assert values == dict.fromkeys(CONTROLLER_DAEMONS, expected)


def wanted_section(deployment: Deployment, node: Node, *sections: str) -> dict[str, Any]:
    """The options of these sections that the node's nova.conf must have."""
    wanted = list_options(deployment.cluster, deployment.secrets, node)
    return {name: value for name, value in wanted.items() if name.split(".")[0] in sections}


@pytest.mark.item(1)
def test_the_controller_has_its_packages(controller: RunningNode) -> None:
    """API, placement, conductor, console proxy and scheduler are installed as packages."""
    packages = ("nova-api", "placement-api", "nova-conductor", "nova-consoleproxy", "nova-scheduler")
    assert installed(controller, *packages) == dict.fromkeys(packages, "installed")


@pytest.mark.item(2)
def test_nova_has_both_databases(deployment: Deployment, answers: Answers) -> None:
    """nova_api and nova, as user nova, the password percent-encoded; the same in every daemon."""
    wanted = wanted_section(deployment, deployment.controller.node, "api_database", "database")
    assert set(wanted) == {"api_database.connection", "database.connection"}
    expect_everywhere(option_values(answers, *wanted), wanted)


@pytest.mark.item(3)
def test_nova_has_its_message_queue(deployment: Deployment, answers: Answers) -> None:
    """rabbit, as user openstack, in the vhost of the first cell."""
    wanted = list_options(deployment.cluster, deployment.secrets, deployment.controller.node)["DEFAULT.transport_url"]
    assert wanted.startswith("rabbit://openstack:")
    expect_everywhere(option_values(answers, "DEFAULT.transport_url"), {"DEFAULT.transport_url": wanted})


@pytest.mark.item(4)
def test_the_api_asks_keystone(deployment: Deployment, answers: Answers) -> None:
    """auth_strategy and the whole of [keystone_authtoken], with a password that comes out as it went in."""
    wanted = wanted_section(deployment, deployment.controller.node, "api", "keystone_authtoken")
    assert {"api.auth_strategy", "keystone_authtoken.www_authenticate_uri"} < set(wanted)
    expect_everywhere(option_values(answers, *wanted), wanted)
    login = {
        "auth_url": deployment.cluster.services.auth_url,
        "username": "nova",
        "password": deployment.secrets["identity_nova"],
        "user_domain_name": "Default",
        "project_name": "service",
        "project_domain_name": "Default",
    }
    for unit, said in answers["options of nova"].items():
        assert said["logins"]["keystone_authtoken"] == login, unit


@pytest.mark.item(5)
def test_no_option_that_the_release_forgot(answers: Answers) -> None:
    """2025.1 knows neither use_neutron nor firewall_driver: Nova has no such option and the seed does not write it."""
    for unit, said in answers["options of nova"].items():
        assert {"DEFAULT.use_neutron", "DEFAULT.firewall_driver"} <= set(said["absent"]), unit
        assert not {"DEFAULT.use_neutron", "DEFAULT.firewall_driver"} & set(said["seed"]), unit


@pytest.mark.item(6)
def test_vnc_is_on_the_controllers_address(deployment: Deployment, answers: Answers) -> None:
    """[vnc] enabled, server_listen and server_proxyclient_address; the proxy answers at that address."""
    wanted = wanted_section(deployment, deployment.controller.node, "vnc")
    assert {"vnc.enabled", "vnc.server_listen", "vnc.server_proxyclient_address"} <= set(wanted)
    expect_everywhere(option_values(answers, *wanted), wanted)
    for port in CONSOLE_PORTS.values():
        url = f"http://{deployment.controller.node.address}:{port}/vnc_auto.html"
        assert deployment.computes[0].probe("http", url)[url][0] in (200, 301, 302)


@pytest.mark.item(7)
def test_nova_knows_the_image_service(deployment: Deployment, answers: Answers) -> None:
    """[glance] endpoint_override is the cluster file's."""
    wanted = wanted_section(deployment, deployment.controller.node, "glance")
    assert wanted["glance.endpoint_override"] == f"http://{deployment.controller.node.address}:9292"
    expect_everywhere(option_values(answers, *wanted), wanted)


@pytest.mark.item(8)
def test_lock_path_is_a_directory_that_nova_can_write(controller: RunningNode, answers: Answers) -> None:
    """lock_path in every daemon, and user nova makes a file there."""
    expect_everywhere(
        option_values(answers, "oslo_concurrency.lock_path"), {"oslo_concurrency.lock_path": "/var/lock/nova"}
    )
    controller.ask_as("nova", "sh", "-c", 'name=$(mktemp "$0/XXXXXX") && rm "$name"', "/var/lock/nova")


@pytest.mark.item(9)
def test_both_apis_answer_from_another_node(deployment: Deployment) -> None:
    """The compute API on 8774 and the metadata API on 8775 speak HTTP and list their versions."""
    address = deployment.controller.node.address
    compute, metadata = f"http://{address}:8774/", f"http://{address}:8775/"
    said = deployment.computes[0].probe("http", compute, metadata)
    assert said[compute][0] == 200 and '"v2.1"' in said[compute][1]
    assert said[metadata][0] == 200 and "2009-04-04" in said[metadata][1].split()


@pytest.mark.item(10)
def test_nova_reaches_placement(deployment: Deployment, answers: Answers) -> None:
    """[placement] on every node: region and login, on computes as the computes' own user."""
    wanted = wanted_section(deployment, deployment.controller.node, "placement")
    expect_everywhere(option_values(answers, *wanted), wanted)
    names = [unit for node in deployment.computes for unit in answers[f"options on {node.name}"]]
    assert names == [NOVA_COMPUTE] * len(deployment.computes)
    on_computes = [answers[f"options on {node.name}"] for node in deployment.computes]
    for user, answer in (("placement", answers["options of nova"]), *(("nova_compute", said) for said in on_computes)):
        for unit in answer.values():
            assert unit["options"]["placement.region_name"] == deployment.cluster.region
            assert unit["logins"]["placement"]["username"] == user
            assert unit["logins"]["placement"]["password"] == deployment.secrets[f"identity_{user}"]


@pytest.mark.item(11)
def test_placement_is_served(deployment: Deployment, answers: Answers) -> None:
    """The API on 8778 lists its versions, and to the administrator a provider for every compute."""
    said = answers["placement"]
    assert [version["id"] for version in said["versions"]["versions"]] == ["v1.0"]
    wanted = {(str(deployment.cluster.compute_id(node.node)), node.name) for node in deployment.computes}
    assert {(provider["uuid"], provider["name"]) for provider in said["providers"]["resource_providers"]} == wanted


def started_as(deployment: Deployment, *words: str) -> set[str]:
    """The users as which the bring-up was seen to run a program with these words among its arguments."""
    users = deployment.controller.ask("getent", "passwd").splitlines()
    names = {int(line.split(":")[2]): line.split(":")[0] for line in users}
    return {
        names.get(given.uid, str(given.uid))
        for given in deployment.watch.seen
        if any(given.argv[n : n + len(words)] == words for n in range(len(given.argv)))
    }


@pytest.mark.item(12)
def test_the_api_schema_is_at_its_head(deployment: Deployment, answers: Answers) -> None:
    """`api_db sync` was run, as user nova and nobody else; the schema is where the packaged migrations end."""
    assert started_as(deployment, "/usr/bin/nova-manage", "api_db", "sync") == {"nova"}
    heads = answers["schemas"]["api"]["heads"]
    assert answers["database"]["versions"]["nova_api"] == heads
    assert answers["api version"].split()[-1:] == heads


@pytest.mark.item(13)
def test_cell0_is_mapped_once(answers: Answers) -> None:
    """cell0 has Nova's fixed uuid and is listed once."""
    assert [row["UUID"] for row in answers["cells"] if row["Name"] == "cell0"] == [CELL0]


@pytest.mark.item(14)
def test_cell1_is_created_once(deployment: Deployment, answers: Answers) -> None:
    """cell1 has the uuid that imagegen derives, so that no second creator can make another."""
    rows = [row["UUID"] for row in answers["cells"] if row["Name"] == "cell1"]
    assert rows == [str(deployment.cluster.cell_uuid("cell1"))]


@pytest.mark.item(15)
def test_the_main_schemas_are_at_their_head(deployment: Deployment, answers: Answers) -> None:
    """`db sync` was run, as user nova and nobody else; nova and nova_cell0 are where the packaged migrations end."""
    assert started_as(deployment, "/usr/bin/nova-manage", "db", "sync") == {"nova"}
    heads = answers["schemas"]["main"]["heads"]
    assert answers["database"]["versions"]["nova"] == heads
    assert answers["database"]["versions"]["nova_cell0"] == heads
    assert answers["database"]["versions"]["nova_oost"] == heads
    assert answers["main version"].split()[-1:] == heads


@pytest.mark.item(16)
def test_list_cells_shows_the_right_urls(deployment: Deployment, answers: Answers) -> None:
    """`list_cells --verbose` shows cell0 and the file's cells and nothing else, with exactly these URLs, enabled."""
    options = list_options(deployment.cluster, deployment.secrets, deployment.controller.node)
    main = options["database.connection"]
    oost = list_cell_options(deployment.cluster, deployment.secrets, "oost")
    shown = {
        row["Name"]: (row["Transport URL"], row["Database Connection"], row["Disabled"]) for row in answers["cells"]
    }
    assert shown == {
        "cell0": ("none:///", re.sub(r"/nova$", "/nova_cell0", main), "False"),
        "cell1": (options["DEFAULT.transport_url"], main, "False"),
        "oost": (oost["DEFAULT.transport_url"], oost["database.connection"], "False"),
    }
    assert len(answers["cells"]) == 3
    told = node_document(deployment.cluster, deployment.controller.node, deployment.secrets)["cells"]
    assert {cell["name"]: (cell["transport_url"], cell["database_connection"], "False") for cell in told} == shown


@pytest.mark.item(17)
def test_the_databases_hold_their_tables(answers: Answers) -> None:
    """Every table that Nova's models name is there: in nova_api, in cell0's schema and in every cell's."""
    tables = {schema: set(names) for schema, names in answers["database"]["tables"].items()}
    api, main = set(answers["schemas"]["api"]["tables"]), set(answers["schemas"]["main"]["tables"])
    assert len(api) >= 20 and len(main) >= 30
    assert api - tables["nova_api"] == set()
    for schema in ("nova", "nova_cell0", "nova_oost"):
        assert main - tables[schema] == set(), schema


@pytest.mark.item(18)
def test_the_controllers_services_run(controller: RunningNode) -> None:
    """API, metadata API, scheduler, conductor, VNC proxy and placement run; consoleauth is gone, no other proxy runs.

    That they come with every boot is seen in test_restarts.py.
    """
    units = controller.unit_properties("ActiveState", "SubState", "NRestarts", pattern="nova-*")
    units |= controller.unit_properties("ActiveState", "SubState", "NRestarts", pattern="placement-*")
    running = {name.removesuffix(".service") for name, unit in units.items() if unit["SubState"] == "running"}
    assert running == set(CONTROLLER_UNITS)
    assert {units[f"{name}.service"]["NRestarts"] for name in CONTROLLER_UNITS} == {"0"}


@pytest.mark.item(19)
def test_the_catalogue_has_nova_and_placement(deployment: Deployment, answers: Answers) -> None:
    """One service of each type, and one endpoint an interface, in the cluster's region, at the controller."""
    services = sorted((row["Name"], row["Type"]) for row in answers["services"])
    assert services == [
        ("glance", "image"),
        ("keystone", "identity"),
        ("neutron", "network"),
        ("nova", "compute"),
        ("placement", "placement"),
    ]
    address = deployment.controller.node.address
    urls = {"nova": f"http://{address}:8774/v2.1", "placement": f"http://{address}:8778"}
    for name, url in urls.items():
        rows = [
            (row["Interface"], row["URL"], row["Region"], row["Enabled"])
            for row in answers["endpoints"]
            if row["Service Name"] == name
        ]
        interfaces = ("admin", "internal", "public")
        assert sorted(rows) == [(interface, url, deployment.cluster.region, True) for interface in interfaces], name


@pytest.mark.item(20)
def test_the_api_lists_the_controllers_services(controller: RunningNode, answers: Answers) -> None:
    """`openstack compute service list` shows a conductor for each cell and one scheduler, enabled and up."""
    rows = sorted(
        (row["Binary"], row["Host"], row["Status"], row["State"])
        for row in answers["compute services"]
        if row["Binary"] != "nova-compute"
    )
    name = controller.name
    conductor = ("nova-conductor", name, "enabled", "up")
    assert rows == [conductor, conductor, ("nova-scheduler", name, "enabled", "up")]


@pytest.mark.item(21)
def test_the_computes_have_their_packages(computes: list[RunningNode]) -> None:
    """nova-compute, libvirt and sysfsutils are installed as packages; nothing of the controller is."""
    packages = ("nova-compute", "libvirt-daemon-system", "sysfsutils")
    for node in computes:
        assert installed(node, *packages) == dict.fromkeys(packages, "installed")
        assert node.execute(["dpkg-query", "--show", "mariadb-server"]).returncode == 1


@pytest.mark.item(22)
def test_a_compute_knows_no_database(deployment: Deployment, computes: list[RunningNode], answers: Answers) -> None:
    """nova.conf is root:nova, and nova-compute has no connection in effect, only its cell's message queue."""
    for node in computes:
        facts = node.file_facts("/etc/nova/nova.conf", "/etc/nova/nova.conf.d/50-imagegen.conf")
        assert set(facts.values()) == {"root:nova 0640"}, node.name
        said = answers[f"options on {node.name}"][NOVA_COMPUTE]
        assert said["options"]["database.connection"] is None
        assert said["options"]["api_database.connection"] is None
        wanted = list_options(deployment.cluster, deployment.secrets, node.node)["DEFAULT.transport_url"]
        assert said["options"]["DEFAULT.transport_url"] == wanted
        assert not [name for name in said["seed"] if "database" in name]


@pytest.mark.item(23)
def test_vnc_is_on_the_compute(deployment: Deployment, computes: list[RunningNode], answers: Answers) -> None:
    """At the compute's own address; the base URL is the controller's proxy for that compute's cell."""
    for node in computes:
        options = answers[f"options on {node.name}"][NOVA_COMPUTE]["options"]
        assert {name: value for name, value in options.items() if name.startswith("vnc.novncproxy_base_url")} == {
            "vnc.novncproxy_base_url": f"http://{deployment.controller.node.address}:{CONSOLE_PORTS[node.node.cell]}/vnc_auto.html"
        }
        assert options["vnc.enabled"] is True
        assert options["vnc.server_listen"] == str(node.node.address)
        assert options["vnc.server_proxyclient_address"] == str(node.node.address)


@pytest.mark.item(24)
def test_virt_type_is_what_the_machine_can_do(computes: list[RunningNode], answers: Answers) -> None:
    """kvm where /proc/cpuinfo has vmx or svm and /dev/kvm is there, else qemu; nova-compute has it in effect."""
    for node in computes:
        capable = bool(re.search(r"^flags\b.*\b(vmx|svm)\b", node.read("/proc/cpuinfo"), re.MULTILINE))
        there = node.execute(["test", "-e", "/dev/kvm"]).returncode == 0
        options = answers[f"options on {node.name}"][NOVA_COMPUTE]["options"]
        assert options["libvirt.virt_type"] == ("kvm" if capable and there else "qemu"), node.name


@pytest.mark.item(25)
def test_libvirtd_runs_before_nova_compute(computes: list[RunningNode]) -> None:
    """Both run, nova-compute the later one, and libvirt answers. That they come with every boot: test_restarts.py."""
    for node in computes:
        units = node.unit_properties("SubState", "ExecMainStartTimestampMonotonic", "NRestarts", pattern="*.service")
        libvirt, nova = units["libvirtd.service"], units["nova-compute.service"]
        assert (libvirt["SubState"], nova["SubState"]) == ("running", "running"), node.name
        assert nova["NRestarts"] == "0", node.name
        started = [int(unit["ExecMainStartTimestampMonotonic"]) for unit in (libvirt, nova)]
        assert 0 < started[0] < started[1], node.name
        assert "QEMU" in node.ask("virsh", "--connect", "qemu:///system", "version")


@pytest.mark.item(26)
def test_the_api_lists_the_computes_as_up(computes: list[RunningNode], answers: Answers) -> None:
    """`openstack compute service list` shows nova-compute of each compute once, enabled and up, and no other."""
    rows = sorted(
        (row["Host"], row["Status"], row["State"])
        for row in answers["compute services"]
        if row["Binary"] == "nova-compute"
    )
    assert rows == sorted((node.name, "enabled", "up") for node in computes)


@pytest.mark.item(27)
def test_the_computes_are_discovered_and_schedulable(
    deployment: Deployment, computes: list[RunningNode], answers: Answers
) -> None:
    """`list_hosts` maps each to its cell once, the hypervisors are listed, Placement offers each for an instance."""
    hosts = sorted((row["Hostname"], row["Cell Name"], row["Cell UUID"]) for row in answers["hosts"])
    cells = {node.name: node.node.cell for node in computes}
    assert hosts == sorted((name, cell, str(deployment.cluster.cell_uuid(cell))) for name, cell in cells.items())
    hypervisors = sorted((row["Hypervisor Hostname"], row["Host IP"], row["State"]) for row in answers["hypervisors"])
    assert hypervisors == sorted((node.name, str(node.node.address), "up") for node in computes)
    assert sorted(answers["placement"]["candidates"]["provider_summaries"]) == sorted(
        str(deployment.cluster.compute_id(node.node)) for node in computes
    )
