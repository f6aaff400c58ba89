"""Models without a recipe, ported from PyTorch to Paddle and OneFlow: weights are carried, planted faults named."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from triport import environments
from triport.parity_tests.conftest import here
from triport.parity_tests.fixtures import port_records
from triport.parity_tests.tool import __main__ as program
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.foreign import comparing, files, formulas, shown
from triport.parity_tests.tool.foreign.names import Names
from triport.parity_tests.tool.foreign.record import THREADS
from triport.parity_tests.tool.foreign.weights import read_names
from triport.parity_tests.tool.foreign.words import explain

PORTS = ("paddle", "oneflow")
FAULTS = {
    "resnet_momentum": (0, "batch-norm statistics", "layer1.1.bn1.running_mean", "momentum is 0.1 in A and 0.9 in B"),
    "resnet_eps": (0, "forward", "layer1.1.bn1", "eps is 1e-05 in A and 0.001 in B"),
    "vit_eps": (0, "forward", "blocks.0.norm1", "eps is 1e-06 in A and 1e-05 in B"),
}


def recorded(folder: Path, framework: str, *names: str) -> None:
    """Record models of a port in the framework's own interpreter, in one process."""
    command = [str(environments.require(framework)), "-m", port_records.__name__, str(folder), framework, *names]
    variables = environments.with_project({**os.environ, **dict.fromkeys(THREADS, "1")})
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def original(tmp_path_factory, request):
    """A folder with the inputs and PyTorch's records."""
    here("torch", request.config)
    folder = tmp_path_factory.mktemp("ports")
    draw = np.random.Generator(np.random.Philox(1))
    np.savez(folder / port_records.INPUTS, images=draw.standard_normal((6, 3, 16, 16)), labels=draw.integers(0, 5, 6))
    recorded(folder, "torch", "resnet", "vit", "encoder")
    return folder


@pytest.fixture(scope="module", params=PORTS)
def port(request, original):
    """A framework whose port of both models, sound and faulty, is recorded with PyTorch's weights."""
    here(request.param, request.config)
    names = ["resnet", "resnet_padding", "vit", *FAULTS]
    names += ["encoder"] if request.param == "paddle" else []  # OneFlow has no attention layer of its own
    recorded(original, request.param, *(f"{name}<={name.partition('_')[0]}" for name in names))
    return request.param


def compared(folder: Path, port: str, name: str) -> comparing.Comparison:
    """PyTorch's record of a model against a port of it."""
    model = name.partition("_")[0]
    names = read_names(folder / "names.json" if (port, model) == ("paddle", "vit") else None)
    a, b = (files.read(folder / f"{part}.safetensors") for part in (f"torch-{model}", f"{port}-{name}"))
    return comparing.compare(a, b, names)


def found(result: comparing.Comparison) -> tuple[int, str, str]:
    """Step, stage and module of the first departure."""
    assert result.first is not None, "the fault was not found"
    line = result.lines[result.first]
    return line.step, line.stage, line.name


@pytest.mark.parametrize("model", ["resnet", "vit"])
def test_a_sound_port_agrees_in_all_it_computes(original, port, model):
    result = compared(original, port, model)
    assert result.first is None, result.lines[result.first]
    assert result.settings == ()
    stages = {line.stage for line in result.lines}
    assert stages >= {
        "inputs",
        "initial values",
        "forward",
        "outputs",
        "loss",
        "backward",
        "gradients",
        "optimiser update",
    }
    assert len(result.match.how) > 15 and not [n for n in result.match.alone[0] if not n.endswith("act")]
    for line in result.lines:
        if line.limit in ("float64", "float64-deep"):
            hold(line.limit, line.error, f"{model} on {port}, {line.stage} {line.name}")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_port_is_found_and_named(original, port, fault):
    result, (*where, words) = compared(original, port, fault), FAULTS[fault]
    assert found(result) == tuple(where)
    assert words in " ".join(explain(result))


def test_another_padding_is_found_at_its_convolution(original, port):
    result = compared(original, port, "resnet_padding")
    assert found(result)[:2] == (0, "forward") and found(result)[2].removesuffix("/input") == "conv1"
    assert "conv1: padding is 1 in A and" in " ".join(explain(result))


def test_relus_of_other_names_are_matched_by_order_and_shape(original, port):
    match = compared(original, port, "resnet").match
    assert match.how["layer1.0.act"] == "order and shape" and match.calls["layer1.0.act@2"] == ["layer1.0.relu@2"]
    assert match.how["fc"] == "name"


def test_queries_keys_and_values_are_joined_by_the_map(original, port):
    if port != "paddle":
        pytest.skip("OneFlow has no attention layer of its own")
    match = compared(original, port, "vit").match
    assert match.calls["blocks.1.attn.qkv"] == [f"blocks.1.self_attn.{p}_proj" for p in "qkv"]
    assert match.how["blocks.1.mlp.fc1"] == "map"


def test_attention_layers_are_matched_and_hold_their_formula(original, port):
    if port != "paddle":
        pytest.skip("OneFlow has no attention layer of its own")
    result = compared(original, port, "encoder")
    assert result.first is None, result.lines[result.first]
    names = {line.name for line in result.lines}
    assert {"block.self_attn", "block.self_attn.q_proj.weight", "block.self_attn.k_proj.bias"} <= names
    for record in (result.a, result.b):
        missed = formulas.missed(record, "block.self_attn")
        assert missed is not None
        hold("float64-deep", missed, f"attention on {record.about['backend']}")


def test_the_command_shows_neighbours_and_writes_table_and_page(original, port, capsys):
    records = [str(original / f"{name}.safetensors") for name in ("torch-resnet", f"{port}-resnet_eps")]
    assert program.main(["compare", *records, "--out", str(original / port)]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "first to depart: step 0, forward: layer1.1.bn1" in text and "> forward layer1.1.bn1" in text
    assert "layer1.1.conv1" in text and "layer1.1.conv2" in text
    table = (original / f"{port}.md").read_text()
    assert "| layer1.1.bn1 | layer1.1.bn1 | batch norm |" in table and "cosine" in table and "**departs**" in table
    page = (original / f"{port}.html").read_text()
    assert "layer1.1.bn1: eps is 1e-05 in A and 0.001 in B" in page and "<html" in page
    (original / "notes.md").write_text("mine")
    assert program.main(["compare", *records, "--out", str(original / "notes")]) == 2
    assert (original / "notes.md").read_text() == "mine" and "move it aside" in capsys.readouterr().err
    assert program.main(["compare", *records, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["first"]["name"] == "layer1.1.bn1" and not printed["agree"]
    sound = [records[0], str(original / f"{port}-resnet.safetensors")]
    assert program.main(["compare", *sound]) == 0


def test_weights_are_carried_over_by_the_command(original, port, tmp_path, capsys):
    """A port that was recorded with weights of its own is recorded again with those of A, transposed by class."""
    place = f"triport.parity_tests.fixtures.port_{port}"
    own = tmp_path / "own.safetensors"
    words = ["--model", f"{place}:resnet", "--loss", f"{place}:loss", "--inputs", str(original / port_records.INPUTS)]
    words += ["--optimizer", "sgd", "--lr", "0.05", "--steps", "2", "--backend", port, "-o", str(own)]
    assert program.main(["record", *words]) == 0
    first = str(original / "torch-resnet.safetensors")
    assert program.main(["compare", first, str(own)]) == 1
    assert "--copy-weights carries those of A over to B" in capsys.readouterr().out
    assert program.main(["compare", first, str(own), "--copy-weights"]) == 0
    assert own.is_file() and (tmp_path / "own-weights-of-torch-resnet.safetensors").is_file()


# ---------------------------------------------------------------- without a framework
def test_names_are_mapped_by_the_longest_rule():
    names = Names({"layer*": "stages.*", "layer1.*.bn": "special.*", "qkv": ["q", "k", "v"], "net": ""})
    assert names.of("layer2.0.conv") == ["stages.2.0.conv"]
    assert names.of("layer1.3.bn.weight") == ["special.3.weight"]
    assert names.of("qkv.bias") == ["q.bias", "k.bias", "v.bias"]
    assert names.of("net.fc") == ["fc"] and names.of("other@2") == ["other@2"]
    cut = names.onto({"qkv.weight": np.arange(6.0).reshape(6, 1)})
    assert cut["k.weight"].ravel().tolist() == [2.0, 3.0]


def test_cosine_and_errors_are_of_the_arrays():
    a, b = np.array([3.0, 4.0]), np.array([3.0, 4.4])
    assert comparing.cosine(a, 2 * a) == pytest.approx(1) and comparing.cosine(a, np.array([4.0, -3.0])) == 0
    largest, mean, length = comparing.errors(a, b)
    assert largest == pytest.approx(0.4 / 4.4) and mean == pytest.approx(0.2 / 4.4)
    assert length == pytest.approx(0.4 / np.linalg.norm(b))


def test_records_that_share_nothing_are_refused(original, tmp_path, capsys):
    a = files.read(original / "torch-resnet.safetensors")
    table = {name: {**known, "kind": ""} for name, known in a.modules.items()}
    renamed = {f"x/{name}": array for name, array in a.arrays.items()}
    files.write(tmp_path / "b.safetensors", {**a.about, "modules": table}, renamed)
    assert program.main(["compare", str(original / "torch-resnet.safetensors"), str(tmp_path / "b.safetensors")]) == 2
    assert "nothing in common" in capsys.readouterr().err
    assert "nothing could be compared" in shown.verdict(comparing.compare(a, files.read(tmp_path / "b.safetensors")))
