"""root_device's hints against Ironic's own matching: thousands of made-up cases, asked anew each time.

tests/data/hints.json has answers of ironic-python-agent's of OpenStack 2025.1; this asks the Ironic that is installed,
whose conductor has the same functions.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagegen.inputs.device_hints import parse_hint

PROGRAM = Path(__file__).parents[2] / ".venv-ironic/bin/python"
PEER = Path(__file__).with_name("peer_hints.py")
GIB = 1 << 30

values = st.text(st.sampled_from("aBz019 -_./:%+~"), min_size=1, max_size=6).filter(str.strip)
signs = st.sampled_from(["", "s== ", "s!=", "s< ", "s<= ", "s> ", "s>=", "<in> ", "S== ", "<IN>"])
texts = st.one_of(
    st.tuples(signs, values).map("".join),
    st.lists(values, min_size=1, max_size=3).map(lambda each: "".join(f"<or> {value} " for value in each)),
)
text_cases = st.tuples(st.sampled_from(["serial", "model", "vendor", "wwn", "hctl"]), texts, st.none() | values)
sizes = st.tuples(st.sampled_from(["", "== ", "!=", "< ", "<= ", ">", ">= "]), st.integers(1, 4))
bytes_near = st.tuples(st.integers(1, 4), st.sampled_from([-512, 0, 512])).map(lambda pair: pair[0] * GIB + pair[1])
size_cases = st.tuples(st.just("size"), sizes.map(lambda pair: f"{pair[0]}{pair[1]}"), bytes_near)


def find_device_hints() -> str:
    """The file with Ironic's own definition, as installed."""
    code = "import ironic.common.utils as module; print(module.__file__)"
    return subprocess.run([PROGRAM, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(text_cases | size_cases, min_size=100, max_size=200))
def test_every_answer_is_ironics(cases: list[tuple[str, str, Any]]) -> None:
    """For each generated hint and fact."""
    argv = [PROGRAM, PEER, find_device_hints()]
    asked = subprocess.run(argv, input=json.dumps(cases), check=True, capture_output=True, text=True)
    for (name, text, fact), answer in zip(cases, json.loads(asked.stdout), strict=True):
        hint: Any = parse_hint(name, text)
        assert hint.fits(() if fact is None else (str(fact),)) == answer, (name, text, fact)
