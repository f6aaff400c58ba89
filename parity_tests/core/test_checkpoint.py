"""Checkpoints: whole or not at all, checked when read, the old one intact whatever happens to the new one."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from triport.core import atomic
from triport.core.errors import UserError
from triport.core.record import checkpoint

ROOT = Path(__file__).resolve().parents[2]


def arrays(seed: int, size: int = 100) -> checkpoint.Arrays:
    rng = np.random.default_rng(seed)
    model = {"a": rng.standard_normal((size, 3), np.float32), "n": np.array(seed), "b.weight": np.zeros((0, 4))}
    return {"model": model, "optimizer": {"mu/a": rng.standard_normal((size, 3), np.float32)}}


def same(one: checkpoint.Arrays, other: checkpoint.Arrays) -> bool:
    return one.keys() == other.keys() and all(
        one[stem].keys() == other[stem].keys()
        and all(one[stem][k].tobytes() == other[stem][k].tobytes() for k in one[stem])
        and all(one[stem][k].shape == other[stem][k].shape for k in one[stem])
        and all(one[stem][k].dtype == other[stem][k].dtype for k in one[stem])
        for stem in one
    )


def test_comes_back_bit_for_bit(tmp_path):
    folder = tmp_path / "checkpoints" / "last"
    checkpoint.save(folder, arrays(1), {"step": 3, "best": None, "losses": 0.1 + 0.2})
    loaded, state = checkpoint.load(folder)
    assert same(loaded, arrays(1))
    assert state["step"] == 3 and state["best"] is None and state["losses"] == 0.1 + 0.2 and state["format"] == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["last"]


def test_files_are_as_readable_as_any(tmp_path):
    (tmp_path / "plain").write_text("")
    checkpoint.save(tmp_path / "last", arrays(1), {})
    assert {path.stat().st_mode for path in (tmp_path / "last").iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_views_and_odd_types_are_written_as_what_they_show(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    half = np.array([1.5, -2.25, 3e38], ml_dtypes.bfloat16)
    odd = {"turned": base.T, "every other": base[:, ::2], "big end": base.astype(">f4"), "half": half}
    checkpoint.save(tmp_path / "last", {"model": odd}, {})
    model = checkpoint.load(tmp_path / "last")[0]["model"]
    for name in ("turned", "every other", "big end"):
        np.testing.assert_array_equal(model[name], odd[name])
    assert model["half"].dtype == np.float32
    np.testing.assert_array_equal(model["half"].astype(ml_dtypes.bfloat16), half)


def test_replacing_leaves_no_trace_of_the_old(tmp_path):
    for seed in (1, 2):
        checkpoint.save(tmp_path / "last", arrays(seed), {"step": seed})
    loaded, state = checkpoint.load(tmp_path / "last")
    assert same(loaded, arrays(2)) and state["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def crash_points(tmp_path: Path, seeds: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Replace a checkpoint, stopping dead before the n-th call that changes the disk, n = 0, 1, 2 ...."""

    class Dead(BaseException):
        pass

    for point in range(1000):
        place = tmp_path / str(point)
        checkpoint.save(place / "last", arrays(seeds[0]), {"step": seeds[0]})
        left = [point]

        def counted(work, left=left):
            def run(*given, **named):
                if left[0] == 0:
                    raise Dead
                left[0] -= 1
                return work(*given, **named)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_file", counted(checkpoint.save_file))
            patch.setattr(checkpoint.shutil, "rmtree", counted(checkpoint.shutil.rmtree))
            patch.setattr(atomic.os, "fsync", counted(os.fsync))
            for name in ("replace", "mkdir", "write_text"):
                patch.setattr(Path, name, counted(getattr(Path, name)))
            try:
                checkpoint.save(place / "last", arrays(seeds[1]), {"step": seeds[1]})
                return
            except Dead:
                pass
        yield place


def test_a_crash_at_any_moment_leaves_one_whole_checkpoint(tmp_path, monkeypatch):
    steps = []
    for place in crash_points(tmp_path, (1, 2), monkeypatch):
        assert checkpoint.exists(place / "last")
        loaded, state = checkpoint.load(checkpoint.latest(place))
        assert state["step"] in (1, 2) and same(loaded, arrays(state["step"]))
        steps.append(state["step"])
        # and the next save, over whatever the crash left, is as good as any
        checkpoint.save(place / "last", arrays(3), {"step": 3})
        assert same(checkpoint.load(place / "last")[0], arrays(3))
        assert [path.name for path in place.iterdir()] == ["last"]
    assert len(steps) > 10 and steps == sorted(steps) and steps[-1] == 2


def test_everything_is_on_the_disk_before_the_first_rename_and_the_old_one_steps_aside_first(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last", arrays(1), {"step": 1})
    done: list[tuple[str, str]] = []
    synced, moved, removed = checkpoint.atomic.settle, Path.replace, checkpoint.shutil.rmtree

    def sync(path):
        done.append(("sync", path.name))
        synced(path)

    def replace(self, target):
        done.append((self.name, Path(target).name))
        return moved(self, target)

    def rmtree(path, **how):
        if Path(path).exists():
            done.append(("remove", Path(path).name))
        removed(path, **how)

    monkeypatch.setattr(checkpoint.atomic, "settle", sync)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", rmtree)
    checkpoint.save(tmp_path / "last", arrays(2), {"step": 2})
    first = done.index(("last.part", "last.new"))
    files = {f"{stem}.safetensors" for stem in arrays(2)} | {"state.json", "last.part"}
    assert {name for word, name in done[:first] if word == "sync"} == files
    assert done[first - 1] == ("sync", "last.part")  # the folder last: it names the files
    assert done[first + 1 :] == [
        ("last", "last.old"),
        ("last.new", "last"),
        ("sync", tmp_path.name),
        ("remove", "last.old"),
    ]


def test_restating_changes_the_state_alone(tmp_path):
    last = tmp_path / "last"
    checkpoint.save(last, arrays(1), {"step": 1})
    before = (last / "model.safetensors").stat().st_ino
    checkpoint.restate(last, {"step": 1, "best": 0.5})
    loaded, state = checkpoint.load(last)
    assert same(loaded, arrays(1)) and state["best"] == 0.5
    assert (last / "model.safetensors").stat().st_ino == before


def test_copies_share_the_disk_and_outlive_the_original(tmp_path):
    last, best = tmp_path / "last", tmp_path / "best"
    checkpoint.save(last, arrays(1), {"step": 1})
    checkpoint.copy(last, best)
    assert (last / "model.safetensors").stat().st_ino == (best / "model.safetensors").stat().st_ino
    checkpoint.save(last, arrays(2), {"step": 2})
    assert same(checkpoint.load(best)[0], arrays(1)) and checkpoint.load(best)[1]["step"] == 1


def test_copies_work_where_files_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(*given):
        raise PermissionError("no links here")

    checkpoint.save(tmp_path / "last", arrays(1), {"step": 1})
    monkeypatch.setattr(atomic.os, "link", refuse)
    checkpoint.copy(tmp_path / "last", tmp_path / "best")
    assert same(checkpoint.load(tmp_path / "best")[0], arrays(1))


# ---------------------------------------------------------------- damage
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("where", [0, 0.3, 0.99])
def test_any_flipped_bit_is_found_and_named(tmp_path, name, where):
    folder = tmp_path / "run" / "checkpoints" / "last"
    checkpoint.save(folder, arrays(1), {"step": 1})
    data = bytearray((folder / name).read_bytes())
    data[int(where * len(data))] ^= 4
    (folder / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        checkpoint.load(folder)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("length", [0, 1, 50])
def test_a_file_cut_short_is_found_and_the_remedy_is_a_checkpoint_that_loads(tmp_path, name, length):
    run = tmp_path / "run"
    for stem, seed in (("epoch_9", 9), ("epoch_10", 10), ("last", 11)):
        checkpoint.save(run / "checkpoints" / stem, arrays(seed), {"step": seed})
    with (run / "checkpoints" / "last" / name).open("r+b") as file:
        file.truncate(length)
    with pytest.raises(UserError, match=name) as error:
        checkpoint.load(checkpoint.latest(run))
    remedy = str(error.value).split("--resume ")[1].rstrip(".")
    assert remedy.endswith("epoch_10")
    assert checkpoint.load(checkpoint.latest(Path(remedy)))[1]["step"] == 10


def test_a_missing_file_is_named(tmp_path):
    checkpoint.save(tmp_path / "last", arrays(1), {})
    (tmp_path / "last" / "optimizer.safetensors").unlink()
    with pytest.raises(UserError, match=r"optimizer\.safetensors is missing"):
        checkpoint.load(tmp_path / "last")


def test_another_format_is_refused(tmp_path):
    checkpoint.save(tmp_path / "last", arrays(1), {})
    path = tmp_path / "last" / "state.json"
    state = {**json.loads(path.read_text()), "format": 2}
    path.write_text(json.dumps(state))
    with pytest.raises(UserError, match="format 2, this version"):
        checkpoint.load(tmp_path / "last")


@pytest.mark.parametrize("make", [False, True])
def test_nothing_to_resume_from_is_reported(tmp_path, make):
    run = tmp_path / "run"
    if make:
        (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no checkpoint" if make else "no such folder"):
        checkpoint.latest(run)


def test_the_latest_is_last_then_the_largest_epoch(tmp_path):
    run = tmp_path / "run"
    for n in (2, 10, 9):
        checkpoint.save(run / "checkpoints" / f"epoch_{n}", arrays(n), {"step": n})
    checkpoint.save(run / "checkpoints" / "best", arrays(2), {"step": 2})
    assert checkpoint.latest(run).name == "epoch_10"
    checkpoint.save(run / "checkpoints" / "last", arrays(11), {"step": 11})
    assert checkpoint.latest(run).name == "last"
    assert checkpoint.latest(run / "checkpoints" / "epoch_9").name == "epoch_9"
    assert checkpoint.latest(run / "checkpoints").name == "last"


@pytest.mark.parametrize(
    "keep, left", [(0, []), (1, [11]), (2, [10, 11]), (3, [9, 10, 11]), (4, [2, 9, 10, 11]), (7, [2, 9, 10, 11])]
)
def test_pruning_keeps_the_newest(tmp_path, keep, left):
    for name in ("epoch_9", "epoch_10", "epoch_2", "epoch_11", "last", "best"):
        checkpoint.save(tmp_path / "checkpoints" / name, arrays(1), {"step": 1})
    checkpoint.prune(tmp_path, keep)
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == sorted(["best", "last", *(f"epoch_{n}" for n in left)])


# ---------------------------------------------------------------- disks that refuse
@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that takes no file above `size` bytes, as far as this process can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_of_one_line_and_the_old_checkpoint_stays(tmp_path):
    last = tmp_path / "last"
    checkpoint.save(last, arrays(1, 20), {"step": 1})
    with largest_file(8000), pytest.raises(UserError) as error:
        checkpoint.save(last, arrays(2, 10_000), {"step": 2})
    assert str(last) in str(error.value) and "intact" in str(error.value) and "\n" not in str(error.value)
    assert same(checkpoint.load(last)[0], arrays(1, 20))
    assert [path.name for path in tmp_path.iterdir()] == ["last"], "what was half written is gone"


def test_a_disk_that_is_really_full(tmp_path):
    """On a file system of 1 MB in a mount namespace of its own; where that is forbidden, a limit on file sizes."""
    script = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}]
from pathlib import Path
from triport.parity_tests.core.test_checkpoint import arrays, same
from triport.core.record import checkpoint
from triport.core.errors import UserError
last = Path({str(tmp_path)!r}) / "last"
checkpoint.save(last, arrays(1, 25_000), dict(step=1))
try:
    checkpoint.save(last, arrays(2, 25_000), dict(step=2))
except UserError as error:
    print(error)
assert same(checkpoint.load(last)[0], arrays(1, 25_000))
"""
    mount = f'mount -t tmpfs -o size=1m none "{tmp_path}"'
    possible = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode == 0
    if possible:
        command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, script]
    else:
        script = script.replace("arrays(2, 25_000)", "arrays(2, 50_000)")
        command = ["sh", "-c", 'ulimit -f 600; exec "$0" -c "$1"', sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("No space left" if possible else "too large") in done.stdout and "intact" in done.stdout


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    last = tmp_path / "last"
    checkpoint.save(last, arrays(1), {"step": 1})
    if os.geteuid() == 0:  # root may write anywhere
        monkeypatch.setattr(
            Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
    else:
        tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"Permission denied; the checkpoint that was there is intact"):
            checkpoint.save(last, arrays(2), {"step": 2})
        assert same(checkpoint.load(last)[0], arrays(1))
    finally:
        tmp_path.chmod(0o700)
