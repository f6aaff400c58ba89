"""docs/port-a-model.md is real: its files are written, its commands run in order, and they say what the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from triport.parity_tests.conftest import here
from triport.parity_tests.tool import __main__ as program

PAGE = Path(__file__).resolve().parents[2] / "docs" / "port-a-model.md"
FILE = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = (".venvs/torch-next", "git:main")  # what a reader has and a test has not


def shown() -> list[tuple[list[str], list[str]]]:
    """Each command of the page with the lines shown below it."""
    found: list[tuple[list[str], list[str]]] = []
    for block in CONSOLE.findall(PAGE.read_text(encoding="utf-8")):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((shlex.split(line[2:]), []))
            elif line.strip():
                found[-1][1].append(" ".join(line.split()))
    return [(words, lines) for words, lines in found if not any(part in words for part in ELSEWHERE)]


def test_the_page_has_files_and_commands():
    assert [name for name, _ in FILE.findall(PAGE.read_text())] == ["original.py", "port.py"]
    assert len(shown()) >= 8


def test_the_commands_of_the_page_say_what_it_shows(tmp_path, monkeypatch, capfd, request):
    for framework in ("torch", "paddle"):
        here(framework, request.config)
    monkeypatch.chdir(tmp_path)
    for name, text in FILE.findall(PAGE.read_text(encoding="utf-8")):
        Path(name).write_text(text)
    for words, lines in shown():
        assert words[:2] == ["triport", "parity"]
        code = program.main(words[2:])
        printed = capfd.readouterr()
        text = " ".join(printed.out.split())
        assert code == (1 if any("first to depart" in line for line in lines) else 0), (words, printed)
        assert [line for line in lines if line not in text] == [], printed.out


def test_the_port_without_its_mistake_agrees(tmp_path, monkeypatch, capfd, request):
    for framework in ("torch", "paddle"):
        here(framework, request.config)
    monkeypatch.chdir(tmp_path)
    for name, text in FILE.findall(PAGE.read_text(encoding="utf-8")):
        Path(name).write_text(text.replace("momentum=0.1", "momentum=0.9"))
    words = [words[2:] for words, _ in shown()]
    for command in words[:3]:
        assert program.main(command) == 0
    assert program.main(words[4]) == 0
    assert "they agree within bounds" in capfd.readouterr().out
