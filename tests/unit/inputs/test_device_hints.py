"""root_device's hints mean what they mean to Ironic: its agent's own answers, recorded, and what `validate` refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagegen_deploy import hints

from imagegen.base.errors import BadInput
from imagegen.inputs import device_hints
from imagegen.inputs.cluster_file import load_cluster
from imagegen.inputs.device_hints import hint_text

# [hint, expression, what the device says, whether it fits by ironic-python-agent 10.2: tests/ironic/peer_hints.py]
RECORDED = json.loads((Path(__file__).parents[2] / "data/hints.json").read_text())

# What Ironic takes and we refuse, because it is not what it looks like.
STRICTER = [
    ("serial", "s== a s== b"),  # to Ironic, `s== a`
    ("serial", "== 5"),  # compares numbers; fails when a disk's serial number is none
    ("size", "<or> 100 <or> 200"),  # never fits
    ("size", "s== 100"),  # never fits
    ("size", "s!= 100"),  # always fits
    ("size", "= 100"),  # means >=
]


def ask(hint: str, expression: Any, fact: Any) -> bool | str:
    try:
        parsed = hints.parse_hint(hint, hint_text(expression))
    except ValueError:
        return "refused"
    return parsed.fits(() if fact is None else (hint_text(fact),))


def test_every_answer_is_ironics() -> None:
    """Or a refusal, which is named in the table above."""
    differing = [row for row in RECORDED if ask(*row[:3]) != row[3]]
    assert {(hint, expression) for hint, expression, _, _ in differing} == set(STRICTER)
    assert {ask(*row[:3]) for row in differing} == {"refused"}


def test_the_recorded_cases_have_every_operator_and_every_answer() -> None:
    for operator in (*hints.NUMBERS, *hints.TEXTS):
        texts = [row for row in RECORDED if str(row[1]).lower().startswith(operator)]
        assert {row[3] for row in texts} >= {True, False}, operator


@given(st.sampled_from(hints.NAMES), st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_any_text_is_a_hint_or_is_refused_with_a_reason(name: str, text: str) -> None:
    """What is taken once is taken again in its own spelling."""
    try:
        hint = hints.parse_hint(name, text)
    except ValueError as error:
        assert str(error)
        return
    sign = "" if name == "rotational" else hint.operator
    spelt = "".join(f"{sign} {value} " for value in hint.values)
    assert hints.parse_hint(name, spelt) == hint


@given(st.lists(st.from_regex(r"[a-z0-9][a-z0-9 ]{0,8}[a-z0-9]", fullmatch=True), min_size=1, max_size=3))
def test_exactly_one_of_equal_and_unequal_fits(facts: list[str]) -> None:
    """However many names a disk has for one thing."""
    wanted = facts[0]
    equal, unequal = (hints.parse_hint("serial", f"{sign} {wanted}").fits(tuple(facts)) for sign in ("s==", "s!="))
    assert (equal, unequal) == (True, False)


@pytest.mark.parametrize(
    ("hint", "problem"),
    [
        ("size: big", "size: must be whole GiB, 1 to 9999999, after an operator such as `>=`, not `big`"),
        ("size: 0", "size: must be whole GiB, 1 to 9999999, after an operator such as `>=`, not `0`"),
        ('size: "s== 100"', "size: takes `==`, `!=`, `<=`, `>=`, `<`, `>`, not `s==`"),
        ('size: "= 100"', "size: `=` means `>=` to Ironic; write `>=` or `==`"),
        ('serial: ">= 5"', "serial: takes `s==`, `s!=`, `s<=`, `s>=`, `s<`, `s>`, `<in>`, `<or>`, not `>=`"),
        ('model: "<all-in> a b"', "model: `<all-in>` matches no disk in Ironic, because no property of a disk"),
        ('serial: "<or> A <or>"', "serial: has no value after `<or>`"),
        ('serial: "A <or> B"', "serial: has a second operator in `A <or> B`; put one at the beginning, or `<or>`"),
        ('serial: "s== A s== B"', "serial: has `s==` more than once; only `<or>` can come before each"),
        ("name: sda", "name: must be a device's own name such as /dev/sda; for a link use by_path, wwn or serial"),
        ("name: /dev/disk/by-id/wwn-0x5", "name: must be a device's own name such as /dev/sda"),
        ("by_path: /dev/sda", "by_path: must be a path such as /dev/disk/by-path/pci-0000:00:1f.2-ata-1, not"),
    ],
)
def test_validation_names_the_line_and_what_is_wrong(hint: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "name: demo\nnetwork: {cidr: 10.0.0.0/24}\nnodes:\n"
        '  - {name: a, role: controller, mac: "52:54:00:56:00:11", address: 10.0.0.2}\n'
        '  - name: b\n    role: compute\n    mac: "52:54:00:56:00:12"\n    address: 10.0.0.3\n    root_device:\n'
        f"      {hint}\n"
    )
    with pytest.raises(BadInput) as refused:
        load_cluster(path)
    (found,) = map(str, refused.value.problems)
    assert f"{path}:10: nodes[1].root_device.{problem}" in found


def test_both_sides_have_one_definition() -> None:
    """imagegen loads the file that lies in the image."""
    for row in RECORDED:
        text = hint_text(row[1])
        try:
            mine = hints.parse_hint(row[0], text)
        except ValueError as error:
            with pytest.raises(ValueError) as refused:
                device_hints.parse_hint(row[0], row[1])
            assert str(refused.value) == str(error)
        else:
            assert device_hints.parse_hint(row[0], row[1]) == mine
