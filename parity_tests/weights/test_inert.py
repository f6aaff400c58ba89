"""Values of any class beside a model: the model is read, they are listed, and nothing of them is made or run."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import operator
import os
import pathlib
import pickle
import re
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport import weights
from triport.core.errors import UserError
from triport.parity_tests.fixtures.foreign import values_of
from triport.parity_tests.fixtures.weights_samples import bounded
from triport.parity_tests.tool import small
from triport.weights.arrays import Inert, Lazy, inert
from triport.weights.commands.convert import convert
from triport.weights.commands.inspect import inspect
from triport.weights.files.files import read

ARRAYS = {n: a.read() for n, a in values_of(small.MODELS["finetune-token"]).items() if not n.startswith("head.")}
HERE = __name__


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntFlag):
    A, B = 1, 2


@dataclasses.dataclass
class Settings:
    lr: float = 0.1
    nested: Any = None


Point = collections.namedtuple("Point", "x y")


class Config(dict[str, Any]):
    """As easydict, addict, ConfigDict: a dict with attributes."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.__dict__.update(self)


class Row(list[Any]):
    pass


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = 1, [2]


class Named:
    def __new__(cls, *, name: str) -> Named:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, str]]:
        return (), {"name": "x"}


class Running(str):
    """As torch's TorchVersion: a text of a class of its own."""


class Attack:
    """Loaded the ordinary way it would make a folder; every way a pickle has of calling something."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.function, self.given = function, given

    def __reduce__(self) -> Any:
        return self.function, self.given


VALUES: dict[str, Any] = {
    "an enum": Colour.RED, "a flag": Level.A | Level.B, "a dataclass": Settings(nested=Settings()),
    "a datetime": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc), "a timedelta": datetime.timedelta(1),
    "a namedtuple": Point(1, Point(2, 3)), "a dict of its own": Config(a=1, b=Config(c=2)),
    "a list of its own": Row([1, 2]),
    "slots": Slotted(), "named arguments": Named(name="x"), "a text of its own": Running("2.1"),
    "a namespace": types.SimpleNamespace(a=1, b=[2]), "a deque": collections.deque([1, 2], maxlen=3),
    "a default dict": collections.defaultdict(Settings, {"a": Settings()}), "a decimal": decimal.Decimal("1.5"),
    "a fraction": fractions.Fraction(1, 3), "a complex number": 1 + 2j, "numpy's": np.complex64(1j),
    "a pattern": re.compile("a+"), "a range": range(3), "a slice": slice(1, 2), "bytes": b"abc",
    "long bytes": b"a" * 9999,
    "a byte array": bytearray(b"abc"), "a partial": functools.partial(print, 1), "a getter": operator.attrgetter("a.b"),
    "a method": "abc".upper, "a class": Settings, "a function": os.path.join, "a uuid": uuid.UUID(int=3),
    "objects": np.array([1, "a", None], object), "texts": np.array(["a", "bc"]), "a text of numpy": np.str_("a"),
    "a date of numpy": np.datetime64("2024-01-02"), "a record": np.zeros(2, [("a", "f4"), ("b", "i4")]),
    "a path": pathlib.PurePosixPath("a/b"), "an exception": ValueError("x"), "an ellipsis": ..., "a type": type(None),
    "a set": {1, 2}, "a frozen set": frozenset((1, "a")),
    "a dtype": np.dtype("float32"), "a dtype of fields": np.dtype([("a", "f4")]),
}  # fmt: skip
KEYS: dict[str, Any] = {
    "a tuple": (1, 2), "texts in a tuple": ("a", None, 1.5, True), "true": True, "nothing": None, "a float": 1.5,
    "not a number": float("nan"), "bytes": b"ab", "an enum": Colour.RED, "a class": Settings,
    "a named tuple": Point(1, 2),
}  # fmt: skip
protocols = pytest.mark.parametrize("protocol", [2, 3, 4, 5])


def paddle(path: Path, tree: Any, protocol: int) -> Path:
    """A file that a plain pickle is."""
    path.write_bytes(pickle.dumps(tree, protocol))
    return path


def whole(path: Path) -> bool:
    """Whether the model in a file is read as it is."""
    found = weights.load_weights(path)
    return found.keys() == ARRAYS.keys() and all(np.array_equal(found[n], ARRAYS[n]) for n in found)


@protocols
@pytest.mark.parametrize("what", VALUES)
def test_a_model_is_read_whatever_stands_beside_it(what: str, protocol: int, tmp_path: Path) -> None:
    tree = {"model": ARRAYS, "epoch": 3, "extra": VALUES[what], "deep": [{"a": (VALUES[what],)}]}
    path = paddle(tmp_path / "a.pd", tree, protocol)
    assert whole(path)
    found = read(path).tree
    assert found["epoch"] == 3 and {"extra", "deep"} <= set(found)
    assert "Colour.RED" not in repr(found) and not any(isinstance(v, type(VALUES["slots"])) for v in found.values())


@protocols
@pytest.mark.parametrize("what", KEYS)
def test_a_model_is_read_whatever_is_a_key_beside_it(what: str, protocol: int, tmp_path: Path) -> None:
    path = paddle(tmp_path / "a.pd", {"model": ARRAYS, "extra": {KEYS[what]: 1, "b": 2}}, protocol)
    assert whole(path)
    extra = read(path).tree["extra"]
    assert len(extra) == 2 and extra["b"] == 2 and sorted(extra.values()) == [1, 2]


@pytest.mark.parametrize("what", VALUES)
def test_the_same_in_pytorchs_own_files(torch: Any, what: str, tmp_path: Path) -> None:
    tensors = {n: torch.from_numpy(a) for n, a in ARRAYS.items()}
    for name, zipped in (("a.pth", True), ("b.pth", False)):
        tree = {"model": tensors, "extra": VALUES[what], "version": torch.torch_version.TorchVersion("2.1")}
        torch.save(tree, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert whole(tmp_path / name)
        assert read(tmp_path / name).tree["version"] == Inert("torch.torch_version.TorchVersion")


def test_a_class_of_modules_is_named_where_the_old_form_keeps_its_source(torch: Any, tmp_path: Path) -> None:
    """torch.save writes such a class as a persistent id in the form from before PyTorch 1.6."""
    tensors = {n: torch.from_numpy(a) for n, a in ARRAYS.items()}
    for name, zipped in (("a.pth", True), ("b.pth", False)):
        tree = {"model": tensors, "activation": torch.nn.GELU, "head": [torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)]}
        torch.save(tree, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert whole(tmp_path / name)
        found = read(tmp_path / name).tree
        assert found["activation"] == "torch.nn.modules.activation.GELU"
        assert found["head"] == [Inert("torch.nn.modules.linear.Linear")] * 2
        torch.save({"model": torch.nn.GELU()}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"is a whole torch\.nn\..*GELU; save the model's state_dict\(\) instead"):
            weights.load_weights(tmp_path / name)


def test_tensors_that_are_no_plain_arrays_are_listed_beside_a_model(torch: Any, tmp_path: Path) -> None:
    tensors = {n: torch.from_numpy(a) for n, a in ARRAYS.items()}
    strange = {
        "complex": torch.zeros(2, dtype=torch.complex64),
        "sparse": torch.eye(3).to_sparse(),
        "compressed": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "channels": torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8),
        "meta": torch.empty(3, device="meta"),
    }
    for name, zipped in (("a.pth", True), ("b.pth", False)):
        torch.save({"model": tensors, "extra": strange}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert whole(tmp_path / name)
        extra = read(tmp_path / name).tree["extra"]
        assert isinstance(extra.pop("complex"), Lazy)
        assert all(isinstance(value, Inert) for value in extra.values()), extra


def test_a_model_of_such_tensors_is_refused_by_name(torch: Any, tmp_path: Path) -> None:
    tensors = {n: torch.from_numpy(a) for n, a in ARRAYS.items()}
    name = "blocks.0.attn.qkv.weight"
    for value, wanted in (
        (torch.quantize_per_tensor(tensors[name], 0.1, 0, torch.qint8), "torch._utils._rebuild_qtensor"),
        (tensors[name].to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (Settings(), f"{HERE}.Settings"),
    ):
        for prefix in ("", "module."):
            state = {prefix + n: (value if n == name else t) for n, t in tensors.items()}
            torch.save({"model": state}, tmp_path / "a.pth")
            with pytest.raises(
                UserError, match=f"'{prefix}{re.escape(name)}' is a {re.escape(wanted)}.*nothing of it was run"
            ):
                weights.load_weights(tmp_path / "a.pth")
    torch.save({"model": {n: Settings() for n in tensors}}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="holds no arrays that can be read: 'cls_token' is a"):
        weights.load_weights(tmp_path / "b.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"asks for torch.nn.modules.linear.Linear.*state_dict\(\) instead"):
        weights.load_weights(tmp_path / "c.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_model_of_ones_own_class_is_refused_with_the_remedy(
    torch: Any, tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = type("OwnNet", (torch.nn.Linear,), {"__module__": HERE})
    monkeypatch.setitem(globals(), "OwnNet", own)
    torch.save(own(2, 2), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        UserError, match=r"OwnNet.*nothing of it was run; if it is a whole model, save the .*state_dict"
    ):
        weights.load_weights(tmp_path / "a.pth")


def test_tensors_that_pickle_wrote_are_refused_with_what_to_do(torch: Any, tmp_path: Path) -> None:
    paddle(tmp_path / "a.pkl", {name: torch.from_numpy(array) for name, array in ARRAYS.items()}, 2)
    with pytest.raises(UserError, match=r"nothing of it was run; tensors that pickle wrote.*with torch\.save"):
        weights.load_weights(tmp_path / "a.pkl")


def test_what_was_not_made_is_named_in_reports_and_inspections(tmp_path: Path) -> None:
    tree = {"model": ARRAYS, "hyper": {"when": VALUES["a datetime"], "many": [Settings()] * 50 + [Colour.RED]}}
    path = paddle(tmp_path / "a.pd", tree, 4)
    report = convert(path, tmp_path / "b.safetensors")
    assert ("hyper.when", "an object of datetime.datetime, never made") in report.dropped
    assert [key for key, _ in report.dropped if key == "hyper.many"] == ["hyper.many"] * 2  # once for each class
    assert inspect(path).inert[0] == "hyper.when (datetime.datetime)"
    assert [key for key, _ in inert({"a": [Inert("x.Y")] * 9, "b": (Inert("x.Z"),)})] == ["a", "b"]


# ---------------------------------------------------------------- hostile
CALLS: dict[str, Callable[[str], Any]] = {
    "os.mkdir": lambda target: Attack(os.mkdir, target),
    "eval": lambda target: Attack(eval, f"__import__('os').mkdir({target!r})"),
    "exec": lambda target: Attack(exec, f"import os; os.mkdir({target!r})"),
    "a partial": lambda target: Attack(functools.partial(os.mkdir, target)),
    "a method of a path": lambda target: Attack(pathlib.Path(target).mkdir),
    "makedirs": lambda target: Attack(os.makedirs, target),
    "in a state": lambda target: Settings(nested=Attack(os.mkdir, target)),
    "in a key": lambda target: {Attack(os.mkdir, target): 1},
    "in an argument": lambda target: Attack(print, Attack(os.mkdir, target)),
    "in a list of its own": lambda target: Row([Attack(os.mkdir, target)]),
    "in a dict of its own": lambda target: Config(a=Attack(os.mkdir, target)),
    "in a default factory": lambda target: collections.defaultdict(dict, {1: Attack(os.mkdir, target)}),
}  # fmt: skip


@protocols
@pytest.mark.parametrize("way", CALLS)
def test_nothing_is_run_beside_a_model_nor_in_its_place(way: str, protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "done"
    value = CALLS[way](str(target))
    for number, tree in enumerate(({"model": ARRAYS, "x": value}, {"model": value}, value)):
        path = paddle(tmp_path / f"{number}.pd", tree, protocol)
        with bounded():
            try:
                weights.load_weights(path)
            except UserError as error:
                assert number and "\n" not in str(error) and str(error).startswith(str(path))
        assert not target.exists()
    with contextlib.suppress(Exception):  # some of them fail after they have done it
        pickle.loads(pickle.dumps(value, protocol))
    assert target.exists()  # it would have


def test_an_object_swallows_what_is_put_into_it_without_growing(tmp_path: Path) -> None:
    """An inert record keeps nothing, however often something is appended, set or built."""
    text = b"\x80\x02cx\nY\n)\x81q\x00" + b"0h\x00(K\x01K\x02e" * 50_000 + b"0h\x00K\x01K\x02s0h\x00}b."
    (tmp_path / "a.pd").write_bytes(text)
    with bounded(), pytest.raises(UserError, match=r"asks for x\.Y"):
        read(tmp_path / "a.pd")
    many = b"\x80\x02](" + b"cx\nY\n)\x81" * 200_000 + b"e."
    (tmp_path / "b.pd").write_bytes(many)
    with bounded(), pytest.raises(UserError, match="more than 1000000 operations"):
        read(tmp_path / "b.pd")
