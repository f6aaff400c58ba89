"""The run folder: what is written, who may write, what a resume cuts off, and TensorBoard reading our events."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from triport.core.errors import UserError
from triport.core.record import console, environment, journal, tensorboard
from triport.core.record.journal import Journal

ROOT = Path(__file__).resolve().parents[2]


def written(folder: Path, steps: range, start: tuple[int, int] = (0, 0), per_epoch: int = 4) -> None:
    """Write a journal as a run does: a line for each step, and one for each epoch that ends."""
    log = Journal(folder, writes=True, quiet=True)
    log.begin(*start)
    for step in steps:
        log.scalars(step, step / per_epoch, {"loss": 1 / (step + 3), "lr": 0.1})
        if step % per_epoch == 0:
            log.scalars(step, step // per_epoch, {"knn": step / 100}, "epoch")
    log.close()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read all events as TensorBoard does."""
    reader = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=True)
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


# ---------------------------------------------------------------- numbers
def test_metrics_hold_every_number_exactly(tmp_path):
    written(tmp_path, range(1, 10))
    found = lines(tmp_path)
    assert [entry["step"] for entry in found if entry["kind"] == "step"] == list(range(1, 10))
    assert found[0] == {"kind": "step", "step": 1, "epoch": 0.25, "loss": 1 / 4, "lr": 0.1}
    assert [entry for entry in found if entry["kind"] == "epoch"] == [
        {"kind": "epoch", "step": 4, "epoch": 1, "knn": 0.04},
        {"kind": "epoch", "step": 8, "epoch": 2, "knn": 0.08},
    ]


def test_what_is_not_finite_is_null_in_the_metrics_and_itself_in_the_events(tmp_path):
    log = Journal(tmp_path, writes=True, quiet=True)
    log.begin(0, 0)
    log.scalars(1, 0.5, {"nan": math.nan, "inf": math.inf, "huge": 1e300})
    log.close()
    assert lines(tmp_path) == [{"kind": "step", "step": 1, "epoch": 0.5, "nan": None, "inf": None, "huge": 1e300}]
    found = curves(tmp_path)
    assert math.isnan(found["step/nan"][0][1]) and found["step/inf"] == found["step/huge"] == [(1, math.inf)]


def test_tensorboard_reads_what_we_write(tmp_path):
    written(tmp_path, range(1, 10))
    found = curves(tmp_path)
    assert found.keys() == {"step/loss", "step/lr", "epoch/knn"}
    assert found["step/loss"] == [(step, float(np.float32(1 / (step + 3)))) for step in range(1, 10)]
    assert found["epoch/knn"] == [(4, float(np.float32(0.04))), (8, float(np.float32(0.08)))]


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**40])
def test_steps_of_any_size(tmp_path, value):
    events = tensorboard.Events(tmp_path)
    events.scalars(value, {"a tag with ümlauts": 2.5})
    events.close()
    assert curves(tmp_path) == {"a tag with ümlauts": [(value, 2.5)]}


def test_two_files_of_one_second_are_two_files(tmp_path):
    """A rollback opens a new file, perhaps within the second that names the old one."""
    for value in (1.0, 2.0, 3.0):
        events = tensorboard.Events(tmp_path)
        events.scalars(int(value), {"a": value})
        events.close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 3
    assert sorted(curves(tmp_path)["a"]) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_events_reach_the_system_at_a_flush(tmp_path):
    events = tensorboard.Events(tmp_path)
    events.scalars(1, {"a": 0.5})
    events.flush()  # and here the process may be killed
    assert curves(tmp_path) == {"a": [(1, 0.5)]}
    events.close()


def test_events_bring_no_framework_and_hide_none(tmp_path):
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from triport.core.record.tensorboard import Events
Events(Path({str(tmp_path)!r})).close()
assert not {{"torch", "paddle", "oneflow"}} & set(sys.modules), "a framework was imported"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_missing_tensorboardx_is_one_line(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboardX"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="pip install tensorboardX"):
        tensorboard.Events(tmp_path)


# ---------------------------------------------------------------- resume
@pytest.mark.parametrize(
    "step, closed, steps, epochs", [(6, 1, 6, 1), (8, 2, 8, 2), (8, 1, 8, 1), (0, 0, 0, 0), (9, 2, 9, 2)]
)
def test_a_resume_cuts_what_was_undone_and_each_step_is_there_once(tmp_path, step, closed, steps, epochs):
    written(tmp_path, range(1, 10))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 10, "epo')  # killed in the middle of a line
    log = Journal(tmp_path, writes=True, quiet=True)
    log.begin(step, closed)
    log.close()
    found = lines(tmp_path)
    assert [entry["step"] for entry in found if entry["kind"] == "step"] == list(range(1, steps + 1))
    assert [entry["epoch"] for entry in found if entry["kind"] == "epoch"] == list(range(1, epochs + 1))
    whole = tmp_path / "whole"
    whole.mkdir()
    written(tmp_path, range(step + 1, 13), (step, closed))
    written(whole, range(1, 13))
    pending = closed < step // 4  # its epoch is closed by the resumed run's loop, which is not here
    wanted = [entry for entry in lines(whole) if not (pending and entry["kind"] == "epoch" and entry["epoch"] == 2)]
    assert lines(tmp_path) == wanted


def test_tensorboard_forgets_the_undone_steps(tmp_path):
    written(tmp_path, range(1, 10))
    os.utime(next(tmp_path.glob("events*")), (1, 1))
    older = next(tmp_path.glob("events*"))
    older.rename(tmp_path / "events.out.tfevents.0000000001.host.1")  # a second file of the same second sorts anyhow
    written(tmp_path, range(7, 12), (6, 1))
    found = curves(tmp_path)
    assert [step for step, _ in found["step/loss"]] == list(range(1, 12))


# ---------------------------------------------------------------- folders
def claimed(folder: Path, overwrite: bool) -> Path | None:
    """Claim a folder, give its lock back, and return where an old run went."""
    log, aside = journal.claim(folder, overwrite)
    log.close()
    return aside


def test_a_folder_with_a_run_is_refused_or_moved_aside_whole(tmp_path):
    folder = tmp_path / "run"
    assert claimed(folder, False) is None
    (folder / "recipe.toml").write_text("one")
    with pytest.raises(UserError, match=r"already holds a run.*--resume.*--overwrite.*--out"):
        journal.claim(folder, False)
    assert claimed(folder, True) == tmp_path / "run.old-1"
    (folder / "recipe.toml").write_text("two")
    assert claimed(folder, True) == tmp_path / "run.old-2"
    assert (tmp_path / "run.old-1" / "recipe.toml").read_text() == "one"
    assert (tmp_path / "run.old-2" / "recipe.toml").read_text() == "two"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "train.log"]


def test_a_folder_without_a_run_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert claimed(tmp_path, False) is None
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="cannot make the run folder"):
        journal.claim(tmp_path / "run", False)


def test_run_folders_are_numbered(tmp_path):
    assert journal.next_folder("tiny/demo", tmp_path) == tmp_path / "tiny-demo-1"
    assert journal.newest_folder("tiny/demo", tmp_path) is None
    for name in ("tiny-demo-1", "tiny-demo-2", "tiny-demo-10", "tiny-demo-2.old-1", "tiny-demo-long-99"):
        (tmp_path / name).mkdir()
    assert journal.newest_folder("tiny/demo", tmp_path) == tmp_path / "tiny-demo-10"
    assert journal.next_folder("tiny/demo", tmp_path) == tmp_path / "tiny-demo-3"


def test_two_processes_cannot_write_into_one_folder(tmp_path):
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from triport.core.errors import UserError
from triport.core.record.journal import Journal, claim
try:
    folder = Path({str(tmp_path)!r})
    claim(folder, True) if "claim" in sys.argv else Journal(folder, writes=True).close()
    print("free")
except UserError as error:
    print(error)
"""

    def other(*words: str) -> str:
        return subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True).stdout

    (tmp_path / "recipe.toml").write_text("")
    log = Journal(tmp_path, writes=True, quiet=True)
    assert "another process is writing" in other()
    assert "another process is writing" in other("claim")
    log.close()
    assert other() == "free\n"
    assert other("claim") == "free\n" and not (tmp_path / "recipe.toml").exists()


def test_other_ranks_write_and_say_nothing(tmp_path, capsys):
    log = Journal(tmp_path / "nowhere", writes=False)
    log.begin(0, 0)
    log.say("hello")
    log.scalars(1, 1.0, {"loss": 1.0})
    log.progress(1, "x")
    log.sync()
    log.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_words_are_shown_and_preserved(tmp_path, capsys):
    log = Journal(tmp_path, writes=True)
    log.say("shown [and] kept")
    log.note("kept")
    log.close()
    assert capsys.readouterr().out == "shown [and] kept\n"
    text = (tmp_path / "train.log").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:]{8}  shown \[and\] kept\n\d{4}-\d\d-\d\d [\d:]{8}  kept\n", text)


def test_a_full_disk_is_one_line(tmp_path):
    log = Journal(tmp_path, writes=True, quiet=True)
    log.begin(0, 0)
    assert log._metrics is not None
    log._metrics.close()
    with open("/dev/full", "w") as full:
        log._metrics = full
        with pytest.raises(UserError, match=r"No space left on device. Free space, then begin again with --overwrite"):
            log.scalars(1, 1.0, {"loss": 1.0})
        log.close()


def test_the_environment_remembers_every_start(tmp_path):
    path = tmp_path / "environment.json"
    environment.record(path, environment.describe(backend="numpy"))
    environment.record(path, environment.describe(backend="torch"))
    starts = json.loads(path.read_text())["starts"]
    assert [start["backend"] for start in starts] == ["numpy", "torch"]
    assert starts[0]["packages"]["numpy"] == np.__version__ and starts[0]["command"] == sys.argv
    path.write_text("{")
    environment.record(path, {"backend": "paddle"})
    assert json.loads(path.read_text()) == {"starts": [{"backend": "paddle"}]}


# ---------------------------------------------------------------- console
class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_at_intervals(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    shown = console.Console(100, stream=out)
    for step in range(1, 101):
        clock[0] += 1
        shown.progress(step, f"step {step}")
    shown.close()
    assert out.getvalue().splitlines() == [f"step {step}" for step in range(11, 101, 10)]


@pytest.mark.parametrize("variable", ["NO_COLOR", "CI"])
def test_no_lively_line_where_it_would_be_noise(monkeypatch, variable):
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    assert console.is_lively(Terminal()) and not console.is_lively(io.StringIO())
    monkeypatch.setenv(variable, "1")
    assert not console.is_lively(Terminal())


def test_a_terminal_gets_a_line_that_renews_itself(monkeypatch):
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    shown = console.Console(10, stream=out)
    shown.progress(1, "loss 1.5")
    shown.say("a line [in] between")
    shown.progress(2, "loss 1.25")
    shown.close()
    text = out.getvalue()
    assert "loss 1.25" in text and "a line [in] between" in text and "\x1b[" in text


LONG = "epoch 12/100  loss 2.299  top1 10.00 %  top5 70.00 %  mean_per_class 10.00 %  memory gb 0.1062  (scored in 0s)"


def test_no_line_is_wider_than_the_terminal(monkeypatch):
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    shown = console.Console(100, stream=out)
    shown.progress(25, "epoch 25/100  step 123456/4567890  loss 4.1234  lr 0.00123  12345 images/s  13h 10m left")
    shown.say(LONG)
    shown.close()
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()))
    assert max(map(len, lines)) <= 80 and any(
        line.startswith("━━━") and len(line) == 80 and "25%" in line for line in lines
    )
    assert any(line.endswith("…") and "loss 4.1234" in line for line in lines)
    assert "    memory gb 0.1062  (scored in 0s)" in lines


def test_lines_are_folded_on_a_plain_terminal_and_whole_in_a_pipe(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    for out, count in ((Terminal(), 2), (io.StringIO(), 1)):
        console.Console(10, stream=out).say(LONG)
        lines = out.getvalue().splitlines()
        assert len(lines) == count and " ".join(out.getvalue().split()) == " ".join(LONG.split())
    assert console.folded("a" * 100 + "  b", 80) == "a" * 100 + "\n    b"
    assert console.folded("  indented  text", 80) == "  indented  text"


def test_quiet_is_quiet():
    out = Terminal()
    shown = console.Console(10, quiet=True, stream=out)
    shown.say("x")
    shown.progress(1, "y")
    shown.close()
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0s"), (59.9, "59s"), (60, "1m 00s"), (3599, "59m 59s"), (3600, "1h 00m"), (90_000, "1d 01h")],
)
def test_durations(seconds, text):
    assert console.duration(seconds) == text
