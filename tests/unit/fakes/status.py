"""The shape of the status document, which all who write or read one are held to."""

from __future__ import annotations

import json

from imagegen.base.resources import PACKAGE

STATUS_SCHEMA = json.loads((PACKAGE / "data/status.schema.json").read_bytes())
