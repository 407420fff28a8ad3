"""Builds run on a machine that is none."""

from __future__ import annotations

from fakes.builder import machine

__all__ = ["machine"]
