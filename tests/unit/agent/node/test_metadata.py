"""Whose node this is: role and release from the metadata, and the files that the seed promised."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fakes.world import DMI_UUID, OWNER, World
from hypothesis import given
from hypothesis import strategies as st
from imagegen_node import cli
from imagegen_node.engine.errors import Refused
from imagegen_node.node import machine, metadata


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, monkeypatch)
    made.make_node("linux-node1")
    return made


def put_instance_data(world: World, meta_data: Any) -> None:
    world.put("/run/cloud-init/instance-data.json", json.dumps({"ds": {"meta_data": meta_data}}))


def check_role() -> str:
    return metadata.check_role(metadata.read_facts())


def test_the_role_is_read_from_a_seed(world: World) -> None:
    """NoCloud: a map in meta-data."""
    put_instance_data(world, {"imagegen": {"role": "controller", "release": "2025.1"}})
    assert check_role() == "controller"


def test_the_role_is_read_from_openstacks_metadata(world: World) -> None:
    """Metadata service and config drive have strings only: dotted keys, and the list of files as JSON."""
    files = [{"path": "/etc/x", "owner": "root:root", "mode": "0644", "sha256-HMAC": "00"}]
    meta = {"imagegen.role": "controller", "imagegen.files": json.dumps(files), "other": "x"}
    put_instance_data(world, {"meta": meta})
    assert metadata.read_facts() == {"role": "controller", "files": files}
    assert check_role() == "controller"


@pytest.mark.parametrize(
    ("meta_data", "sentence"),
    [
        ({}, "names no role"),
        ({"imagegen": {}}, "names no role"),
        ({"imagegen": {"role": ""}}, "names no role"),
        ({"imagegen": "controller"}, "names no role"),
        ({"meta": {"imagegen.region": "x"}}, "names no role"),
        ({"meta": None}, "names no role"),
        ({"imagegen": {"role": "storage"}}, "asks for role storage; the roles are controller, compute"),
        ({"imagegen": {"role": "compute"}}, "asks for role compute, but this image holds controller"),
        ({"imagegen": {"role": "controller", "release": "2024.2"}}, "for release 2024.2, but this image holds 2025.1"),
    ],
)
def test_a_wrong_role_is_refused(world: World, meta_data: Any, sentence: str) -> None:
    """Missing, unknown, not baked, of another release: each a sentence."""
    put_instance_data(world, meta_data)
    with pytest.raises(Refused, match=sentence):
        check_role()


def test_a_node_without_any_seed_is_refused(world: World) -> None:
    """cloud-init left no instance data."""
    world.at("/run/cloud-init/instance-data.json").unlink()
    with pytest.raises(Refused, match="cloud-init found no data source"):
        check_role()


def test_an_image_that_bakes_no_role_is_refused(world: World) -> None:
    """A bare image without the generated element."""
    world.at("/etc/imagegen/image.json").unlink()
    with pytest.raises(Refused, match="built without a role's element"):
        check_role()


def test_a_refused_role_is_failed_in_the_status_until_it_is_mended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself: failed with the reason; when the metadata comes right, the role's steps run."""
    put_instance_data(world, {})
    seed = {"imagegen": world.facts}
    world.later(50, lambda: put_instance_data(world, seed))
    ran = []
    monkeypatch.setattr("imagegen_node.roles.controller.Controller.run", lambda self: ran.append(self.status.role))
    monkeypatch.setattr("imagegen_node.cli.run_step", patient(cli.run_step, world))
    assert cli.main(["run"]) == 0
    assert ran == ["controller"]
    failed = [document for document in world.documents if document["state"] == "failed"]
    assert [document["detail"] for document in failed] == [
        "the metadata names no role: expected imagegen.role in meta-data"
    ]


@pytest.mark.parametrize("again", [False, True])
def test_the_seeds_files_are_written_again_when_one_differs(
    again: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cloud-init writes them once for an instance-id, so an old seed that comes back would change nothing."""
    edited = world.at("/etc/nova/nova.conf.d/50-imagegen.conf")
    if again:
        edited.write_text("[DEFAULT]\n")
        world.put("/etc/imagegen/node.json", json.dumps({**world.node, "status_url": "http://192.0.2.1/of-before"}))
    posted: list[str] = []
    monkeypatch.setattr("imagegen_node.engine.status.Status.post_to", lambda self, url: posted.append(url))
    monkeypatch.setattr("imagegen_node.roles.controller.Controller.run", lambda self: None)
    assert cli.main(["run"]) == 0
    written = ["cloud-init single --name write_files --frequency always"]
    assert world.commands.log == (written if again else [])
    assert posted == []
    assert metadata.check_files(world.facts, world.node) == f"{len(world.facts['files'])} files as the seed promised"


def patient(run_step: Callable[..., None], world: World) -> Callable[..., None]:
    """run_step on the world's clock."""
    return lambda step, status, sleep: run_step(step, status, world.sleep)


# files


def test_the_seeds_files_are_as_promised(world: World) -> None:
    """The seed's own digests, checked by the agent: what one writes the other reads."""
    assert metadata.check_files(world.facts, world.node) == f"{len(world.facts['files'])} files as the seed promised"
    assert len(world.facts["files"]) > 10


def entry_of(world: World, name: str) -> dict[str, Any]:
    return next(entry for entry in world.facts["files"] if entry["path"].endswith(name))


def unlink(path: Path, entry: dict[str, Any]) -> None:
    path.unlink()


def edit(path: Path, entry: dict[str, Any]) -> None:
    path.write_text(path.read_text() + "\n")


def open_up(path: Path, entry: dict[str, Any]) -> None:
    path.chmod(0o644)


def set_bit(path: Path, entry: dict[str, Any]) -> None:
    path.chmod(0o4640)


def give_away(path: Path, entry: dict[str, Any]) -> None:
    entry["owner"] = "root:nova"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (unlink, "50-imagegen.conf is missing"),
        (edit, "50-imagegen.conf differs from the seed"),
        (open_up, "50-imagegen.conf has mode 0644, not 0640"),
        (set_bit, "50-imagegen.conf has mode 4640, not 0640"),
        (give_away, f"50-imagegen.conf belongs to {OWNER}, not root:nova"),
    ],
)
def test_a_wrong_file_stops_the_node(world: World, spoil: Callable[..., None], sentence: str) -> None:
    """Absent, other content, mode or owner: failed before anything starts, ready when it is right again."""
    entry = entry_of(world, "nova.conf.d/50-imagegen.conf")
    spoil(Path(entry["path"]), entry)
    last = world.run_controller(100)
    assert (last["state"], last["step"]) == ("failed", "files")
    assert sentence in last["detail"]
    assert "see /var/log/cloud-init.log" in last["detail"]
    assert world.commands.log == []
    world.make_node("linux-node1")
    assert world.run_controller()["state"] == "ready"


def test_only_the_first_wrong_files_are_named(world: World) -> None:
    """A seed of which nothing was written is one short text."""
    for entry in world.facts["files"]:
        Path(entry["path"]).unlink()
    with pytest.raises(
        Refused, match=rf"^\S+ is missing; \S+ is missing; \S+ is missing; and {count(world) - 3} more\. "
    ):
        metadata.check_files(world.facts, world.node)


def count(world: World) -> int:
    return len(world.facts["files"])


def test_a_file_of_nobody_is_named_by_numbers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner that the seed named is not in this image."""

    def unknown(number: int) -> Any:
        raise KeyError(number)

    monkeypatch.setattr(metadata.pwd, "getpwuid", unknown)
    monkeypatch.setattr(metadata.grp, "getgrgid", unknown)
    assert metadata.name_owner(4242, 4343) == "4242:4343"


@given(st.binary(max_size=200), st.binary(max_size=200), st.text("0123456789abcdef", min_size=1))
def test_any_other_content_is_found(tmp_path_factory: pytest.TempPathFactory, one: bytes, two: bytes, key: str) -> None:
    """The digest tells any two contents apart."""
    path = tmp_path_factory.mktemp("files") / "file"
    path.write_bytes(one)
    path.chmod(0o600)
    found = path.stat()
    entry = {
        "path": str(path),
        "owner": metadata.name_owner(found.st_uid, found.st_gid),
        "mode": "0600",
        "sha256-HMAC": hmac.new(key.encode(), two, sha256).hexdigest(),
    }
    assert metadata.find_wrong_files([entry], key) == ([] if one == two else [f"{path} differs from the seed"])


# the machine


def test_a_machine_with_another_name_is_refused(world: World) -> None:
    """The seed is another node's, or the hostname was not set."""
    world.node_name = "localhost"
    with pytest.raises(Refused, match="this machine is named localhost, but its seed is for linux-node1"):
        machine.check_machine(world.node)


@pytest.mark.parametrize("text", ["", "uninitialized\n"])
def test_a_machine_without_an_id_is_refused(world: World, text: str) -> None:
    """An image has no machine-id; a node must."""
    world.put("/etc/machine-id", text)
    with pytest.raises(Refused, match="machine-id does not hold a valid id"):
        machine.check_machine(world.node)


def test_a_machine_without_host_keys_is_refused(world: World) -> None:
    """cloud-init makes them at the first boot."""
    world.at("/etc/ssh/ssh_host_ed25519_key").unlink()
    with pytest.raises(Refused, match="no ssh host keys"):
        machine.check_machine(world.node)


def test_the_agent_waits_for_its_node_file(world: World) -> None:
    """cloud-init writes it; until then the status says so."""
    world.at("/etc/imagegen/node.json").unlink()
    with pytest.raises(Exception, match=r"node\.json, which cloud-init writes from the seed"):
        metadata.read_node()


def test_a_seed_older_than_the_image_is_refused(world: World) -> None:
    """With the cure: such a seed does not say which elements are at work."""
    document = dict(world.node)
    del document["elements"]
    world.put("/etc/imagegen/node.json", json.dumps(document))
    with pytest.raises(Refused, match="older than this image.*write it again"):
        metadata.read_node()


@pytest.mark.parametrize("uuid", ["00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", None])
def test_firmware_without_a_uuid_says_nothing(world: World, uuid: str | None) -> None:
    """Zeros and ones are what firmware shows that was given no UUID: no two machines are the same for that."""
    place = world.at("/sys/class/dmi/id/product_uuid")
    machine.stamp_machine(world.node)
    place.unlink()
    if uuid:
        place.write_text(f"{uuid}\n")
    machine.stamp_machine(world.node)
    assert machine.read_stamp()["dmi_uuid"] == DMI_UUID.lower()


def test_a_disk_is_stamped_once_its_machine_is_known(world: World) -> None:
    """A firmware that shows its UUID late, after an update, completes the stamp; a later boot changes nothing."""
    world.at("/sys/class/dmi/id/product_uuid").unlink()
    machine.stamp_machine(world.node)
    assert machine.read_stamp() == {"node": "linux-node1", "dmi_uuid": ""}
    world.put("/sys/class/dmi/id/product_uuid", f"{DMI_UUID}\n")
    machine.stamp_machine(world.node)
    stamp = world.at("/var/lib/imagegen/machine.json")
    before = stamp.stat().st_mtime_ns
    machine.stamp_machine(world.node)
    assert stamp.stat().st_mtime_ns == before
    assert stamp.stat().st_mode & 0o777 == 0o600


def test_a_copied_disk_is_refused_by_its_hardware(world: World) -> None:
    """Two machines with one disk's identity: both names are said, and what they share, and the way out."""
    machine.stamp_machine(world.node)
    world.put("/etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.1993-08.org.debian:01:1234")
    world.put("/sys/class/dmi/id/product_uuid", "11111111-2222-4333-8444-555555555555\n")
    with pytest.raises(Refused) as caught:
        machine.stamp_machine(world.node)
    said = str(caught.value)
    assert DMI_UUID.lower() in said and "11111111-2222-4333-8444-555555555555" in said
    assert "initiatorname.iscsi" in said and "ssh_host_ed25519_key" in said and "machine-id" in said
    world.at("/var/lib/imagegen/machine.json").unlink()
    machine.stamp_machine(world.node)


def test_a_disk_of_another_node_is_refused(world: World) -> None:
    """A copied disk that got a seed of its own, or a renamed host: Nova follows neither."""
    machine.stamp_machine(world.node)
    world.make_node("linux-node2")
    with pytest.raises(Refused, match="first booted as node linux-node1, but its seed now says linux-node2"):
        machine.stamp_machine(world.node)
