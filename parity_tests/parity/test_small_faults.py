"""Faults of small size are found in float64 and named to the stage and array where they stand, on each framework."""

from __future__ import annotations

import pytest

from triport.parity_tests.tool import small_faults
from triport.parity_tests.tool.small_faults import FAULTS, SmallFault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.about.replace(" ", "-"))
def test_a_small_fault_is_found_where_it_stands(probe, fault):
    where = small_faults.found(probe.__name__.split(".")[2], fault)
    assert small_faults.named(fault, where), where


def test_without_a_fault_nothing_is_found(probe):
    backend = probe.__name__.split(".")[2]
    for recipe in sorted({fault.recipe for fault in FAULTS}):
        nothing = SmallFault("nothing", recipe, (0, "forward", ".*"))
        assert small_faults.found(backend, nothing) is None
        assert not small_faults.named(nothing, None)


@pytest.mark.parametrize("recipe", [small_faults.MAE, small_faults.PROBE])
def test_two_processes_agree_with_one_in_every_layer(probe, recipe):
    backend = probe.__name__.split(".")[2]
    nothing = SmallFault("nothing", recipe, (0, "forward", ".*"), between="")
    assert small_faults.found(backend, nothing) is None
