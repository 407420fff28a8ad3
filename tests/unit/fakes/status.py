"""The shape of the status document, which all who write or read one are held to."""

from __future__ import annotations

from imagegen.model.json_schemas import json_schema

STATUS_SCHEMA = json_schema("status")
