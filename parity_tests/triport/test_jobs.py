"""Jobs of several processes: whatever ends, all of it ends, with its message and exit code; nobody is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from triport import environments, processes
from triport.job import remove_abandoned

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot tie a process to its parent")

# What a rank does: tell who it is, then what the first word says, on the rank that the second word names.
RANK = '''"""A rank for tests."""
import os, signal, subprocess, sys, time
rank = int(os.environ.get("PADDLE_TRAINER_ID") or os.environ["RANK"])
what, who, notes = sys.argv[1], sys.argv[2], sys.argv[3]
nothing = subprocess.DEVNULL
worker = subprocess.Popen(["sleep", "300"], stdin=nothing, stdout=nothing, stderr=nothing)
with open(f"{notes}/{rank}.part", "w") as note:
    note.write(f"{os.getpid()} {os.getppid()} {worker.pid}")
os.rename(f"{notes}/{rank}.part", f"{notes}/{rank}")
print(f"rank {rank} speaks", flush=True)
while len([name for name in os.listdir(notes) if name.isdecimal()]) < 2:
    time.sleep(0.02)
if what not in ("wait", "slow") and who in ("all", str(rank)):
    if what == "fail":
        print(f"triport: rank {rank}: error: it broke", file=sys.stderr, flush=True)
        os._exit(3)
    if what == "mistake":
        print("triport: error: no such recipe", file=sys.stderr, flush=True)
        os._exit(2)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
elif what != "fine":
    def stop(number, frame):
        if what == "slow" and rank == 0:  # it writes a report, unless a launcher ends it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(2)
        print(f"rank {rank} stops at a safe place", flush=True)
        worker.kill()
        os._exit(128 + number)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop if what in ("wait", "slow") else signal.SIG_IGN)
    open(f"{notes}/ready-{rank}", "w").close()
    for _ in range(3000):
        time.sleep(0.1)
worker.kill()
'''

# A launcher that notices nothing: it starts two ranks and waits for both, as the least of launchers would.
LAUNCHER = '''"""A launcher for tests."""
import os, subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-m", "triport.rank", *sys.argv[1:]],
                          env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)]
sys.exit(max(rank.wait() != 0 for rank in ranks))
'''

JOB = '''"""A job for tests."""
import os, sys
from pathlib import Path
from triport import environments, job, launch, place
job.PATIENCE, job.DIRECT = 1.0, 1.0
launch.wait_for = lambda *what, **more: None  # these ranks never listen
kind, *words = sys.argv[1:]
folder = job.private_folder()
Path(words[-1], "folder").write_text(str(folder))
def own(more):
    if kind == "launcher":
        yield [sys.executable, "launcher.py", "a_rank", *words], {**os.environ, **more}
    else:
        for rank in ("0", "1"):
            variables = {**os.environ, **more, "RANK": rank, "LOCAL_RANK": rank}
            yield [sys.executable, "-m", "triport.rank", "a_rank", *words], variables
def real(more):
    return launch.start(place.Place(kind, environments.require(kind), 2), ["a_rank", *words], more, folder)
sys.exit(job.run(real if kind in environments.FRAMEWORKS else own, kind not in ("direct", "oneflow"), folder))
'''


class Job:
    """A running job and what is known of its processes."""

    def __init__(self, folder: Path, kind: str, what: str, who: str) -> None:
        for name, text in (("a_rank.py", RANK), ("launcher.py", LAUNCHER), ("a_job.py", JOB)):
            (folder / name).write_text(text)
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "a_job.py", kind, what, who, str(self.notes)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def rank(self, number: int) -> list[int]:
        """The rank's process, the one that watches over it, and its worker, once they are there."""
        return [int(word) for word in self.note(str(number)).read_text().split()]

    def note(self, name: str) -> Path:
        """What a rank has written, once it is there; the limit is for what hangs."""
        deadline = time.monotonic() + 600
        while not (self.notes / name).exists():
            assert time.monotonic() < deadline and self.process.poll() is None, name
            time.sleep(0.05)
        return self.notes / name

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; give exit code, output and errors."""
        out, error = self.process.communicate(timeout=600)
        return self.process.returncode, out, error

    def everybody(self) -> list[int]:
        """Every process of the job below the first."""
        return [process for number in (0, 1) for process in self.rank(number)] + processes.descendants(self.process.pid)

    def folder(self) -> Path:
        """The job's private folder."""
        return Path((self.notes / "folder").read_text())


def gone(known: list[int], seconds: float = 600) -> bool:
    """Whether all of these processes end."""
    deadline = time.monotonic() + seconds
    while any(map(processes.is_alive, known)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(processes.is_alive, known))


@pytest.fixture(params=["launcher", "direct"])
def kind(request: pytest.FixtureRequest) -> str:
    """Through a launcher, or the ranks themselves."""
    return str(request.param)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[list[Job]]:
    """A list for the jobs of a test; what still runs of them at the end is killed."""
    begun: list[Job] = []
    yield begun
    for job in begun:
        left = [job.process.pid, *processes.descendants(job.process.pid)]
        for note in job.notes.iterdir():
            if note.name.isdecimal():
                left += [int(word) for word in note.read_text().split()]
        for process in filter(processes.is_alive, left):
            os.kill(process, signal.SIGKILL)
        job.process.communicate()


def begin(jobs: list[Job], folder: Path, kind: str, what: str, who: str = "all") -> Job:
    """Start a job that the fixture clears away."""
    jobs.append(Job(folder, kind, what, who))
    return jobs[-1]


def test_rank_0_is_heard_and_the_other_is_not(jobs: list[Job], tmp_path: Path, kind: str) -> None:
    job = begin(jobs, tmp_path, kind, "fine")
    assert job.end() == (0, "rank 0 speaks\n", "")
    assert not job.folder().exists()


def test_a_failing_rank_ends_the_job_with_its_message(jobs: list[Job], tmp_path: Path, kind: str) -> None:
    job = begin(jobs, tmp_path, kind, "fail", "1")
    known = job.everybody()
    code, out, error = job.end()
    assert (code, out) == (3, "rank 0 speaks\n")
    assert error.splitlines() == [
        "triport: rank 1 ended with exit code 3:",
        "  rank 1 speaks",
        "  triport: rank 1: error: it broke",
    ]
    assert gone(known) and not job.folder().exists()


def test_a_failing_rank_0_has_printed_its_message_already(jobs: list[Job], tmp_path: Path, kind: str) -> None:
    code, _, error = begin(jobs, tmp_path, kind, "fail", "0").end()
    assert code == 3
    assert error.splitlines() == ["triport: rank 0: error: it broke", "triport: rank 0 ended with exit code 3."]


def test_a_mistake_of_the_user_is_reported_once(jobs: list[Job], tmp_path: Path, kind: str) -> None:
    code, _, error = begin(jobs, tmp_path, kind, "mistake").end()
    assert (code, error) == (2, "triport: error: no such recipe\n")


@pytest.mark.parametrize("who", ["0", "1"])
def test_a_killed_rank_ends_the_job(jobs: list[Job], tmp_path: Path, kind: str, who: str) -> None:
    job = begin(jobs, tmp_path, kind, "killed", who)
    known = job.everybody()
    code, _, error = job.end()
    assert code == 128 + signal.SIGKILL
    assert error.startswith(f"triport: rank {who} was ended by SIGKILL (out of memory, or killed by hand)")
    assert gone(known)


@LINUX
def test_a_watcher_that_is_killed_takes_its_rank_along(jobs: list[Job], tmp_path: Path, kind: str) -> None:
    job = begin(jobs, tmp_path, kind, "wait")
    known = job.everybody()
    os.kill(job.rank(1)[1], signal.SIGKILL)
    code, _, error = job.end()
    assert code == 128 + signal.SIGKILL and "rank 1 was ended by SIGKILL" in error
    assert gone(known)


@LINUX
def test_a_killed_launcher_leaves_nobody(jobs: list[Job], tmp_path: Path) -> None:
    job = begin(jobs, tmp_path, "launcher", "wait")
    known = job.everybody()
    (launcher,) = [child for child, (parent, _) in processes.parents().items() if parent == job.process.pid]
    os.kill(launcher, signal.SIGKILL)
    code, _, error = job.end()
    assert code != 0
    assert error == "triport: the launcher was ended by SIGKILL, and its ranks with it\n"
    assert gone(known)


@LINUX
def test_a_killed_job_leaves_no_rank(jobs: list[Job], tmp_path: Path, kind: str) -> None:
    job = begin(jobs, tmp_path, kind, "wait")
    ranks = [process for number in (0, 1) for process in job.rank(number)[:2]]
    job.process.kill()
    assert job.end()[0] == -signal.SIGKILL
    assert gone(ranks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_every_rank(jobs: list[Job], tmp_path: Path, kind: str, number: signal.Signals) -> None:
    job = begin(jobs, tmp_path, kind, "wait")
    known = job.everybody()
    for rank in (0, 1):
        job.note(f"ready-{rank}")  # it has set its handlers
    job.process.send_signal(number)
    code, out, error = job.end()
    assert (code, out, error) == (128 + number, "rank 0 speaks\nrank 0 stops at a safe place\n", "")
    assert gone(known)


def test_ranks_that_ignore_everything_are_killed(jobs: list[Job], tmp_path: Path, kind: str) -> None:
    # Rank 1 fails; rank 0 ignores SIGTERM and would sleep for five minutes.
    job = begin(jobs, tmp_path, kind, "fail", "1")
    known = job.everybody()
    assert job.end()[0] == 3 and gone(known)


@pytest.mark.parametrize(
    "framework", [pytest.param(name, marks=pytest.mark.framework(name)) for name in environments.FRAMEWORKS]
)
def test_the_frameworks_own_launchers(jobs: list[Job], tmp_path: Path, framework: str) -> None:
    job = begin(jobs, tmp_path, framework, "fail", "1")
    known = job.everybody()
    code, out, error = job.end()
    assert code == 3 and out == "rank 0 speaks\n"
    assert "triport: rank 1: error: it broke" in error and "Traceback" not in error
    assert gone(known) and not job.folder().exists()


@pytest.mark.parametrize(
    "framework", [pytest.param(name, marks=pytest.mark.framework(name)) for name in ("torch", "paddle")]
)
def test_a_launcher_lets_the_first_rank_finish_that_was_asked_to_stop(
    jobs: list[Job], tmp_path: Path, framework: str
) -> None:
    job = begin(jobs, tmp_path, framework, "slow")
    known = job.everybody()
    for rank in (0, 1):
        job.note(f"ready-{rank}")
    job.process.send_signal(signal.SIGINT)
    assert job.end() == (128 + signal.SIGINT, "rank 0 speaks\nrank 0 stops at a safe place\n", "")
    assert gone(known)


@pytest.mark.framework("paddle")
def test_paddles_launcher_shows_no_environment(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "do-not-tell")
    job = begin(jobs, tmp_path, "paddle", "fine")
    job.rank(0)
    assert job.folder().stat().st_mode & 0o077 == 0
    assert job.end() == (0, "rank 0 speaks\n", "")
    assert not job.folder().exists()  # with the dumps of the environment


# ---------------------------------------------------------------- processes
def test_descendants_and_their_end(tmp_path: Path) -> None:
    program = "import subprocess, sys; p = subprocess.Popen(['sleep', '300']); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert processes.descendants(parent.pid) == [child]
        assert processes.is_alive(child)
        processes.end_all(parent.pid, [parent.pid])
        parent.wait()
    assert not processes.is_alive(child) and not processes.is_alive(parent.pid)


def test_a_record_is_whole(tmp_path: Path) -> None:
    from triport.rank import write

    write(tmp_path / "rank-0.json", {"rank": 0, "code": None})
    assert json.loads((tmp_path / "rank-0.json").read_text()) == {"rank": 0, "code": None}
    assert re.fullmatch(r"rank-0\.json", " ".join(path.name for path in tmp_path.iterdir()))


# ---------------------------------------------------------------- the end of the terminal
@LINUX
def test_who_ignores_the_end_of_the_terminal_lives_on(jobs: list[Job], tmp_path: Path, kind: str) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        job = begin(jobs, tmp_path, kind, "wait")
    finally:
        signal.signal(signal.SIGHUP, before)
    everybody = {job.process.pid, *job.everybody()}
    for rank in (0, 1):
        job.note(f"ready-{rank}")  # it has set its handlers
    for process in everybody:
        os.kill(process, signal.SIGHUP)
    job.process.send_signal(signal.SIGHUP)
    # the workers that the ranks started inherit it as well; a signal that was not ignored would have ended them first
    assert all(map(processes.is_alive, everybody))
    job.process.send_signal(signal.SIGTERM)
    code, out, _ = job.end()
    assert code == 128 + signal.SIGTERM and "stops at a safe place" in out


@LINUX
def test_others_end_with_the_terminal(jobs: list[Job], tmp_path: Path, kind: str) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        job = begin(jobs, tmp_path, kind, "wait")
    finally:
        signal.signal(signal.SIGHUP, before)
    known = job.everybody()
    job.process.send_signal(signal.SIGHUP)
    assert job.end()[0] == 128 + signal.SIGHUP and gone(known)


# ---------------------------------------------------------------- what is left behind
@LINUX
def test_folders_of_killed_jobs_are_removed_and_those_of_living_ones_are_not(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    for name in ("killed", "living"):
        (tmp_path / name).mkdir()
    killed, living = (begin(jobs, tmp_path / name, "direct", "wait") for name in ("killed", "living"))
    known = [process for number in (0, 1) for process in killed.rank(number)[:2]]  # not the worker, which is adopted
    living.everybody()
    killed.process.kill()
    killed.process.wait()
    assert gone(known) and killed.folder().exists()
    (temporary / "triport-job-somebodys").mkdir()  # without a lock: being made, or not a job's
    remove_abandoned(temporary)
    assert not killed.folder().exists() and living.folder().exists() and (temporary / "triport-job-somebodys").exists()
    living.process.send_signal(signal.SIGTERM)
    living.end()
    assert not living.folder().exists()


# ---------------------------------------------------------------- who can reach a job
def listening(root: int) -> set[str]:
    """The addresses, as hexadecimal digits, at which the processes below `root` wait for calls."""
    waiting: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            words = line.split()
            if words[3] == "0A":
                waiting[f"socket:[{words[9]}]"] = words[1].partition(":")[0]
    found = set()
    for process in [root, *processes.descendants(root)]:
        try:
            for link in Path(f"/proc/{process}/fd").iterdir():
                found |= {waiting[name] for name in [str(link.readlink())] if name in waiting}
        except OSError:
            continue  # it has ended meanwhile
    return found


@LINUX
def test_nobody_outside_can_reach_a_job_of_pytorch_on_one_machine(tmp_path: Path) -> None:
    """Paddle's store and OneFlow's control ports cannot be bound to one address: docs/ports.md."""
    if not environments.interpreter("torch"):
        pytest.skip("PyTorch is not set up: triport setup torch")
    words = ["pretrain", "tiny/test_mae_vit", "--backend", "torch", "--processes", "2", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "triport", *words, "--workers", "0", "--out", str(tmp_path / "run"), "epochs=50"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    found: set[str] = set()
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and '"step"' in metrics.read_text()):
            found |= listening(process.pid)
            time.sleep(0.02)
        found |= listening(process.pid)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert found and found <= loopback, found
