"""Files of every form, read and written without their frameworks: bits, structure, wholeness, memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from triport.core.errors import UserError
from triport.parity_tests.fixtures.weights_samples import CASES, FORMS, array, same, tensors
from triport.weights import arrays
from triport.weights.arrays import DTYPES, Lazy, lazy, leaves
from triport.weights.files import oneflow_writer, safetensors_file
from triport.weights.files.files import detect, form_of, read, write
from triport.weights.pickle import writer

COMMON = ("float64", "float32", "float16", "int64", "int32", "int8", "uint8", "bool")
MORE = {
    "torch": tuple(DTYPES),
    "paddle": ("bfloat16", "int16", "complex64", "complex128"),
    "safetensors": ("bfloat16", "int16", "uint16", "uint32", "uint64", "complex64", "float8_e4m3fn", "float8_e5m2"),
    "npz": ("bfloat16", "int16", "uint16", "uint32", "uint64", "complex64", "complex128"),
}
ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------- what frameworks saved, kept in weights_cases
def truth(framework: str) -> dict[str, np.ndarray]:
    with np.load(CASES / framework / "truth.npz") as file:
        return {
            key.replace("@bfloat16", ""): values.view(ml_dtypes.bfloat16) if "@" in key else values
            for key, values in file.items()
        }


@pytest.mark.parametrize(
    "name",
    ["torch/zip.pth.tar", "torch/legacy.pth.tar", "torch/no_crc.pth", "paddle/a2.pdparams", "paddle/a4.pdparams",
     "paddle/b4.pd", "oneflow/plain.pkl"],
)  # fmt: skip
def test_a_file_that_its_framework_saved_is_read_to_the_bit(name: str) -> None:
    tree = read(CASES / name).tree
    tree = tree.get("state_dict", tree)
    wanted = truth(name.split("/")[0])
    assert list(tree) == list(wanted)
    for key, values in wanted.items():
        got = tree[key].read()
        assert (tree[key].dtype, got.dtype, got.shape) == (values.dtype.name, values.dtype, values.shape), key
        assert got.tobytes() == values.tobytes(), key


def test_tensors_that_share_a_storage_are_each_the_view_they_were() -> None:
    tree = read(CASES / "torch" / "shared.pth").tree
    assert {key: value.shape for key, value in tree.items()} == {
        "a": (4, 4),
        "b": (4,),
        "c": (2, 4, 4),
        "storage": (32,),
    }
    assert {tree[key].read().sum() for key in "abc"} == {0}


def test_a_run_of_libai_is_read_through_its_last_checkpoint() -> None:
    file = read(CASES / "oneflow" / "run")
    assert set(file.tree) == {"model", "lr_scheduler"} and "model_0000002" in file.note
    assert file.tree["model"]["weight"].shape == (2, 3)
    assert file.tree["lr_scheduler"] == {"last_step": 2, "base_lrs": [0.1], "_last_lr": [0.05]}


# ---------------------------------------------------------------- written and read again
@pytest.mark.parametrize("form", FORMS)
def test_every_dtype_and_shape_survives_each_form(form: str, tmp_path: Path) -> None:
    tree = tensors(*COMMON, *(name for name in MORE.get(form, ()) if name not in COMMON))
    path = tmp_path / FORMS[form]
    write(path, tree, None if form != "libai" else form)
    back = read(path).tree
    back = back["model"] if form == "libai" else back
    same({key: back[key] for key in tree}, tree)
    assert len(back) == len(tree)
    assert detect(path) == form.split("-")[0].replace("libai", "oneflow")


@pytest.mark.parametrize("form", ["torch", "paddle", "oneflow", "oneflow-file"])
def test_nested_structures_survive_the_forms_that_have_them(form: str, tmp_path: Path) -> None:
    twice = lazy(array("float32", (3, 4)))
    tree = {
        "model": {"a": twice, "b": twice}, "epoch": 3, "big": 2**70, "less": -(2**40), "minus": -1, "rate": 1e-3,
        "nan": float("nan"), "list": [1, (2, "ü\n"), None, True, [], {}],
        "state": {0: {"step": lazy(np.int64(3))}, 300: 1},
    }  # fmt: skip
    write(tmp_path / FORMS[form], tree)
    back = read(tmp_path / FORMS[form]).tree
    same(back, tree)
    if form in ("torch", "oneflow"):
        stored = sum(
            file.stat().st_size for file in tmp_path.rglob("*") if file.is_file() and "pickled" not in file.name
        )
        assert twice.nbytes < stored < 2 * twice.nbytes + 3000  # stored once
    assert [path.name for path in tmp_path.iterdir()] == [FORMS[form]]


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=5), st.integers(0, 9))
def test_arrays_of_any_shape_survive(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, shape: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    tree = {"x": lazy(array(dtype, tuple(shape), seed))}
    for form, name in FORMS.items():
        if dtype in COMMON + MORE.get(form, ()) and form != "libai":
            write(folder / name, tree)
            same(read(folder / name).tree, tree)
    shutil.rmtree(folder)


@pytest.mark.parametrize("form", ["paddle", "oneflow", "oneflow-file", "libai", "safetensors", "npz"])
def test_a_dtype_that_a_form_lacks_is_refused_by_name(form: str, tmp_path: Path) -> None:
    lacks = {"paddle": "uint32", "safetensors": "complex128", "npz": "float8_e5m2"}.get(form, "bfloat16")
    with pytest.raises(UserError, match=lacks):
        write(tmp_path / FORMS[form], {"x": lazy(array(lacks, (2,)))}, form)
    assert not list(tmp_path.iterdir())


def test_numpy_arrays_and_numbers_may_stand_in_a_tree(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", {"a": np.arange(3), "b": np.float64(0.5), "c": [np.int64(2), np.bool_(True)]})
    back = read(tmp_path / "x.pth").tree
    assert back["a"].read().tolist() == [0, 1, 2] and back["b"] == 0.5 and back["c"] == [2, True]


# ---------------------------------------------------------------- numpy's and safetensors' own files
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpys_pickles_of_each_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    given_arrays = {
        "c": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.arange(6).reshape(2, 3)), "zero": np.array(1.5),
        "big": np.arange(3, dtype=">i4"), "none": np.zeros((0, 2)), "long": np.arange(9000, dtype=np.uint8),
        "cut": np.arange(9.0)[::3],
    }  # fmt: skip
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({**given_arrays, "lr": np.float32(0.5)}, protocol))
    tree = read(tmp_path / "x.pdparams").tree
    assert tree.pop("lr") == 0.5
    for key, values in given_arrays.items():
        assert np.array_equal(tree[key].read(), values) and tree[key].read().dtype.isnative, key


def test_paddles_pieces_of_a_large_array_are_put_together(tmp_path: Path) -> None:
    whole = array("float32", (6, 5))
    pieces = {f"w@@.{index}": part for index, part in enumerate(np.split(whole.reshape(-1), 3))}
    table = {"w": "linear_0.w_0"}
    chunks = {"w": {"OriginShape": (6, 5), "slices": list(pieces)}}
    stored = {**pieces, "StructuredToParameterName@@": table, "UnpackBigParamInfor@@": chunks}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(stored, 2))
    tree = read(tmp_path / "x.pdparams").tree
    assert list(tree) == ["w"] and tree["w"].name == "linear_0.w_0"
    same(tree["w"], lazy(whole))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpys_archives_are_read_and_ours_are_read_by_numpy(save: object, tmp_path: Path) -> None:
    stored = {
        "a": array("float32", (100, 70)),
        "b/c.weight": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big": np.arange(3, dtype=">u2"),
    }
    save(tmp_path / "x.npz", **stored)  # type: ignore[operator]
    tree = read(tmp_path / "x.npz").tree
    assert all(
        tree[key].read().tobytes() == values.astype(values.dtype.newbyteorder("=")).tobytes()
        for key, values in stored.items()
    )
    write(tmp_path / "y.npz", tree)
    with np.load(tmp_path / "y.npz", allow_pickle=False) as file:
        assert (
            all(np.array_equal(file[key], stored[key], equal_nan=key == "a") for key in stored) and len(file.files) == 3
        )


def test_safetensors_and_its_library_read_each_other(tmp_path: Path) -> None:
    stored = {key: value.read().copy() for key, value in tensors(*COMMON, "bfloat16", "uint16").items()}
    safetensors.numpy.save_file(stored, tmp_path / "x.safetensors", {"format": "np"})
    file = read(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "np"}
    same({key: file.tree[key] for key in stored}, {key: lazy(values) for key, values in stored.items()})
    write(tmp_path / "y.safetensors", file.tree, metadata={"source": "a 'name'", "ü": "\n"})
    back = safetensors.numpy.load_file(tmp_path / "y.safetensors")
    assert all(
        back[key].tobytes() == values.tobytes() and back[key].shape == values.shape for key, values in stored.items()
    )
    with safetensors.safe_open(tmp_path / "y.safetensors", "np") as opened:
        assert opened.metadata() == {"source": "a 'name'", "ü": "\n"}


def test_sharded_safetensors_are_written_and_read(tmp_path: Path) -> None:
    tree = {f"w{index}": lazy(array("float32", (10,), index)) for index in range(5)}
    index = tmp_path / "model.safetensors.index.json"
    safetensors_file.write(index, tree, {"of": "me"}, shard=80)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert json.loads(index.read_text())["metadata"] == {"total_size": 200}
    for path in (index, tmp_path):
        file = read(path)
        same(file.tree, tree)
        assert file.metadata == {"of": "me"} and "3 shards" in file.note
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=r"No such file"):
        read(index)


def test_the_older_folder_of_oneflow_is_read(tmp_path: Path) -> None:
    oneflow_writer.write(tmp_path / "new", {"w": lazy(array("float32", (2, 3)))})
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "new" / "tensor_0", old / "blocks.0.weight")
    (old / "snapshot_done").touch()
    tree = read(old).tree
    assert list(tree) == ["blocks.0.weight"] and tree["blocks.0.weight"].shape == (2, 3)


def test_a_checkpoint_of_libai_is_written_as_a_folder_and_as_a_run(tmp_path: Path) -> None:
    tree = {"w": lazy(array("float32", (2, 3)))}
    write(tmp_path / "model_best", tree, form="libai")
    same(read(tmp_path / "model_best" / "model").tree, tree)
    write(tmp_path / "run", {"model": tree, "lr_scheduler": {"last_step": 0}}, form="libai")
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000000"
    same(read(tmp_path / "run").tree["model"], tree)


# ---------------------------------------------------------------- forms
def test_the_form_is_found_by_content_not_by_ending(tmp_path: Path) -> None:
    for form, name in FORMS.items():
        write(tmp_path / name, {"x": np.arange(3.0)}, form)
        odd = (tmp_path / name).rename(tmp_path / f"{form}.other")
        assert detect(odd) == form.split("-")[0].replace("libai", "oneflow")


def test_endings_choose_the_form_to_write() -> None:
    endings = {
        "a.pth.tar": "torch",
        "a.bin": "torch",
        "a.pd": "paddle",
        "a.PDOPT": "paddle",
        "a.oneflow": "oneflow",
        "a": "oneflow",
    }
    assert {name: form_of(name) for name in endings} == endings
    with pytest.raises(UserError, match=r"Did you mean '.safetensors'\?"):
        form_of("a.safetensor")
    with pytest.raises(UserError, match="is not a file format"):
        write("x", {}, form="tensorflow")


BITS = (0, 7, 8, 15, 16, 31, 32, 39, 40, 63, 64, 71)
BOUNDARIES = sorted({sign * (2**bits + step) for bits in BITS for step in (-1, 0, 1) for sign in (1, -1)})


@pytest.mark.parametrize("value", BOUNDARIES)
def test_whole_numbers_of_any_length_are_pickled_as_python_reads_them(value: int) -> None:
    out = io.BytesIO()
    writing_pickle = writer.PickleWriter(out.write, lambda tensor: None)
    writing_pickle.value({"n": value})
    writing_pickle.stop()
    assert pickle.loads(out.getvalue()) == {"n": value}


# ---------------------------------------------------------------- whole or not at all
@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_replaced_unasked_and_everything_when_asked(form: str, tmp_path: Path) -> None:
    path = tmp_path / FORMS[form]
    write(path, {"x": np.arange(3.0)}, form)
    with pytest.raises(UserError, match="exists already; give --force"):
        write(path, {"x": np.arange(4.0)}, form)
    assert next(leaves(read(path).tree)).shape == (3,)
    write(path, {"x": np.arange(4.0)}, form, force=True)
    assert next(leaves(read(path).tree)).shape == (4,)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("form", FORMS)
def test_a_failure_while_writing_leaves_what_was_there(form: str, tmp_path: Path) -> None:
    path = tmp_path / FORMS[form]
    write(path, {"x": np.arange(3.0)}, form)

    def fails() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, {"w": np.arange(9.0), "x": Lazy((3,), "float64", fails)}, form, force=True)
    assert next(leaves(read(path).tree)).read().tolist() == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_what_was_there(form: str, tmp_path: Path) -> None:
    path = tmp_path / FORMS[form]
    write(path, {"x": np.arange(3.0)}, form)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written.*what was there before is unchanged"):
            write(path, {"x": np.zeros(100_000)}, form, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert next(leaves(read(path).tree)).read().tolist() == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_folder_with_anything_else_in_it_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home" / "photos").mkdir(parents=True)
    (tmp_path / "home" / "photos" / "one.jpg").touch()
    with pytest.raises(UserError, match=r"one\.jpg, which is not part of a checkpoint"):
        write(tmp_path / "home", {"x": np.zeros(1)}, "oneflow", force=True)
    assert (tmp_path / "home" / "photos" / "one.jpg").exists()


def test_targets_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for form, name in FORMS.items():
        with pytest.raises(UserError, match="does not exist; make it first"):
            write(tmp_path / "nowhere" / name, {"x": np.zeros(1)}, form)
        (tmp_path / form).mkdir() if form not in ("oneflow", "libai") else (tmp_path / form).touch()
        with pytest.raises(UserError, match="name another target"):
            write(tmp_path / form, {"x": np.zeros(1)}, form, force=True)


def test_a_file_may_be_converted_onto_itself(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", {"x": array("float32", (300, 1000))})
    tree = read(tmp_path / "x.pth").tree
    write(tmp_path / "x.pth", {"y": tree["x"]}, force=True)
    same(read(tmp_path / "x.pth").tree["y"], tree["x"])


@pytest.mark.parametrize(
    "form, tree, wanted",
    [
        ("safetensors", {"a": {"b": np.zeros(1)}}, "'a' is a dict"),
        ("safetensors", {"__metadata__": np.zeros(1)}, "__metadata__"),
        ("npz", {"a": 1}, "'a' is a int"),
        ("npz", [1], "a list"),
        ("npz", {"../a": np.zeros(1)}, "leads out"),
        ("torch", {"a": {1, 2}}, "a is a set"),
        ("paddle", {"a": {("x",): 1}}, "key"),
        ("libai", {"../x": {}}, "parts such as"),
    ],
)
def test_what_a_form_cannot_hold_is_refused_by_name(form: str, tree: object, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=wanted):
        write(tmp_path / FORMS[form], tree, form)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- memory
def test_reading_a_file_reads_no_arrays_and_the_views_are_of_the_file(tmp_path: Path) -> None:
    for form in ("torch", "safetensors", "oneflow", "npz"):
        write(tmp_path / FORMS[form], {"x": np.zeros(1 << 22)}, form)
        one = read(tmp_path / FORMS[form]).tree["x"].read()
        assert not one.flags.writeable and not one.flags.owndata
        two = one[5:]
        del one
        assert two.sum() == 0  # the map lives as long as any view


@pytest.mark.parametrize("form", ["torch", "paddle", "oneflow", "safetensors", "npz"])
def test_converting_holds_one_array_at_a_time(form: str, tmp_path: Path) -> None:
    size, count = 8 << 20, 12
    values = array("float32", (size // 4,))
    write(tmp_path / "from.pth", {f"w{index}": lazy(values.copy()) for index in range(count)})
    script = (
        "import sys; from triport.weights.files.files import read, write; tree = read(sys.argv[1]).tree;"
        " status = lambda:"
        " int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024;"
        " before = status(); write(sys.argv[2], tree, sys.argv[3]); print(status() - before)"
    )
    command = [sys.executable, "-c", script, tmp_path / "from.pth", tmp_path / FORMS[form], form]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3 * size < size * count
    same(read(tmp_path / FORMS[form]).tree["w3"], lazy(values))


def test_an_array_of_gigabytes_costs_nothing_until_read(tmp_path: Path) -> None:
    length = 6 << 30  # more than the four bytes of a pickle's lengths can say; the file is sparse
    pieces: list[bytes] = []
    writer.ndarray(pieces.append, np.zeros(5, np.uint8), "u1")
    head = pieces[0].replace(writer.shape((5,)), writer.shape((length,)))
    with open(tmp_path / "x.pdparams", "wb") as file:
        file.write(b"\x80\x04}" + writer.scalar("a") + head + b"\x8e" + struct.pack("<Q", length))
        file.seek(length, os.SEEK_CUR)
        file.write(b"tbs.")
    tree = read(tmp_path / "x.pdparams").tree
    assert tree["a"].nbytes == length
    (tmp_path / "x.pdparams").unlink()


def test_offsets_of_a_large_file_are_not_taken_for_a_shape(tmp_path: Path) -> None:
    half = 1 << 32  # the product of two such offsets is beyond what a shape may have
    header = {
        name: {"dtype": "U8", "shape": [half], "data_offsets": [at, at + half]} for name, at in (("a", 0), ("b", half))
    }
    text = json.dumps(header).encode()
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2 * half)
    assert [leaf.nbytes for leaf in leaves(read(tmp_path / "x.safetensors").tree)] == [half, half]
    (tmp_path / "x.safetensors").unlink()


def test_lazy_arrays_say_what_they_are_and_hold_it() -> None:
    one = Lazy((2, 3), "bfloat16", lambda: np.zeros((2, 3), np.float32), where="a file")
    assert one.nbytes == 12 and one.size == 6
    with pytest.raises(UserError, match=r"a file: an array announced as bfloat16\(2, 3\) is float32\(2, 3\)"):
        one.read()
    lie = Lazy((2,), "bool", lambda: np.array([1, 2], np.uint8).view(bool))
    with pytest.raises(UserError, match="bool"):
        lie.read()
    tree = {"a": one, "b": [one, 1]}
    changed = arrays.mapped(tree, lambda leaf: lazy(np.zeros(leaf.shape)))
    assert changed["a"] is changed["b"][0] and changed["b"][1] == 1


# ---------------------------------------------------------------- what only some checkpoints hold
def pretend(patch: pytest.MonkeyPatch, module: str, kind: type) -> None:
    """Let a class be of a module that is not installed, so that the real pickler writes its name."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        patch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    setattr(sys.modules[module], kind.__name__, kind)
    for name, member in {"": kind, **vars(kind)}.items():
        if isinstance(member, (type, types.FunctionType)):
            member.__module__, member.__qualname__ = module, f"{kind.__name__}.{name}".rstrip(".")


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_of_known_classes_are_preserved_as_their_attributes(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TimmCosine:
        def __init__(self) -> None:
            self.last_lr, self.T_max = 0.5, 300

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history, self.statistics_methods = np.arange(3.0), {"min": HistoryBuffer.min}

        def min(self) -> None: ...

    pretend(monkeypatch, "passl.scheduler.lr_scheduler", TimmCosine)
    pretend(monkeypatch, "mmengine.logging.history_buffer", HistoryBuffer)
    stored = {"param_groups": [{"lr": TimmCosine()}], "log": {"loss": HistoryBuffer()}}
    (tmp_path / "x.pdopt").write_bytes(pickle.dumps(stored, protocol))
    tree = read(tmp_path / "x.pdopt").tree
    known = {"__class__": "passl.scheduler.lr_scheduler.TimmCosine", "last_lr": 0.5, "T_max": 300}
    assert tree["param_groups"] == [{"lr": known}]
    loss = tree["log"]["loss"]
    assert loss["_log_history"].read().tolist() == [0, 1, 2] and loss["statistics_methods"]["min"].endswith(
        "HistoryBuffer.min"
    )


def test_texts_and_dicts_of_python_2_are_read(tmp_path: Path) -> None:
    pairs = b"ccollections\nOrderedDict\n](](U\x01aK\x01e](U\x02b\xe9K\x02ee\x85R"
    old = b"\x80\x02}(U\x05state" + pairs + b"U\x04nameT\x03\x00\x00\x00abcU\x03setc__builtin__\nset\n]K\x05a\x85Ru."
    (tmp_path / "x.pd").write_bytes(old)
    tree = read(tmp_path / "x.pd").tree
    assert tree == {"state": {"a": 1, "bé": 2}, "name": "abc", "set": [5]}


def test_files_of_the_other_byte_order_are_swapped(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": array("bfloat16", (4,))})
    wanted = read(tmp_path / "x.pth").tree
    with zipfile.ZipFile(tmp_path / "x.pth") as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            elif name.endswith("data/0"):
                data = np.frombuffer(data, "<u4").byteswap().tobytes()
            elif name.endswith("data/1"):
                data = np.frombuffer(data, "<u2").byteswap().tobytes()
            new.writestr(name, data)
    same(read(tmp_path / "big.pth").tree, wanted)
