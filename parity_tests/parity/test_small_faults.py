"""Faults of small size are found in float64 and named to the stage and array where they stand, on each framework."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triport.parity_tests.tool import __main__ as program
from triport.parity_tests.tool import fault_matrix, small_faults
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


# ---------------------------------------------------------------- the matrix
def test_the_matrix_of_the_documentation_has_every_fault():
    text = (Path(__file__).resolve().parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
    assert len(fault_matrix.PORTED) == 11 and len(FAULTS) >= 30
    for fault in fault_matrix.EVERY:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {fault.about} |")]
        assert row.endswith("| named | named | named |")


def test_the_command_plants_the_faults_that_are_asked_for(probe, capfd):
    """In this interpreter; without --here it asks each framework in its own."""
    backend = probe.__name__.split(".")[2]
    assert program.main(["faults", "--here", backend, "--only", "labels shifted by one"]) == 0
    printed = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith('{"fault"')]
    assert [answer["where"] for answer in printed] == [[0, "inputs", "labels"]] * 2
    assert program.main(["faults", "--only", "nothing like it"]) == 2
    assert "docs/parity.md lists them all" in capfd.readouterr().err


def test_what_is_not_named_is_wrong_in_the_matrix():
    chosen = [fault for fault in FAULTS if fault.about.startswith("eps 2e-6 in the")]
    where = (0, "forward", chosen[0].where[2])
    answers = {"torch": dict.fromkeys([fault.about for fault in chosen], where), "paddle": {}}
    rows = fault_matrix.matrix(chosen, answers).splitlines()
    assert rows[0] == "| fault | found at | PyTorch | Paddle |"
    assert rows[2].endswith(f"| forward: `{where[2]}` | named | **WRONG**: not found |")
    assert rows[3].endswith(f"| not found | **WRONG**: forward: `{where[2]}` | **WRONG**: not found |")
