"""The other end of an ask: runs in a framework's own interpreter and calls functions of that backend's probe by name.

    python -m triport.parity_tests.tool.worker FOLDER

Reads ask.json and ask.safetensors in the folder; writes answer.safetensors, or error.json that says what went wrong,
and stack.txt: its process number and, when told to, where it stands. With several processes the files of rank r > 0
are called answer-r.safetensors and so on.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

from triport.parity_tests.tool import parcel


def rank() -> int:
    """This process's place among those that answer together, from whichever launcher started it."""
    return int(os.environ.get("RANK") or os.environ.get("PADDLE_TRAINER_ID") or 0)


def file(folder: Path, name: str, number: int) -> Path:
    """The file of one rank: rank 0 has the plain name."""
    plain = folder / name
    return plain if number == 0 else plain.with_name(f"{plain.stem}-{number}{plain.suffix}")


def answer(folder: Path, stacks: IO[str]) -> list[Any]:
    """Call what the ask names, one function after another; a failure carries `asked`, the function at fault."""
    ask = parcel.read(folder / "ask.json", folder / "ask.safetensors")
    asked, answers = "import", []
    try:
        probe = importlib.import_module(ask["probe"])
        listen(stacks)  # again: frameworks put their own handlers of fatal signals in place
        for question in ask["questions"][rank()]:
            asked = question["function"]
            answers.append(getattr(probe, asked)(**question["given"]))
    except BaseException as error:
        error.asked = asked  # type: ignore[attr-defined]
        raise
    return answers


def listen(stacks: IO[str]) -> None:
    """Write the Python stack to the log on a fatal signal, and to `stacks` on SIGUSR1 (where a hanging one stands)."""
    faulthandler.disable()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=False, chain=False)


def main(words: list[str]) -> int:
    """Answer the ask in a folder. Returns the exit code."""
    folder, number = Path(words[0]), rank()
    if number > 0:  # rank 0 writes to the asker's own log; launchers bury what the others say
        with file(folder, "log.txt", number).open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    with file(folder, "stack.txt", number).open("w", buffering=1) as stacks:
        stacks.write(f"{os.getpid()}\n")  # whom to send SIGUSR1
        listen(stacks)
        try:
            parcel.write(answer(folder, stacks), file(folder, "answer.safetensors", number))
        except BaseException as error:
            traceback.print_exc()
            file(folder, "error.json", number).write_text(json.dumps(message(error)))
            return 1
        finally:
            faulthandler.unregister(signal.SIGUSR1)
    if number == 0:
        wait_for_others(folder)
    return 0


def wait_for_others(folder: Path, seconds: float = 60) -> None:
    """Let the other ranks leave first: rank 0 may serve what they say goodbye through."""
    deadline = time.monotonic() + seconds
    for other in range(1, len(json.loads((folder / "ask.json").read_text())["dict"]["questions"])):
        printed = [file(folder, name, other) for name in ("answer.safetensors", "error.json")]
        while not any(path.is_file() for path in printed) and time.monotonic() < deadline:
            time.sleep(0.02)


def message(error: BaseException) -> dict[str, str | None]:
    """What error.json says: the question, the error, the module where one is missing, the place."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return {
        "asked": getattr(error, "asked", ""),
        "type": type(error).__name__,
        "message": str(error),
        "missing": error.name if isinstance(error, ModuleNotFoundError) else None,
        "where": f"{Path(last.filename).name}:{last.lineno} in {last.name}",
    }


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the answer is written; how a framework ends its threads is not the question
