"""tokens.py: tokens that only this server can make, for one boot of one node."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from imagegen.server.tokens import make_token, read_token

KEY = b"k" * 32


def test_a_token_is_for_one_boot_of_one_node() -> None:
    """And for nobody else; each is another."""
    token = make_token(KEY, "c-1", 7)
    assert re.fullmatch(r"[\w-]{32}", token) and token != make_token(KEY, "c-1", 7)
    assert read_token(KEY, "c-1", token) == 7
    assert read_token(KEY, "c-2", token) is None and read_token(b"other", "c-1", token) is None


@given(st.integers(0, 2**32 - 1), st.integers(0, 31), st.characters())
def test_a_changed_token_was_never_made(boot: int, place: int, character: str) -> None:
    """Not one character may be another."""
    token = make_token(KEY, "c-1", boot)
    changed = token[:place] + character + token[place + 1 :]
    assert read_token(KEY, "c-1", changed) == (boot if changed == token else None)


@given(st.text(max_size=50))
def test_no_text_breaks_it(text: str) -> None:
    assert read_token(KEY, "c-1", text) is None
