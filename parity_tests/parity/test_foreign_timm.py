"""timm's resnet18 and vit_tiny against paddle.vision's resnet18 and a ViT of Paddle's own layers: faults are found.

timm is in an environment of its own: TRIPORT_TIMM_PYTHON names its interpreter, which has torch, timm, numpy and
safetensors. Where timm is in PyTorch's environment, that is taken.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from triport import environments
from triport.parity_tests.conftest import here
from triport.parity_tests.fixtures import port_records
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.foreign import comparing, files
from triport.parity_tests.tool.foreign.record import THREADS
from triport.parity_tests.tool.foreign.weights import read_names
from triport.parity_tests.tool.foreign.words import explain

FAULTS = {
    "timm_resnet18_momentum": (
        (0, "batch-norm statistics", "layer2.0.bn1.running_mean"),
        "momentum is 0.1 in A and 0.01",
    ),
    "timm_resnet18_eps": ((0, "forward", "layer3.1.bn1"), "eps is 1e-05 in A and 0.001 in B"),
    "timm_resnet18_padding": ((0, "forward", "layer2.0.conv1"), "padding is 1 in A and SAME in B"),
    "timm_vit_eps": ((0, "forward", "blocks.0.norm1"), "eps is 1e-06 in A and 1e-05 in B"),
}


def python_of_timm(config: pytest.Config) -> str:
    """The interpreter that has timm; the test is skipped where there is none, with the remedy."""
    given = os.environ.get("TRIPORT_TIMM_PYTHON")
    if given:
        return given
    python = str(environments.require(here("torch", config)))
    if subprocess.run([python, "-c", "import timm"], capture_output=True, check=False).returncode:
        pytest.skip(
            "timm is not here: make an environment with torch, timm and safetensors, and set TRIPORT_TIMM_PYTHON"
        )
    return python


def recorded(folder: Path, python: str, framework: str, *names: str) -> None:
    """Record models in an interpreter, in one process."""
    command = [python, "-m", port_records.__name__, str(folder), framework, *names]
    variables = environments.with_project({**os.environ, **dict.fromkeys(THREADS, "1")})
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """Records of timm's models and of Paddle's with the same weights."""
    paddle = str(environments.require(here("paddle", request.config)))
    found = tmp_path_factory.mktemp("timm")
    draw = np.random.Generator(np.random.Philox(1))
    np.savez(found / port_records.INPUTS, images=draw.standard_normal((4, 3, 64, 64)), labels=draw.integers(0, 10, 4))
    recorded(found, python_of_timm(request.config), "torch", "timm_resnet18", "timm_vit")
    models = ["timm_resnet18", "timm_vit", *FAULTS]
    recorded(found, paddle, "paddle", *(f"{n}<={'timm_vit' if 'vit' in n else 'timm_resnet18'}" for n in models))
    yield found
    shutil.rmtree(found)  # some gigabytes


def compared(folder: Path, name: str) -> comparing.Comparison:
    """timm's record against one of Paddle's."""
    model = "timm_vit" if "vit" in name else "timm_resnet18"
    names = read_names(folder / "names.json" if model == "timm_vit" else None)
    a, b = files.read(folder / f"torch-{model}.safetensors"), files.read(folder / f"paddle-{name}.safetensors")
    return comparing.compare(a, b, names)


@pytest.mark.parametrize("model", ["timm_resnet18", "timm_vit"])
def test_paddles_model_computes_what_timms_does(folder, model):
    result = compared(folder, model)
    assert result.first is None, result.lines[result.first]
    assert len(result.lines) > 300
    for line in result.lines:
        if line.limit in ("float64", "float64-deep"):
            hold(line.limit, line.error, f"{model}, {line.stage} {line.name}")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_paddles_model_is_found_and_named(folder, fault):
    result, (where, words) = compared(folder, fault), FAULTS[fault]
    assert result.first is not None
    line = result.lines[result.first]
    assert (line.step, line.stage, line.name) == where
    assert words in " ".join(explain(result))
