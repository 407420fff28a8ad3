"""The tier shares the vm tier's cluster file and its ways to run the command line."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "vm"))
