"""What ironic-python-agent's own matching says: JSON cases on stdin, their answers on stdout.

A case is [hint, expression, fact]; the answer is whether a device with that fact fits, or "refused". It needs a Python
that has oslo.utils and oslo.log, and ironic-python-agent's device_hints.py as its argument.
tests/unit/inputs/test_device_hints.py reads tests/data/hints.json: cases with their answers; test_hints.py
beside this file asks again.

    .venv-ironic/bin/python tests/ironic/peer_hints.py DEVICE_HINTS.py < cases.json > answers.json
"""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any


def ask(device_hints: Any, hint: str, expression: Any, fact: Any) -> bool | str:
    device = {"name": "/dev/sda", "size": 1 << 40, hint: fact}
    try:
        return bool(list(device_hints.find_devices_by_hints([device], {hint: expression})))
    except Exception:  # it raises whatever its parsers raise
        return "refused"


def main(path: str) -> None:
    spec = importlib.util.spec_from_file_location("device_hints", path)
    assert spec and spec.loader
    device_hints = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(device_hints)
    json.dump([ask(device_hints, *case) for case in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
