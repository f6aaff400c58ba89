"""The public package: commands and their errors, what a run is started with, the public API."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import triport
from triport import command, environments, launch, place
from triport.core import slips
from triport.core.errors import UserError
from triport.core.spec.foreign import hand_over

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `triport …` as a shell would, with these variables changed."""
    return subprocess.run(
        [sys.executable, "-m", "triport", *words],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


# ---------------------------------------------------------------- commands
def test_help_lists_every_command_and_loads_next_to_nothing() -> None:
    program = (
        "import sys; from triport.command import main; main(['--help'])\n"
        "print(*sorted({'numpy', 'PIL', 'rich', 'argparse', *'torch paddle oneflow'.split()} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    *text, loaded = answer.stdout.splitlines()
    assert loaded == ""
    assert set(command.COMMANDS) <= {line.split()[0] for line in text if line.startswith("  ")}


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",), ("help",)])
def test_help_by_every_name(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 0
    assert "triport setup torch" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == triport.__version__


def test_every_command_has_code() -> None:
    for name, entry in command.COMMANDS.items():
        module, _, function = entry.code.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name
        assert entry.group in command.GROUPS


def test_an_unknown_command_is_one_line_with_the_nearest() -> None:
    answer = run("pretrian", "tiny/test_moco_vit")
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr == "triport: error: no command 'pretrian'. Did you mean 'pretrain'?\n"


def test_traceback_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["nothing-like-it", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert command.main(["nothing-like-it"]) == 2
    assert capsys.readouterr().err == "triport: error: no command 'nothing-like-it'. `triport --help` lists them.\n"


def test_a_closed_pipe_is_not_a_traceback() -> None:
    line = f"{shlex.quote(sys.executable)} -m triport recipes | true"
    answer = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("words", [("setup", "torhc"), ("pretrain", "x", "--backend", "torhc")])
def test_an_unknown_framework(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 2
    assert "no framework 'torhc' (torch, paddle, oneflow). Did you mean 'torch'?" in capsys.readouterr().err


def test_a_missing_framework_is_one_line_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIPORT_VENVS", str(tmp_path))
    monkeypatch.setattr(environments, "is_here", lambda name: False)
    assert command.main(["pretrain", "tiny/test_moco_vit", "--backend", "paddle"]) == 2
    assert capsys.readouterr().err == ("triport: error: Paddle is not set up here. Remedy: triport setup paddle\n")
    assert command.main(["recipes"]) == 2
    assert "Remedy: triport setup torch" in capsys.readouterr().err


# ---------------------------------------------------------------- what a run is started with
@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """All environments are there, in name; no framework is in this interpreter."""
    monkeypatch.setenv("TRIPORT_VENVS", str(tmp_path))
    monkeypatch.setattr(environments, "is_here", lambda name: False)
    monkeypatch.setattr(environments, "state", lambda name: "ready")
    for name in [*place.RANK_VARIABLES, "OMP_NUM_THREADS", "PYTHONWARNINGS", "OPENBLAS_CORETYPE"]:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def started(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What `triport … --show-command` prints, one command a line."""
    assert command.main([*words, "--show-command"]) == 0
    return capsys.readouterr().out.splitlines()


def test_one_process_is_the_backend_itself(everything: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tiny/test_moco_vit", "lr=1e-3", "--out", "a b", "--processing-unknown", "3"]
    (line,) = started(capsys, "pretrain", *words, "--backend", "paddle")
    python = str(everything / "paddle" / "bin" / "python")
    assert shlex.split(line)[-len(words) - 3 :] == [python, "-m", "triport.backends.paddle.pretrain", *words]


@pytest.mark.parametrize("task", ["pretrain", "linear", "finetune", "evaluate"])
def test_torchrun(task: str, everything: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = started(capsys, task, "tiny/test_moco_vit", "--backend", "torch", "--processes", "2")
    assert "-m torch.distributed.run --nnodes 1 --rdzv_backend c10d --rdzv_conf store_type=file " in line
    assert f"--nproc_per_node 2 -m triport.rank triport.backends.torch.{task} tiny/test_moco_vit" in line
    for variable in ("TRIPORT_STORE=FOLDER/ranks", "GLOO_SOCKET_IFNAME=lo", "NCCL_SOCKET_IFNAME=lo"):
        assert f" {variable} " in line


def test_several_nodes(everything: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = ["--processes", "2", "--nodes", "2", "--node-rank", "1", "--master", "node0:29400"]
    (line,) = started(capsys, "pretrain", "tiny/test_moco_vit", "--backend", "torch", *nodes)
    assert "--nnodes 2 --node_rank 1 --master_addr node0 --master_port 29400 --nproc_per_node 2" in line
    assert "TRIPORT_STORE" not in line and "SOCKET_IFNAME" not in line
    (line,) = started(capsys, "pretrain", "tiny/test_moco_vit", "--backend", "paddle", *nodes)
    assert "paddle.distributed.launch --nnodes 2 --rank 1 --master node0:29400 --nproc_per_node 2 --log_dir" in line
    first, second = started(capsys, "pretrain", "tiny/test_moco_vit", "--backend", "oneflow", *nodes)
    assert "MASTER_ADDR=node0 MASTER_PORT=29400 WORLD_SIZE=4 RANK=2 LOCAL_RANK=0" in first
    assert "RANK=3 LOCAL_RANK=1" in second


def test_paddle_takes_gpus_where_its_build_has_them(
    everything: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "tiny/test_moco_vit", "--backend", "paddle", "--processes", "2"]
    (line,) = started(capsys, *words)
    assert "--nproc_per_node 2" in line and "PADDLE_DISTRI_BACKEND=gloo" in line
    (everything / "paddle/lib/python3.11/site-packages/paddlepaddle_gpu-3.3.1.dist-info").mkdir(parents=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    (line,) = started(capsys, *words)
    assert "--devices 4,5" in line and "gloo" not in line
    assert "--nproc_per_node 2" in started(capsys, *words, "--device", "cpu")[0]
    assert "--nproc_per_node 2" in started(capsys, *words, "--device=cpu")[0]


def test_cores_are_shared_out_unless_the_shell_says(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    two = place.Place("torch", Path("python"), processes=2)
    assert place.variables(two)["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in place.variables(place.Place("torch", Path("python")))
    assert place.variables(place.Place("paddle", Path("python"), processes=16))["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert place.variables(two)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("framework", "switch"), [("paddle", "MKL_DEBUG_CPU_TYPE"), ("oneflow", "OPENBLAS_CORETYPE")])
def test_switches_for_amd_only(framework: str, switch: str, everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = place.Place(framework, Path("python"))
    monkeypatch.setattr(place, "amd_with_avx2", lambda: True)
    assert switch in place.variables(where)
    monkeypatch.setattr(place, "amd_with_avx2", lambda: False)
    assert switch not in place.variables(where)


def test_leftovers_of_another_launcher_are_removed(
    everything: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("PADDLE_TRAINER_ENDPOINTS", "10.0.0.1:1")
    (line,) = started(capsys, "pretrain", "tiny/test_moco_vit", "--backend", "torch", "--processes", "2")
    assert "-u RANK" in line and "-u PADDLE_TRAINER_ENDPOINTS" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "0"], "--processes must be 1 or more"),
        (["--nodes", "2"], "also need --node-rank N and --master HOST:PORT"),
        (["--nodes", "2", "--node-rank", "2", "--master", "a:1"], "--node-rank is from 0 to 1"),
        (["--nodes", "2", "--node-rank", "1", "--master", "a"], "--master is HOST:PORT, not 'a'"),
        (["--processes", "two"], "invalid int value: 'two'"),
        (
            ["--backend", "oneflow", "--nodes", "2", "--node-rank", "1", "--master", "127.0.0.1:9"],
            "OneFlow cannot make two nodes of one machine",
        ),
    ],
)
def test_wrong_places(words: list[str], message: str, everything: Path) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*$") as reported:
        launch.main(["pretrain", "tiny/test_moco_vit", *words])
    assert message in str(reported.value)


def test_the_first_framework_that_is_there_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "is_here", lambda name: False)
    monkeypatch.setattr(environments, "interpreter", lambda name: Path("p") if name != "torch" else None)
    assert launch.default_backend() == "paddle"
    monkeypatch.setattr(environments, "is_here", lambda name: name == "oneflow")
    assert launch.default_backend() == "oneflow"


def test_embed_needs_a_file() -> None:
    from triport.verbs import embed

    with pytest.raises(UserError, match=r"--out\. See triport embed --help"):
        embed.main(["runs/x", "photos"])


@pytest.mark.framework("torch")
def test_options_that_are_taken_before_a_run_are_known_to_who_asks_what_was_meant() -> None:
    taken = {word for word in launch.parser("pretrain")._option_string_actions if word.startswith("--")}
    assert taken <= set(slips.STARTING) and {*hand_over.FILES} <= set(slips.STARTING)
    assert set(launch.DEGREES) <= set(slips.STARTING)


def test_help_of_a_run_shows_launcher_and_run_options() -> None:
    answer = run("pretrain", "--backend", "torch", "--help")
    assert answer.returncode == 0
    assert "--processes" in answer.stdout and "--resume" in answer.stdout


@pytest.mark.framework("torch")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_exit_code_and_message_of_a_run_come_through(processes: str) -> None:
    answer = run("pretrain", "tiny/test_moco_vitt", "--backend", "torch", "--processes", processes)
    assert answer.returncode == 2
    assert answer.stderr.count("Did you mean 'tiny/test_moco_vit'?") == 1
    assert len(answer.stderr.splitlines()) == 1


# ---------------------------------------------------------------- doctor
def test_doctor_tells_programs() -> None:
    answer = run("doctor", "--json", TRIPORT_VENVS=os.devnull + "/none")
    report = json.loads(answer.stdout)
    assert set(report["frameworks"]) == set(environments.FRAMEWORKS)
    assert report["machine"]["cores"] >= 1
    usable = [name for name, found in report["frameworks"].items() if found["usable"]]
    assert answer.returncode == (0 if usable else 1)
    for name, found in report["frameworks"].items():
        if name not in usable:
            assert found["remedy"] == f"triport setup {name}"
        else:
            assert "cpu" in found["devices"] and found["version"]


def test_doctor_tells_people() -> None:
    text = run("doctor").stdout
    for name in environments.FRAMEWORKS:
        assert f"  {name}" in text
    assert "cores" in text and "memory" in text


# ---------------------------------------------------------------- the public API
def test_importing_the_package_costs_nothing() -> None:
    program = (
        "import sys, triport; dir(triport); print(*sorted({'numpy', 'PIL', 'argparse', 'core'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""


def test_everything_public_is_there() -> None:
    for name in triport.__all__:
        assert getattr(triport, name).__doc__, name
    assert set(triport.__all__) <= set(dir(triport))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        triport.nothing  # noqa: B018


def test_models_and_recipes_are_listed() -> None:
    assert "moco_v3_vit_small" in triport.list_models()
    assert "tiny/moco_vit_tiny" in triport.list_recipes()


def test_an_unknown_model_is_named_with_the_nearest() -> None:
    with pytest.raises(triport.UserError, match=r"no model 'moco_v3_vit_smal'\. Did you mean 'moco_v3_vit_small'\?"):
        triport.create_model("moco_v3_vit_smal")


def test_a_model_of_a_framework_that_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "is_here", lambda name: False)
    with pytest.raises(UserError, match=r"is not installed in this interpreter\. Remedy: "):
        triport.create_model("moco_v3_vit_tiny", backend="paddle")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder of a tiny model with drawn weights, as a run leaves it."""
    if not any(environments.is_here(name) for name in environments.FRAMEWORKS):
        pytest.skip("no framework in this interpreter: run the tests in .venvs/<framework>")
    from triport.core.model import init
    from triport.core.record import export
    from triport.core.spec import recipe

    one = recipe.load("tiny/test_moco_vit")
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    export.write_encoder(path, one, init.initial_values(one.model, 3))
    return path


def test_features_of_arrays_files_and_pictures_agree(encoder: Path, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)
    files = []
    for number, pixels in enumerate(grey):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels[..., 0]).save(files[-1])
    from triport.core.augment.pixels import normalise
    from triport.core.spec import recipe

    evaluate = recipe.load("tiny/test_moco_vit").evaluate
    features = triport.embed(encoder, normalise(grey, evaluate.mean, evaluate.std), device="cpu")
    assert features.shape == (3, 32) and features.dtype == np.float32 and np.ptp(features) > 0
    for images in (list(grey), files, [Image.open(file) for file in files]):
        assert np.array_equal(triport.embed(encoder, images, device="cpu"), features)
    assert np.allclose(triport.embed(encoder, files, device="cpu", batch=2), features, atol=1e-6)


def test_images_that_do_not_fit(encoder: Path) -> None:
    for images, message in (
        (np.zeros((2, 1, 28, 28), np.float32), r"the images are \(1, 28, 28\), the model takes \(1, 16, 16\)"),
        ([np.zeros((20, 20, 3), np.uint8)], "an image has 3 channels, the model takes 1"),
        ([], "no images"),
    ):
        with pytest.raises(UserError, match=message):
            triport.embed(encoder, images, device="cpu")


def test_an_encoder_predicts_nothing(encoder: Path) -> None:
    with pytest.raises(UserError, match="without a trained head"):
        triport.logits(encoder, [np.zeros((16, 16, 1), np.uint8)])
    with pytest.raises(UserError, match="has no trained head"):
        triport.predict(encoder, [np.zeros((16, 16, 1), np.uint8)])


def test_every_verb_has_help_of_its_own() -> None:
    from triport.verbs.start import NAMES

    for name in (*NAMES, "compare"):
        text = importlib.import_module(f"triport.verbs.{name}").parser().format_help()
        assert text.startswith(f"usage: triport {name} ") and "options:" in text


def test_every_verb_is_a_function_with_typed_arguments() -> None:
    from triport.command import COMMANDS

    verbs = [name for name, command in COMMANDS.items() if command.group == "use"] + ["compare"]
    assert len(verbs) == 8
    for name in verbs:
        function = getattr(triport, name)
        parameters = inspect.signature(function).parameters.values()
        assert inspect.isfunction(function) and name in triport.__all__ and function.__doc__, name
        assert parameters and all(given.annotation is not inspect.Parameter.empty for given in parameters), name
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty, name


def test_a_classifier_takes_an_encoder_and_draws_its_head(encoder: Path) -> None:
    from triport import api
    from triport.core.model.init import initial_values
    from triport.core.spec import recipe

    spec = recipe.load("tiny/test_moco_linear").model
    arrays = api.load_arrays(spec, encoder, seed=5)
    drawn, given = initial_values(spec, 5), triport.load_weights(encoder)
    assert set(arrays) == set(drawn)
    for name, array in arrays.items():
        assert np.array_equal(array, drawn[name] if name.startswith("head.") else given[name]), name
    assert triport.create_model("tiny/test_moco_linear", weights=encoder) is not None


def test_weights_of_another_model_are_refused(encoder: Path) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*$"):
        triport.create_model("moco_v3_vit_tiny_classifier", weights=encoder)


# ---------------------------------------------------------------- what stands at the top
def test_ci_closes_with_the_test_runners_last_line(tmp_path: Path) -> None:
    make = tmp_path / "make"
    make.write_text(
        "#!/bin/sh\necho '=== 3 failed, 4 passed in 2.00s ==='\necho 'make: *** [test] Error 1'\nexit ${CODE}\n"
    )
    make.chmod(0o755)
    for code, closing in (("2", "=== 3 failed, 4 passed in 2.00s ==="), ("0", "=== 3 failed, 4 passed in 2.00s ===")):
        variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CODE": code}
        answer = subprocess.run([ROOT / ".ci" / "run"], env=variables, capture_output=True, text=True, timeout=60)
        assert (answer.returncode, answer.stdout.splitlines()[-1]) == (int(code), closing)
    make.write_text("#!/bin/sh\necho 'no test was there'\n")
    answer = subprocess.run([ROOT / ".ci" / "run"], env=variables, capture_output=True, text=True, timeout=60)
    assert answer.returncode != 0


def test_the_run_parser_knows_only_where_it_runs() -> None:
    options = {action.dest for action in launch.parser("pretrain")._actions}
    assert options == {"backend", "processes", "nodes", "node_rank", "master", "show_command"}
    assert isinstance(launch.parser("pretrain"), argparse.ArgumentParser)
