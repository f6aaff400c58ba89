"""Hostile and broken files, made by hand: each ends in one clear line, runs nothing, and stays small."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.pickle import machine
from triport.parity_tests.fixtures.weights_samples import CASES, bounded, read_all
from triport.parity_tests.tool import small
from triport.weights.arrays import Inert, lazy
from triport.weights.commands.command import main
from triport.weights.commands.inspect import inspect
from triport.weights.files import npz_file, oneflow_writer, torch_file
from triport.weights.files.files import detect, read, write
from triport.weights.pickle.writer import scalar, whole

PROTO, STOP = b"\x80\x02", b"."
NUMPY = b"cnumpy.core.multiarray\n_reconstruct\n"


def ndarray(sizes: bytes, data: bytes = b"C\x00") -> bytes:
    """The opcodes of a float32 array of the sizes (opcodes too) and the data."""
    head = NUMPY + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
    return head + sizes + b"cnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R\x89" + data + b"tb"


def refused(path: Path, wanted: str) -> str:
    """The path is refused with one line that names it and says what is wrong, within bounds."""
    with bounded(), pytest.raises(UserError, match=wanted) as caught:
        read_all(read(path).tree)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line and len(line) < 600, line
    assert "MemoryError" not in line and "Traceback" not in line
    return line


def torch_zip(
    path: Path, pickled: bytes, members: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> Path:
    """A file in PyTorch's zip form around a pickle."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x/data.pkl", pickled)
        for name, data in {"x/byteorder": b"little", "x/version": b"3\n", **(members or {})}.items():
            archive.writestr(name, data)
    return path


def torch_legacy(path: Path, pickled: bytes, after: bytes = PROTO + b"]" + STOP) -> Path:
    """A file in PyTorch's legacy form around a pickle."""
    path.write_bytes(PROTO + torch_file.MAGIC + PROTO + b"M\xe9\x03" + STOP + PROTO + b"}" + STOP + pickled + after)
    return path


def paddle(path: Path, pickled: bytes) -> Path:
    path.write_bytes(pickled)
    return path


def oneflow(path: Path, pickled: bytes) -> Path:
    path.mkdir()
    (path / "pickled_data").write_bytes(pickled)
    return path


CONTAINERS = {"torch.pth": torch_zip, "legacy.pth": torch_legacy, "paddle.pd": paddle, "oneflow": oneflow}
Container = Callable[[Path, bytes], Path]
everywhere = pytest.mark.parametrize("name, container", CONTAINERS.items(), ids=CONTAINERS)


# ---------------------------------------------------------------- no code
class Attack:
    """Its pickle makes a file when it is loaded the ordinary way."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@everywhere
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_code_does_not(name: str, container: Container, protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "done"
    path = container(tmp_path / name, pickle.dumps(Attack(target), protocol))
    refused(path, r"asks for (posix|nt)\.mkdir, which is not among the harmless constructors")
    stored: dict[str, object] = {"protocol_version": 1, "data": {"model": 1, "x": Attack(target)}}
    pickled = pickle.dumps(stored if name == "oneflow" else stored["data"], protocol)
    tree = read(container(tmp_path / f"beside-{name}", pickled)).tree
    assert tree == {"model": 1, "x": Inert(f"{os.mkdir.__module__}.mkdir")}  # inert: the name, and nothing else of it
    assert not target.exists()
    pickle.loads(pickled)
    assert target.exists()  # it would have


@everywhere
@pytest.mark.parametrize(
    "called",
    ["os system", "builtins eval", "builtins exec", "builtins __import__", "__builtin__ eval", "builtins getattr",
     "builtins print", "subprocess Popen", "torch load", "torch.storage _load_from_bytes", "numpy load", "torch",
     "numpy.f2py.crackfortran getlincoef", "torch._utils _rebuild_qtensor", "operator attrgetter", "functools partial",
     "types FunctionType",
     "triport.weights.files.files write", "collections OrderedDict.update", "numpy ndarray.tofile",
     "argparse Namespace.__init__", "codecs decode"],
)  # fmt: skip
def test_no_function_outside_the_table_is_called(name: str, container: Container, called: str, tmp_path: Path) -> None:
    module, _, function = called.partition(" ")
    pickled = PROTO + f"c{module}\n{function}\n".encode() + scalar("x") + b"\x85R" + STOP
    refused(container(tmp_path / name, pickled), "not among the harmless|impossible way")


def test_a_whole_model_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "a.pth", PROTO + b"ctorch.nn.modules.linear\nLinear\n)\x81.")
    assert refused(path, "asks for torch.nn.modules.linear.Linear").endswith("state_dict() instead")


def test_getattr_is_refused_even_on_what_may_be_named(tmp_path: Path) -> None:
    pickled = PROTO + b"c__builtin__\ngetattr\ncargparse\nNamespace\n" + scalar("__init__") + b"\x86R" + STOP
    refused(paddle(tmp_path / "x.pd", pickled), "builtins.getattr, which is not among the harmless constructors")


# ---------------------------------------------------------------- pickles that are too much
BOMBS: dict[str, tuple[bytes, str]] = {
    "a list in itself": (b"]q\x00h\x00a", "contains itself"),
    "a dict in itself": (b"}q\x00" + scalar("a") + b"h\x00s", "contains itself"),
    "lists nested without end": (b"]" * 90_000 + b"a" * 89_999, "nested deeper than 64"),
    "tuples nested without end": (b")" + b"\x85" * 90_000, "nested deeper than 64"),
    "a list doubled 60 times": (
        b"(K\x01q\x00" + b"](h\x00h\x00eq\x00" * 60 + b"1h\x00",
        "describes more than 1000000 values",
    ),
    "a tuple doubled 60 times": (b"K\x01q\x00" + b"h\x00\x86q\x00" * 60, "describes more than 1000000 values"),
    "a doubled tuple as a key": (
        b"K\x01q\x00" + b"h\x00\x86q\x00" * 60 + b"q\x01}h\x01K\x01s",
        "neither a name nor a number",
    ),
    "a doubled tuple as a class": (b"K\x01q\x00" + b"h\x00\x86q\x00" * 60 + b"h\x00\x93", "impossible way"),
    "a class of a long name": (b"c" + b"a" * 4000 + b"\nb\n", "impossible way"),
    "numbers of one hash": (
        b"}("
        + b"".join(b"\x8a\x20" + (n * (2**61 - 1)).to_bytes(32, "little") + b"N" for n in range(2, 300_000))
        + b"u",
        "neither a name nor a number",
    ),
    "a doubled tuple in a call": (
        b"K\x01q\x00" + b"h\x00\x86q\x00" * 60 + b"q\x01ccollections\nOrderedDict\nh\x01\x85R",
        "neither a name nor a number",
    ),
    "a doubled tuple as a shape": (
        b"K\x01q\x00" + b"h\x00\x86q\x00" * 60 + b"q\x01" + ndarray(b"h\x01"),
        "shape holds something else",
    ),
    "a million operations": (b"]" * 1_200_000, "more than 1000000 operations"),
    "a list copied without end": (
        b"](" + b"K\x01" * 5000 + b"e\x85q\x01c__builtin__\ntuple\nq\x00" + b"0h\x00h\x01R" * 90_000,
        "more than 1000000 operations",
    ),
    "attributes copied without end": (
        b"}("
        + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(5000))
        + b"uq\x00"
        + b"0cargparse\nNamespace\n)Rh\x00b" * 20_000,
        "more than 1000000 operations",
    ),
    "a call with a thousand arguments": (b"ccollections\nOrderedDict\n(" + b"N" * 1000 + b"tR", "1000 arguments"),
    "an integer of gigabytes": (b"\x8b\xff\xff\xff\x7f", "an integer of 2147483647 bytes"),
    "an integer of a megabyte": (
        b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20),
        "an integer of 1048576 bytes",
    ),
    "a text of gigabytes": (b"X\xff\xff\xff\x7f", "announces 2147483647 bytes"),
    "a text of exabytes": (b"\x8d" + b"\xff" * 7 + b"\x0f", "announces 1152921504606846975 bytes"),
    "bytes of exabytes": (b"\x8e" + b"\xff" * 7 + b"\x0f", "announces"),
    "a name without end": (b"c" + b"a" * 9000, "endless line"),
    "a key of kilobytes": (b"}" + scalar("a" * 5000) + b"K\x01s", "neither a name nor a number"),
    "a text of 20 MB": (scalar("a" * (20 << 20)), "should be small"),
}


@everywhere
@pytest.mark.parametrize("bomb", BOMBS)
def test_pickles_that_are_too_much_end_soon_and_small(
    name: str, container: Container, bomb: str, tmp_path: Path
) -> None:
    pickled, wanted = BOMBS[bomb]
    refused(container(tmp_path / name, PROTO + pickled + STOP), wanted)


BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing on the stack": (b"", "ends in the middle"),
    "two values": (b"NN", "ends in the middle"),
    "an open mark": (b"N(", "ends in the middle"),
    "a pop below": (b"0", "end but no beginning"),
    "a tuple of nothing": (b"\x86", "has not put"),
    "a list without a mark": (b"]Ne", "end but no beginning"),
    "an item across a mark": (b"}(NNs", "treats something|has not put"),
    "a key twice": (b"}(" + (scalar("a") + b"N") * 2 + b"u", "names 'a' twice"),
    "a key without a value": (b"}(" + scalar("a") + b"u", "no value"),
    "a key that is a list": (b"}]Ns", "neither a name nor a number"),
    "a key that moves the cursor": (b"}" + scalar("a\x1b[2J") + b"Ns", "unprintable name"),
    "a text that is none": (b"X\x02\0\0\0\xff\xfe", "not UTF-8"),
    "an unknown memory": (b"h\x07", "has not noted"),
    "a call of a number": (b"K\x01)R", "not a function"),
    "a call without a tuple": (b"ccollections\nOrderedDict\nNR", "not a function"),
    "a state for a number": (b"K\x01}b", "sets the state of a int"),
    "a state that is a list": (b"cargparse\nNamespace\n)\x81]b", "something else than a dict"),
    "an extension": (b"\x82\x01", "operation"),
    "a buffer outside": (b"\x97", "operation"),
    "an old instance": (b"(i__main__\nX\n", "operation"),
    "a persistent id as text": (b"P1\n", "operation"),
    "a dtype of objects": (b"cnumpy\ndtype\nX\x02\0\0\0O8\x89\x88\x87R", "asks for numpy.dtype of O8, which is not"),
    "a dtype of nothing": (b"cnumpy\ndtype\nX\x02\0\0\0(;\x89\x88\x87R", "numpy dtype of no known kind"),
    "an array never described": (NUMPY + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R", "never described"),
    "an array of another class": (NUMPY + b"cargparse\nNamespace\nK\x00\x85C\x01b\x87R", "other than numpy.ndarray"),
    "an array that is too long": (ndarray(b"(" + whole(2**40) + b"t", b"C\x04abcd"), "in 4 bytes"),
    "an array beyond numbers": (ndarray(b"(" + whole(2**61) * 3 + b"K\x00t"), "cannot exist"),
    "an array of negative size": (ndarray(b"(" + whole(-1) + b"t"), "something else than sizes"),
}  # fmt: skip


@everywhere
@pytest.mark.parametrize("broken", BROKEN)
def test_pickles_that_are_broken_say_how(name: str, container: Container, broken: str, tmp_path: Path) -> None:
    pickled, wanted = BROKEN[broken]
    refused(container(tmp_path / name, PROTO + pickled + STOP), wanted)


def test_the_work_on_a_real_checkpoint_is_far_from_the_limit(tmp_path: Path) -> None:
    state = {f"blocks.{n}.attn.qkv.weight": lazy(np.zeros(2, np.float32)) for n in range(1500)}
    adam = {n: {"step": 1, "exp_avg": lazy(np.zeros(2)), "exp_avg_sq": lazy(np.zeros(2))} for n in range(1500)}
    write(
        tmp_path / "x.pth",
        {"model": state, "optimizer": {"state": adam, "param_groups": [{"params": list(range(1500))}]}},
    )
    spent: list[int] = []
    ordinary = machine.Machine.result

    def result(self: machine.Machine) -> object:
        spent.append(machine.MAX_STEPS - self.steps)
        return ordinary(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.Machine, "result", result)
        tree = read(tmp_path / "x.pth").tree
    assert len(tree["optimizer"]["state"]) == 1500 and spent[0] < machine.MAX_STEPS / 2


# ---------------------------------------------------------------- PyTorch: storages and the zip archive
def storage(kind: bytes = b"Float", key: str = "0", count: int = 4) -> bytes:
    return (
        b"("
        + scalar("storage")
        + b"ctorch\n"
        + kind
        + b"Storage\n"
        + scalar(key)
        + scalar("cpu")
        + whole(count)
        + b"tQ"
    )


def tensor(offset: int, size: tuple[int, ...], stride: tuple[int, ...], stored: bytes = storage()) -> bytes:
    numbers = whole(offset) + b"(" + b"".join(map(whole, size)) + b"t(" + b"".join(map(whole, stride)) + b"t"
    return PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + numbers + b"\x89N" + b"tR" + STOP


TENSORS: dict[str, tuple[bytes, str]] = {
    "beyond the storage": (tensor(0, (5,), (1,)), "reaches to element 5 of a storage of 4"),
    "beyond by its offset": (tensor(2, (3,), (1,)), "reaches to element 5"),
    "beyond by its stride": (tensor(0, (2,), (2**40,)), "reaches to element"),
    "of negative offset": (tensor(-1, (1,), (1,)), "without a storage"),
    "of negative stride": (tensor(3, (2,), (-1,)), "something else than sizes"),
    "of negative size": (tensor(0, (-4,), (1,)), "something else than sizes"),
    "of other strides than sizes": (tensor(0, (4,), (1, 1)), "another number of strides"),
    "expanded without end": (tensor(0, (2**40,), (0,)), "describes a tensor of"),
    "expanded beyond numbers": (tensor(0, (2**30, 2**30, 2**30), (0, 0, 0)), "cannot exist"),
    "of 40 axes": (tensor(0, (1,) * 40, (1,) * 40), "at most 32"),
    "of a storage of another size": (tensor(0, (4,), (1,), storage(count=5)), "should have 20 bytes, the file has 16"),
    "of a storage of exabytes": (tensor(0, (4,), (1,), storage(count=2**61)), "should have|cannot exist"),
    "of a storage that is not there": (tensor(0, (4,), (1,), storage(key="1")), "lacks the storage '1'"),
    "of a storage elsewhere": (tensor(0, (4,), (1,), storage(key="../../../etc/passwd")), "lacks the storage"),
    "of an unknown storage": (tensor(0, (4,), (1,), storage(kind=b"Quantized")), "a storage in an unknown form"),
    "of no storage": (tensor(0, (4,), (1,), b"N"), "without a storage"),
    "in a whole module": (tensor(0, (4,), (1,), b"(" + scalar("module") + b"NNNtQ"), "a class in an unknown form"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_stay_inside_their_storage(case: str, tmp_path: Path) -> None:
    pickled, wanted = TENSORS[case]
    refused(torch_zip(tmp_path / "x.pth", pickled, {"x/data/0": bytes(16)}), wanted)


def test_strides_of_axes_of_one_may_be_anything(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "x.pth", tensor(3, (1, 1, 1), (2**40, 2**41, 2**42)), {"x/data/0": bytes(16)})
    assert read_all(read(path).tree) == 4


def test_a_storage_is_described_once(tmp_path: Path) -> None:
    one, two = tensor(0, (4,), (1,))[2:-1], tensor(0, (2,), (1,), storage(b"Double", count=2))[2:-1]
    refused(
        torch_zip(tmp_path / "x.pth", PROTO + b"](" + one + two + b"e" + STOP, {"x/data/0": bytes(16)}), "in two ways"
    )


def test_many_expanded_tensors_are_too_much_together(tmp_path: Path) -> None:
    one = tensor(0, (1 << 20,), (0,))[2:-1]
    refused(
        torch_zip(tmp_path / "x.pth", PROTO + b"](" + one * 30 + b"e" + STOP, {"x/data/0": bytes(16)}),
        "far more than it holds",
    )


def test_a_flipped_bit_in_a_storage_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", {"w": np.full(100, 1.5)})
    raw = bytearray((tmp_path / "x.pth").read_bytes())
    raw[raw.index(struct.pack("<d", 1.5) * 3) + 80] ^= 4
    (tmp_path / "x.pth").write_bytes(raw)
    refused(tmp_path / "x.pth", "does not match its checksum")


@pytest.mark.parametrize(
    "keys, storages, wanted",
    [
        (b"]" + scalar("0") + b"a", struct.pack("<q", 4) + bytes(15), "ends too early"),
        (b"]" + scalar("0") + b"a", struct.pack("<q", 2**60), "should have 16 bytes"),
        (b"]" + scalar("0") + b"a", struct.pack("<q", -1), "should have 16 bytes"),
        (b"]" + scalar("7") + b"a", struct.pack("<q", 4) + bytes(16), "no tensor uses"),
        (b"]", b"", "does not list"),
        (b"N", b"", "does not list"),
    ],
)
def test_legacy_storages_are_as_long_as_they_say(keys: bytes, storages: bytes, wanted: str, tmp_path: Path) -> None:
    refused(torch_legacy(tmp_path / "x.pth", tensor(0, (4,), (1,)), PROTO + keys + STOP + storages), wanted)


def test_zip_archives_are_checked_against_their_table(tmp_path: Path) -> None:
    good = tensor(0, (4,), (1,))
    path = torch_zip(tmp_path / "deflated.pth", good, {"x/data/0": bytes(16)}, zipfile.ZIP_DEFLATED)
    refused(path, "is compressed")
    refused(torch_zip(tmp_path / "up.pth", good, {"../data/0": bytes(16)}), "leads out of the archive")
    refused(torch_zip(tmp_path / "root.pth", good, {"/etc/passwd": bytes(16)}), "leads out of the archive")
    refused(torch_zip(tmp_path / "long.pth", good, {"x/" * 3000: bytes(16)}), "endless name")
    refused(torch_zip(tmp_path / "script.pth", good, {"x/constants.pkl": b"", "x/data/0": bytes(16)}), "TorchScript")
    refused(
        torch_zip(tmp_path / "order.pth", good, {"x/byteorder": b"middle", "x/data/0": bytes(16)}), "twice|byte order"
    )
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = torch_zip(tmp_path / "twice.pth", good, {"x/data.pkl": good})
    refused(path, "names the member 'x/data.pkl' twice")
    raw = torch_zip(tmp_path / "good.pth", good, {"x/data/0": bytes(16)}).read_bytes()
    assert read_all(read(tmp_path / "good.pth").tree) == 16
    end = raw.rindex(b"PK\x05\x06")
    table = raw.index(b"PK\x01\x02")
    for name, at, value, wanted in (
        ("count", end + 10, b"\xff\xff", "table"), ("start", end + 16, b"\xf0\xff\xff\xff", "not where it says"),
        ("size", table + 24, b"\xff\xff\xff\x7f", "announces"),
        ("where", table + 42, b"\xf0\xff\x00\x00", "ends too early"),
        ("encrypted", table + 8, b"\x01\x00", "encrypted"), ("method", table + 10, b"\x63\x00", "method 99"),
        ("local", 0, b"PK\x07\x08", "not a known file of weights|not where the table says"),
    ):  # fmt: skip
        (tmp_path / f"{name}.pth").write_bytes(raw[:at] + value + raw[at + len(value) :])
        refused(tmp_path / f"{name}.pth", wanted)


def test_members_do_not_overlap(tmp_path: Path) -> None:
    raw = bytearray(
        torch_zip(
            tmp_path / "x.pth", tensor(0, (4,), (1,)), {"x/data/0": bytes(16), "x/data/1": bytes(16)}
        ).read_bytes()
    )
    entries = [at for at in range(len(raw)) if raw[at : at + 4] == b"PK\x01\x02"]
    one, two = entries[-2:]
    raw[two + 42 : two + 46] = raw[one + 42 : one + 46]
    raw[two + 46 : two + 54] = raw[one + 46 : one + 54]
    (tmp_path / "x.pth").write_bytes(raw)
    refused(tmp_path / "x.pth", "twice|overlaps|not where")


# ---------------------------------------------------------------- npz
def npz(path: Path, header: str, data: bytes = b"", method: int = zipfile.ZIP_STORED) -> Path:
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "header, wanted",
    [
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "dtype '|O', not of numbers"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "does not describe"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }", "its header says"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 18 + ", " + "9" * 18 + "), }", "cannot exist"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "does not describe"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1e9,), }", "does not describe"),
        ("__import__('os').system('touch x')", "does not describe"),
        ("(" * 3000, "does not describe"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 3000 + ",), }", "something else than sizes"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 40 + "), }", "at most 32"),
    ],
)
def test_headers_of_npz_are_read_not_evaluated(header: str, wanted: str, tmp_path: Path) -> None:
    refused(npz(tmp_path / "x.npz", header, bytes(4)), wanted.replace("|", r"\|"))


def test_archives_that_unpack_to_too_much_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1 << 23))
    assert read_all(read(tmp_path / "x.npz").tree) == 1 << 26
    monkeypatch.setattr(npz_file, "SLACK", 1 << 20)  # a real one would take long to make
    refused(tmp_path / "x.npz", "a zip bomb")
    raw = bytearray(
        npz(
            tmp_path / "y.npz", "{'descr': '|u1', 'fortran_order': False, 'shape': (5000,), }", bytes(5000), 8
        ).read_bytes()
    )
    at = raw.index(b"PK\x01\x02") + 24
    raw[at : at + 4] = struct.pack("<I", 5000)  # less than it unpacks to
    (tmp_path / "y.npz").write_bytes(raw)
    refused(tmp_path / "y.npz", "its header says")
    raw[at : at + 4] = struct.pack("<I", 1 << 30)
    (tmp_path / "y.npz").write_bytes(raw)
    refused(tmp_path / "y.npz", "announces")


@pytest.mark.parametrize(("megabytes", "bomb"), [(300, True), (60, False)])
def test_inspecting_the_values_of_a_small_archive_takes_memory_by_its_size(
    megabytes: int, bomb: bool, tmp_path: Path
) -> None:
    """Measured in a process of its own: a refused bomb costs nothing, an accepted archive its largest array twice."""
    shapes = {"cls_token": (1, 1, 32), "blocks.0.attn.qkv.weight": (megabytes << 13, 32)}
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, shape in shapes.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
                for _ in range(int(np.prod(shape)) * 4 >> 20 or 1):
                    file.write(bytes(min(1 << 20, int(np.prod(shape)) * 4)))
    assert (tmp_path / "x.npz").stat().st_size < 500_000
    code = "import resource, sys; from triport.weights.commands.command import main; "
    code += "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024; before = peak(); "
    code += f"done = main(['inspect', {str(tmp_path / 'x.npz')!r}, '--values', '--tensors']); "
    code += "print(done, peak() - before, file=sys.stderr)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = out.stderr.splitlines()
    _, grown = map(int, lines[-1].split())
    assert grown <= (0 if bomb else 2) * megabytes * 1_100_000 + (40 << 20)
    assert (len(lines) == 2 and "a zip bomb" in lines[0]) if bomb else "zip bomb" not in out.stderr


def test_a_deflated_member_that_is_damaged_says_so(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 9, 20_000))
    raw = (tmp_path / "x.npz").read_bytes()
    for at in range(2000, len(raw) - 200, 97):
        changed = bytearray(raw)
        changed[at] ^= 0x55
        (tmp_path / "x.npz").write_bytes(changed)
        refused(tmp_path / "x.npz", "does not unpack to what it announces")


# ---------------------------------------------------------------- safetensors
def tensors_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: object = (1,), offsets: object = (0, 4), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "header, length, wanted",
    [
        ({"a": entry()}, 2**62, "not a known file of weights"),
        ({"a": entry()}, 1 << 24, "announces a header of 16777216 bytes"),
        ({"a": entry(offsets=(0, 8))}, None, "is cut short or damaged .*header"),
        ({"a": entry(offsets=(4, 0))}, None, "is cut short or damaged .*header"),
        ({"a": entry(offsets=(0, 4, 4))}, None, "is cut short or damaged .*header"),
        ({"a": entry(offsets="04")}, None, "is cut short or damaged .*header"),
        ({"a": entry(offsets=(2, 6))}, None, "is cut short or damaged .*header"),
        ({"a": entry(), "b": entry()}, None, "is cut short or damaged .*header"),
        ({"a": entry((2,), (0, 8))}, None, "is cut short or damaged .*header"),
        ({"a": entry((2**30, 2**30, 2**30), (0, 4))}, None, "is cut short or damaged .*header"),
        ({"a": entry((-1,))}, None, "is cut short or damaged .*header"),
        ({"a": entry((1.0,))}, None, "is cut short or damaged .*header"),
        ({"a": entry((True,))}, None, "is cut short or damaged .*header"),
        ({"a": entry(dtype="F33")}, None, "is cut short or damaged .*header"),
        ({"a": entry(dtype=["F32"])}, None, "is cut short or damaged .*header"),
        ({"a": [1]}, None, "is cut short or damaged .*header"),
        ({"a": entry((0, 2**62), (0, 0)), "b": entry()}, None, "cannot exist|sizes"),
        ({"a": entry((1,) * 100)}, None, "at most 32 numbers"),
        ({"a": entry((8,), dtype="F4")}, None, "F4, which numpy has no dtype for"),
        ({"__metadata__": {"a": 1}, "a": entry()}, None, "is cut short or damaged .*header"),
        (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', None, "has NaN"),
        (b'{"a": {"dtype": "F32", "shape": [1], "shape": [1], "data_offsets": [0, 4]}}', None, "names 'shape' twice"),
        (b'{"a": 1, "a": 2}', None, "names 'a' twice"),
        (b'{"a\\u0000": 1}', None, "unprintable"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "should be JSON is not"),
        (b'{"a": ' + b"9" * 5000 + b"}", None, "damaged|unknown way"),
        (b'{"a\xff": 1}', None, "damaged"),
        (b"{", None, "damaged"),
    ],
)
def test_headers_of_safetensors_are_checked_against_their_file(
    header: object, length: int | None, wanted: str, tmp_path: Path
) -> None:
    refused(tensors_file(tmp_path / "x.safetensors", header, bytes(4), length), wanted)


@pytest.mark.parametrize(
    "places, wanted",
    [
        ({"a": "../x.safetensors"}, "something else than safetensors files beside it"),
        ({"a": "/etc/passwd"}, "something else than safetensors files beside it"),
        ({"a": "sub/x.safetensors"}, "something else than safetensors files beside it"),
        ({"a": 1}, "something else than safetensors files beside it"),
        ({"a": ["x.safetensors"]}, "something else than safetensors files beside it"),
        ({"a": "x.safetensors", "b": "x.safetensors"}, "names 'b', which x.safetensors does not hold"),
        ({"b": "x.safetensors"}, "does not say that 'a' is in x.safetensors"),
        ({}, "without a weight_map"),
        (7, "without a weight_map"),
    ],
)
def test_an_index_leads_only_to_files_beside_it(places: object, wanted: str, tmp_path: Path) -> None:
    tensors_file(tmp_path / "x.safetensors", {"a": entry()}, bytes(4))
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    refused(tmp_path / "x.safetensors.index.json", wanted)


# ---------------------------------------------------------------- OneFlow
def flow_folder(path: Path, where: str = "tensor_0", meta: str | None = None, data: bytes | None = None) -> Path:
    oneflow_writer.write(path, {"w": lazy(np.arange(4, dtype=np.float32))})
    if where != "tensor_0":
        raw = (path / "pickled_data").read_bytes()
        (path / "pickled_data").write_bytes(raw.replace(scalar("tensor_0"), scalar(where)))
    if meta is not None:
        (path / "tensor_0" / "meta").write_text(meta)
    if data is not None:
        (path / "tensor_0" / "out").write_bytes(data)
    return path


@pytest.mark.parametrize(
    "where", ["../x", "/etc", "..", ".", "", "a/b", "tensor_0/../tensor_0", "tensor\x00", "a" * 300]
)
def test_tensors_of_oneflow_lie_beside_their_pickle(where: str, tmp_path: Path) -> None:
    refused(flow_folder(tmp_path / "x", where), "not a folder beside the pickle")


@pytest.mark.parametrize(
    "meta, wanted",
    [
        ("", "does not say shape and dtype"),
        ("shape {\n  dim: 4\n}\n", "does not say shape and dtype"),
        ("shape {\n  dim: -4\n}\ndata_type: kFloat\n", "does not say shape and dtype"),
        ("shape {\n  dim: 4\n}\ndata_type: kOFRecord\n", "does not say shape and dtype"),
        ("shape {\n  dim: 5\n}\ndata_type: kFloat\n", "has 16 bytes, its meta says"),
        ("shape {\n  dim: 4\n}\ndata_type: kDouble\n", "has 16 bytes, its meta says"),
        ("shape {\n" + "  dim: 9999999999\n" * 9 + "}\ndata_type: kFloat\n", "cannot exist"),
        ("shape {\n" + "  dim: 1\n" * 40 + "}\ndata_type: kFloat\n", "at most 32"),
        ("x" * 5000, "should be small"),
        ("shape {" + " " * 4000, "does not say shape and dtype"),
        ("shape {" + "dim:1 " * 600, "does not say shape and dtype"),
    ],
)
def test_metas_of_oneflow_are_checked_against_their_data(meta: str, wanted: str, tmp_path: Path) -> None:
    refused(flow_folder(tmp_path / "x", meta=meta), wanted)


def test_folders_of_oneflow_lack_nothing(tmp_path: Path) -> None:
    refused(flow_folder(tmp_path / "short", data=bytes(15)), "has 15 bytes")
    path = flow_folder(tmp_path / "gone")
    (path / "tensor_0" / "out").unlink()
    refused(path, "No such file")
    path = flow_folder(tmp_path / "later")
    tree = read(path).tree
    (path / "tensor_0" / "out").write_bytes(b"")
    with pytest.raises(UserError, match="has 0 bytes, 16 are announced"):
        read_all(tree)
    path = flow_folder(tmp_path / "pipe")
    (path / "tensor_0" / "out").unlink()
    os.mkfifo(path / "tensor_0" / "out")
    refused(path, "has 0 bytes|not a regular file")
    for name in ("../short", "nowhere", "", "a\nb", "\xff"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "last_checkpoint").write_text(name)
        refused(tmp_path / "run", "which is not one of its folders")


# ---------------------------------------------------------------- things that are not files of weights
def test_what_is_not_a_file_of_weights_is_named_for_what_it_is(tmp_path: Path) -> None:
    made = {
        "empty.pth": (b"", "is empty"),
        "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "page.pth": (b"<!DOCTYPE html><html>", "web page"),
        "x.pth.gz": (b"\x1f\x8b\x08", "gzip"),
        "x.h5": (b"\x89HDF\r\n", "HDF5"),
        "x.npy": (b"\x93NUMPY\x01\x00", "single .npy"),
        "x.tar": (bytes(257) + b"ustar" + bytes(250), "tar archive"),
        "x.txt": (b"hello there, this is text", "not a known file of weights"),
        "x.json": (b"[1]", "is JSON, not a file of weights"),
        "y.safetensors.index.json": (b"{}", "weight_map"),
        "z.bin.index.json": (b"{}", "weight_map"),
        "x.zip": (b"PK\x05\x06" + bytes(17), "zip archive"),
        "one": (b"\x80", "not a known file of weights"),
    }
    for name, (data, wanted) in made.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, wanted)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    refused(tmp_path / "other.zip", "of neither PyTorch nor numpy")
    refused(tmp_path / "missing.pth", "No such file")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "is a folder that holds no checkpoint")
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "not a regular file")
    refused(Path("/dev/zero"), "not a regular file")


def test_a_file_cut_short_while_it_is_open_is_not_a_crash(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", {"w": np.zeros(1 << 20)})
    tree = read(tmp_path / "x.safetensors").tree
    os.truncate(tmp_path / "x.safetensors", 4096)
    with pytest.raises(UserError, match="cut short while it was read"):
        read_all(tree)


@pytest.mark.parametrize(
    "name", ["torch/zip.pth.tar", "torch/legacy.pth.tar", "paddle/a2.pdparams", "paddle/b4.pd", "oneflow/plain.pkl"]
)
def test_a_file_cut_short_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    raw = (CASES / name).read_bytes()
    path = tmp_path / Path(name).name
    for length in [*range(0, len(raw) - 1, max(1, len(raw) // 150)), len(raw) - 1]:
        path.write_bytes(raw[:length])
        with bounded(), pytest.raises(UserError) as caught:
            read_all(read(path).tree)
        assert str(caught.value).startswith(f"{path}: ")


def test_other_files_cut_short_anywhere_are_refused(tmp_path: Path) -> None:
    for name in ("x.safetensors", "x.npz"):
        write(tmp_path / name, {"a": np.arange(5.0), "b": np.zeros((2, 2), np.int8)})
        raw = (tmp_path / name).read_bytes()
        for length in range(len(raw)):
            (tmp_path / name).write_bytes(raw[:length])
            with pytest.raises(UserError):
                read_all(read(tmp_path / name).tree)


def test_detect_asks_no_more_than_read(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"\x80\x02" + b"]" * 100)
    assert detect(tmp_path / "x.pth") == "paddle"
    refused(tmp_path / "x.pth", "ends too early")


def test_no_setting_lets_a_pickle_run(tmp_path: Path) -> None:
    """The project never calls Python's own unpickler, nor a loader that would."""
    root = Path(__file__).resolve().parents[2]
    unsafe = r"pickle\.(load|loads|Unpickler)\b|allow_pickle=True|weights_only=False|\beval\(|\bexec\("
    found = subprocess.run(["grep", "-rnE", unsafe, root / "weights"], capture_output=True, text=True)
    assert [line for line in found.stdout.splitlines() if ".py:" in line] == []


def test_a_header_of_safetensors_may_not_be_a_text_of_bytes(tmp_path: Path) -> None:
    stream = io.BytesIO(struct.pack("<Q", 2) + b"[]")
    (tmp_path / "x.safetensors").write_bytes(stream.getvalue())
    refused(tmp_path / "x.safetensors", "not a known file of weights")


RECIPES = [
    "[" * 60_000,
    "a=" + "[" * 1000,
    "a = [\n" * 8000,
    "a." * 30_000 + "b=1",
    "x=" + "{a=" * 300,
    "[a.b]\n" * 9000,
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda text: text[:6])
def test_a_recipe_in_metadata_costs_nothing(recipe: str, tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", small.arrays(small.MODELS["mae"]), "safetensors", {"recipe_toml": recipe})
    with bounded(1 << 28, 20):
        assert inspect(tmp_path / "a.safetensors").recipe is None


@pytest.mark.parametrize(
    "note", ['{"heads":' * 900 + "8" + "}" * 900, '{"a":' + "[" * 500 + "]" * 500 + "}", '{"a":NaN}']
)
def test_a_note_that_is_none_of_ours_is_not_believed(
    note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    write(path, small.arrays(small.MODELS["mae"]), "safetensors", {"provenance": note})
    for words in (["inspect", str(path)], ["convert", str(path), str(tmp_path / "b.pth")]):
        assert main([*words, "--json"]) == 0
        assert "earlier" not in json.loads(capsys.readouterr().out)["provenance"]
    assert not inspect(path).provenance


def test_a_part_of_a_whole_that_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors.index.json", {"x": lazy(np.ones(2)), "y": lazy(np.ones(3))}, "safetensors")
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{shard.name}: is cut short or damaged"):
        read(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: cannot be read"):
        read(tmp_path)
    write(tmp_path / "b", {"x": lazy(np.ones(2))}, "oneflow")
    (tmp_path / "b" / "tensor_0" / "meta").unlink()
    with pytest.raises(UserError, match="tensor_0: cannot be read"):
        read(tmp_path / "b")


# ---------------------------------------------------------------- PyTorch in shards
def shards(folder: Path, weight_map: object) -> Path:
    """Two .bin files and an index of pytorch_model.bin that says this of them."""
    for k in (1, 2):
        write(folder / f"pytorch_model-{k:05}-of-00002.bin", {f"w{k}": lazy(np.full(3, k, np.float32))})
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder / "pytorch_model.bin.index.json"


@pytest.mark.parametrize(
    ("weight_map", "wanted"),
    [
        ({}, "without a weight_map"),
        ([], "without a weight_map"),
        (None, "without a weight_map"),
        ({"w1": "../pytorch_model-00001-of-00002.bin"}, "something else than .bin files beside it"),
        ({"w1": "/etc/passwd"}, "something else than .bin files beside it"),
        ({"w1": "a/b.bin"}, "something else than .bin files beside it"),
        ({"w1": "..bin\x00.bin"}, "something else than .bin files beside it"),
        ({"w1": 3}, "something else than .bin files beside it"),
        ({"w1": ["x.bin"]}, "something else than .bin files beside it"),
        ({"w1": "pytorch_model-00002-of-00002.bin"}, "does not say that 'w2' is in"),
        ({"w1": "pytorch_model-00001-of-00002.bin", "w3": "pytorch_model-00001-of-00002.bin"}, "names 'w3'"),
    ],
)
def test_an_index_of_bin_files_is_not_trusted(weight_map: object, wanted: str, tmp_path: Path) -> None:
    refused(shards(tmp_path, weight_map), wanted)


def test_a_shard_runs_nothing_either(tmp_path: Path) -> None:
    index = shards(tmp_path, {"w1": "pytorch_model-00001-of-00002.bin", "w2": "pytorch_model-00002-of-00002.bin"})
    assert read_all(read(index).tree) == 24
    for data in (b"", b"<html>", b"\x80\x02cos\nsystem\nq\x00.", pickle.dumps({"w1": 3})):
        (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(data)
        with bounded(), pytest.raises(UserError, match=r"pytorch_model-00001-of-00002\.bin: |names 'w1', which"):
            read(index)
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"pytorch_model-00001-of-00002\.bin: cannot be read"):
        read(index)
