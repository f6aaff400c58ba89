"""Paths as people have them: long, empty, in each other, links and pipes; and output that nobody can show or reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.parity_tests.tool import small
from triport.weights.commands.command import main
from triport.weights.commands.convert import convert
from triport.weights.commands.diff import diff
from triport.weights.files import files

ROOT = Path(__file__).resolve().parents[2]
ENDINGS = [".pth", ".pd", ".npz", ".safetensors", ".oneflow.pkl", ""]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    files.write(tmp_path / "a.pth", {"model": small.arrays(small.MODELS["mae"])}, "torch")
    return tmp_path / "a.pth"


def line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that fails says, in its one line."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("triport: error: ") and printed.err.count("\n") == 1 and not printed.out
    return printed.err


def heads(ending: str) -> dict[str, Any]:
    return {} if ending and "oneflow" not in ending else {"heads": 8, "decoder_heads": 4}


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_as_long_as_the_system_takes(ending: str, source: Path) -> None:
    limit = 255 - len(ending) - (0 if ending == ".safetensors" else len(".json"))
    for letter in ("n", "名"):
        target = source.with_name(letter * (limit // len(letter.encode())) + ending)
        convert(source, target, **heads(ending))
        assert diff(source, target, **heads(ending)).same()


def test_names_that_are_too_long_are_refused_before_anything_is_written(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ending in ENDINGS:
        target = source.with_name("n" * (255 - len(ending)) + ending + "n" * (ending == ".safetensors"))
        options = ["--heads", "8", "--decoder-heads", "4", "--to", "libai" if not ending else "mae"]
        assert "name too long" in line(["convert", str(source), str(target), *options], capsys)
    for words in (["inspect"], ["diff", str(source)], ["convert", str(source)]):
        assert "name too long" in line([*words, str(source.with_name("n" * 300 + ".pth"))], capsys)
    assert list(source.parent.iterdir()) == [source]


def test_empty_names_are_not_the_folder_one_is_in(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["inspect", ""], ["diff", str(source), ""], ["convert", "", "b.pth"], ["convert", str(source), ""]):
        assert "is empty" in line(words, capsys)


def test_a_name_of_two_lines_is_reported_in_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no file or folder" in line(["inspect", str(tmp_path / "a\nb.pth")], capsys)


def test_pipes_and_devices_are_never_replaced(source: Path) -> None:
    os.mkfifo(source.with_name("b.pth"))
    with pytest.raises(UserError, match="a device or a pipe"):
        convert(source, source.with_name("b.pth"), force=True)
    assert source.with_name("b.pth").is_fifo()


def test_a_link_to_a_folder_is_replaced_and_the_folder_stays(source: Path) -> None:
    convert(source, source.with_name("real"), **heads(""))
    source.with_name("link").symlink_to("real")
    before = set(source.parent.iterdir())
    convert(source, source.with_name("link"), force=True, **heads(""))
    assert set(source.parent.iterdir()) == before | {source.with_name("link.json")}
    assert not source.with_name("link").is_symlink() and diff(source, source.with_name("real")).same()


def test_neither_takes_the_others_place(source: Path) -> None:
    run = source.with_name("run")
    convert(source, run, **heads(""))
    (run / "model_0000000").rename(run / "model_final")
    (run / "last_checkpoint").write_text("model_final")
    for inside in (run / "model_final", run / "model_final" / "model", source.with_name("run") / "." / "model_final"):
        with pytest.raises(UserError, match="would be replaced"):
            convert(inside, run, force=True, **heads(""))
    for target in (run / "b.pth", run / "model_final" / "b.pth"):
        with pytest.raises(UserError, match="lies in the source"):
            convert(run, target, **heads(""))
    source.with_name("link.pth").symlink_to(source)
    with pytest.raises(UserError, match="the source itself"):
        convert(source, source.with_name("link.pth"), force=True)
    assert diff(source, run, **heads("")).same() and not list(run.rglob("*.p*"))


def test_no_heads_are_not_taken_for_unknown_ones(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in ("0", "-8"):
        printed = line(["convert", str(source), str(source.with_name("b.pth")), "--heads", number], capsys)
        assert f"{number} heads do not divide" in printed


def test_json_has_no_numbers_that_json_has_not(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = dict(small.arrays(small.MODELS["mae"]))
    arrays["norm.bias"] = np.full_like(arrays["norm.bias"], np.nan)
    files.write(source.with_name("b.pth"), {"model": arrays}, "torch")
    refuse: dict[str, Any] = {"parse_constant": lambda word: pytest.fail(f"{word} is not JSON")}
    assert main(["diff", str(source), str(source.with_name("b.pth")), "--json"]) == 1
    (change,) = json.loads(capsys.readouterr().out, **refuse)["changes"]
    assert change["greatest"] == "inf"
    assert main(["inspect", str(source.with_name("b.pth")), "--tensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out, **refuse)["nonfinite"] == arrays["norm.bias"].size


@pytest.mark.parametrize("coding", ["utf-8:strict", "ascii:strict"])
def test_names_that_the_terminal_cannot_show_are_shown_as_numbers(coding: str, source: Path) -> None:
    odd = source.with_name(os.fsdecode(b"\xff") + "名.pth")
    source.rename(odd)
    for words in (["inspect", odd], ["convert", odd, odd.with_suffix(".pd")], ["diff", odd, odd]):
        run = subprocess.run(
            [sys.executable, "-m", "weights", *(str(word) for word in words)],
            env={**os.environ, "PYTHONIOENCODING": coding, "PYTHONPATH": str(ROOT)},
            capture_output=True,
        )
        assert run.returncode == 0 and b"\\udcff" in run.stdout, run.stderr.decode(errors="replace")


def test_output_that_nobody_reads_on_is_no_error(source: Path) -> None:
    for more in ([], ["--json"]):
        command = [sys.executable, "-m", "weights", "inspect", str(source), "--tensors", *more]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            assert not process.stderr.read()
        assert process.returncode == 141
