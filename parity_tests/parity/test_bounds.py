"""The table of bounds: every bound that the code names has its row, and every row is used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from triport.parity_tests.tool import bounds

HERE = Path(__file__).resolve().parents[1]
CODE = [path.read_text(encoding="utf-8") for path in sorted(HERE.rglob("*.py")) if path.name != Path(__file__).name]
NAMED = re.compile(r"""(?:\bhold\(|LIMITS\[|\bBound\()\s*"([\w-]+)\"""")


def test_every_bound_that_is_named_has_its_row():
    named = {name for text in CODE for name in NAMED.findall(text)}
    assert len(named) > 10 and named <= set(bounds.LIMITS), named - set(bounds.LIMITS)


@pytest.mark.parametrize("row", bounds.LIMITS)
def test_every_row_is_used(row):
    """As it is, or made of a precision and a quantity, as those of bfloat16 are."""
    parts = (f'"{row}"', f"'{row}'")
    made = row.startswith("bfloat16-") and any('f"bfloat16-{' in text for text in CODE)
    assert made or any(part in text for text in CODE for part in parts)


def test_the_table_says_what_was_measured_under_every_bound():
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([0-9.e+-]+) \| ([0-9.e+-]+) \|$", bounds.README.read_text("utf-8"), re.M)
    assert [name for name, _, _ in rows] == list(bounds.LIMITS) and len(rows) < 30
    for name, limit, measured in rows:
        assert float(measured) < float(limit), name


def test_an_error_over_its_bound_fails_and_the_largest_is_remembered(monkeypatch):
    monkeypatch.setattr(bounds, "MEASURED", {})
    limit = bounds.LIMITS["forward"]
    for error in (limit / 2, limit / 4):
        bounds.hold("forward", error, f"an error of {error}")
    assert bounds.MEASURED["forward"][0] == limit / 2
    for error in (2 * limit, float("nan")):
        with pytest.raises(AssertionError, match="is over the bound 'forward'"):
            bounds.hold("forward", error, "too much")
