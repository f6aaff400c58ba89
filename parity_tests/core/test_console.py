"""Showing a line never ends a run: a reader that is gone, an encoding that lacks letters, names that are not UTF-8."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from PIL import Image

from triport.core.backend.learner import share
from triport.core.record import console
from triport.core.record.journal import Journal
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures import toy
from triport.parity_tests.fixtures.ranks import Threads, run_ranks
from triport.verbs import pictures

ROOT = Path(__file__).resolve().parents[2]
WORDS = [sys.executable, "-m", "triport.parity_tests.fixtures.numpy_learner"]


def test_what_an_encoding_lacks_is_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    console.show("größer \udcff", stream)
    assert raw.getvalue() == b"gr\\xf6\\xdfer \\udcff\n"


def test_a_stream_whose_reader_is_gone_goes_quiet():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        shown = console.Console(10, stream=stream)
        for _ in range(3):
            shown.say("a line")
        shown.progress(1, "a step")
        shown.close()
        stream.write("x" * 100_000)  # goes nowhere, and does not fail


def test_a_terminal_that_is_gone_ends_the_progress_and_not_the_run(monkeypatch):
    monkeypatch.setattr(console, "is_lively", lambda stream: True)
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    shown = console.Console(10, stream=stream)
    shown.progress(1, "a step")
    os.close(read)
    for step in range(2, 5):
        shown.progress(step, "a step")
        shown.say("a line")
    shown.close()
    stream.close()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_run_whose_output_is_closed_comes_to_its_end(tmp_path: Path, stream: str) -> None:
    process = subprocess.Popen(
        [*WORDS, *toy.command("mae", tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE if stream == "stdout" else subprocess.DEVNULL,
        stderr=subprocess.PIPE if stream == "stderr" else subprocess.DEVNULL,
    )
    pipe = process.stdout if stream == "stdout" else process.stderr
    assert pipe is not None
    pipe.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "encoder.safetensors").is_file()
    toy.assert_same_run(toy.whole("mae"), tmp_path / "run")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_run_in_a_folder_of_any_name(tmp_path: Path, encoding: str) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xc3\xb6\xff"))
    process = subprocess.run(
        [*WORDS, *toy.command("mae", folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
    )
    assert process.returncode == 0, process.stderr
    assert (folder / "encoder.safetensors").is_file() and (folder / "report.html").is_file()
    assert b"the encoder is in" in process.stdout and b"\\udcff" in process.stdout


def test_the_log_takes_any_text(tmp_path):
    log = Journal(tmp_path, writes=True, quiet=True)
    log.say("broken image \udcff.png")
    log.close()
    assert "broken image \\udcff.png" in (tmp_path / "train.log").read_text()


def test_the_export_comes_before_the_last_lines(tmp_path, capsys):
    assert toy.go("mae", tmp_path / "run") == 0
    last, before = capsys.readouterr().out.splitlines()[:-3:-1]
    assert last.startswith("the curves are in") and before.startswith("the encoder is in")


def test_any_path_is_shared_between_ranks():
    def one(processes: Threads) -> str:
        return share(processes, "gr\xf6\udcff" if processes.rank == 0 else "")

    assert run_ranks(2, one) == ["gr\xf6\udcff"] * 2


# ---------------------------------------------------------------- on a terminal of 80 columns
def terminal(command: list[str], columns: int = 80) -> str:
    """What a command shows on a terminal, with its control sequences."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    hidden = ("NO_COLOR", "CI", "COLUMNS", "LINES")
    variables = {**{k: v for k, v in os.environ.items() if k not in hidden}, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody is left
        while part := os.read(ours, 65536):
            seen += part
    os.close(ours)
    assert process.wait(600) == 0, seen.decode(errors="replace")[-2000:]
    return seen.decode()


def lines_of(text: str) -> list[str]:
    """The lines of a terminal, control sequences left out; what a carriage return writes over is a line as well."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text))


def test_a_run_on_a_terminal_has_a_bar_and_wraps_no_line(tmp_path: Path) -> None:
    text = terminal([*WORDS, *toy.command("moco", tmp_path / "run")])
    lines = lines_of(text)
    paths = [line for line in lines if str(tmp_path) in line]  # a path has no place to break it
    assert max(len(line) for line in lines if line not in paths) <= 80
    assert any("━" in line and "%" in line for line in lines) and "\x1b[" in text
    assert any(line.startswith("epoch 3/3") and "knn" in line for line in lines)


def test_a_run_that_is_piped_shows_plain_whole_lines(tmp_path: Path) -> None:
    done = subprocess.run([*WORDS, *toy.command("moco", tmp_path / "run")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\r" not in done.stdout and "━" not in done.stdout
    assert any(len(line) > 80 for line in done.stdout.splitlines())


def test_long_lines_are_broken_between_facts_and_words():
    line = f"epoch 1/4  knn 63.40 %  probe 50.00 %  {'a fact of many words ' * 6}  /a/path/{'x' * 100}"
    lines = console.folded(line, 80).split("\n")
    assert lines[0] == "epoch 1/4  knn 63.40 %  probe 50.00 %" and lines[-1].strip() == f"/a/path/{'x' * 100}"
    assert all(len(line) <= 80 for line in lines[:-1]) and " ".join(line.split()) == " ".join(" ".join(lines).split())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_reading_pictures_shows_a_bar_beside_an_answer_that_stays_its_own(tmp_path: Path, monkeypatch) -> None:
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    files = [tmp_path / f"{n}.png" for n in range(6)]
    for file in files[:-1]:
        Image.new("L", (28, 28)).save(file)
    files[-1].write_bytes(b"none")
    answer, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", answer)
    monkeypatch.setattr(sys, "stderr", terminal)
    recipe = recipes.load("tiny/moco_vit_tiny")
    for numbers, images in pictures.batches(recipe, list(map(str, files)), files.__getitem__, batch=2):
        assert len(numbers) == len(images)
        print(*numbers)
    assert answer.getvalue() == "0 1\n2 3\n4\n"  # not what the bar's terminal shows
    shown = terminal.getvalue()
    assert "6 of 6 pictures" in shown and "left out:" in shown and "━" in shown
