"""Configurations that are Python files: read without being executed, and within bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triport.core.errors import UserError
from triport.core.spec.foreign.python_file import Files
from triport.core.spec.foreign.values import Call, Lazy, Symbol, Tree, plain


def read(folder: Path, text: str, name: str = "config.py", **files: str) -> dict[str, Any]:
    for other, content in {name: text, **{f"{key}.py": value for key, value in files.items()}}.items():
        path = folder / other.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Files([folder], {"LazyCall": Lazy}).load(folder / name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x = 3 * 4 / 8 - 1.5e-4 * 0", 1.5),
        ("x = 2 ** 10 // 3", 341),
        ("x = -(1 + 2) if not False else 0", -3),
        ("a = dict(b=dict(c=1)); a.b.c = 5; a['d'] = [1, 2][::-1]; x = (a.b.c, a.d)", (5, [2, 1])),
        ("a = {'k': 1, **{'l': 2}}; del a['k']; x = a", {"l": 2}),
        ("x = [round(255 * y) for y in (0.5, 0.25) if y < 1]", [128, 64]),
        ("x = 1\nfor y in range(3):\n    x += y", 4),
        ("x, (y, z) = 1, (2, 3); x = x + z", 4),
        ("n = 8\nx = f'{n}xb{n * 2}'", "8xb16"),
        ("a = dict(b=dict(c=1, d=2)); a.update(b=dict(c=3)); x = a", {"b": {"c": 3, "d": 2}}),
        ("a = dict(b=1); x = a.get('q', 7) + len([*a.items(), *a.keys()])", 9),
        ("from flowvision.data.constants import IMAGENET_DEFAULT_MEAN\nx = IMAGENET_DEFAULT_MEAN[0]", 0.485),
        ("from omegaconf import OmegaConf\nx = OmegaConf.create()\nx.a = 1", {"a": 1}),
        ("if __name__ == '__main__':\n    import os; os.system('false')\nx = 1", 1),
        ("x: int = 5\nassert x == 5, 'no'", 5),
    ],
)
def test_what_configurations_do_is_done(tmp_path: Path, text: str, value: Any) -> None:
    assert read(tmp_path, text)["x"] == value


def test_code_of_the_other_project_is_written_down_and_not_called(tmp_path: Path) -> None:
    text = "from torch.optim import AdamW\nfrom libai.config import LazyCall\nimport math as m\n"
    text += "x = LazyCall(AdamW)(lr=1)\ny = AdamW(1, lr=2)\nz = m.pi\nx._target_ = m.floor"
    scope = read(tmp_path, text)
    assert scope["x"] == Tree(_target_=Symbol("math.floor"), lr=1)
    assert scope["y"] == Call(Symbol("torch.optim.AdamW"), (1,), {"lr": 2}) and scope["z"] == Symbol("math.pi")
    assert plain(scope["y"]) == {"_target_": "AdamW", "_0": 1, "lr": 2}


def test_modules_of_the_checkout_are_read_and_its_classes_are_names(tmp_path: Path) -> None:
    text = (
        "from code.model import Net, size\nfrom .near import *\nfrom code import other\nx = (Net, size, far, other.q)"
    )
    code = "import nowhere_at_all\nclass Net(nowhere_at_all.Base):\n    raise SystemExit\nsize = 4"
    scope = read(tmp_path, text, code__model=code, near="far = 9\n_hidden = 1", code__other="q = 2", code____init__="")
    assert scope["x"] == (Symbol("model.Net"), 4, 9, 2) and "_hidden" not in scope


EVIL = [
    "import os\nx = os.system('touch {mark}') + 1",
    "open('{mark}', 'w')",
    "__import__('os').system('touch {mark}')",
    "x = eval('1')",
    "x = (lambda: 1)()",
    "def f():\n    return 1\nx = f() + 1",
    "import os\nif os.environ.get('A'):\n    x = 1",
    "while True:\n    pass",
    "try:\n    x = 1\nexcept ValueError:\n    pass",
    "with open('{mark}', 'w') as f:\n    x = 1",
    "x = [].__class__.__mro__",
    "x = 9 ** 9 ** 9",
    "x = 'a' * 10 ** 9",
    "x = [0] * 10 ** 9",
    "x = [y for y in range(10 ** 12)]",
    "for x in range(9999):\n    for y in range(9999):\n        z = 1",
    "x = 7\nfor _ in range(200):\n    x = x * x",
    "x = [y for y in 'ab' for z in 'cd']",
    "x = '{{}}'.format(1)",
    "x = nothing",
    "x = dict(a=1).b",
    "x = 1 / 0",
    "from nowhere import *",
    "from .nowhere import x",
    "x = dict(a=1)['b']",
    "a, b = 1, 2, 3",
    "x = (",
]


@pytest.mark.parametrize("text", EVIL)
def test_anything_else_is_refused_in_one_line_and_does_nothing(tmp_path: Path, text: str) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(UserError, match=r"config\.py") as error:
        read(tmp_path, text.format(mark=mark))
    assert not mark.exists() and "\n" not in str(error.value)


def test_deep_nesting_ends_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.py"):
        read(tmp_path, "x = " + "-" * 100_000 + "1")
    with pytest.raises(UserError, match=r"config\.py"):
        read(tmp_path, "x = " + "+".join(["1"] * 20_000))


def test_files_that_import_each_other_end(tmp_path: Path) -> None:
    assert read(tmp_path, "x = 1\nfrom .b import y", b="y = 2\nfrom .config import x")["y"] == 2
    with pytest.raises(UserError, match="is not a Python file"):
        read(tmp_path, "from .b import y", b="y = \0")
