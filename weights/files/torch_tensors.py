"""What stands for PyTorch's storages and tensors while a pickle is read: stretches of the file, and views of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from triport.core.pickle.machine import Global
from triport.core.pickle.numpy_arrays import Pending, checked_numbers, checked_shape, ready
from triport.core.source import Damaged, Source
from triport.weights.arrays import DTYPES, Inert, Lazy
from triport.weights.pickle.constructors import common

Order = Literal["<", ">"]
STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128",
    "QInt8": "int8", "QUInt8": "uint8", "QInt32": "int32", "QUInt4x2": "uint8", "QUInt2x4": "uint8",  # quantized
}  # fmt: skip
CLASSES = {
    f"{module}.{kind}Storage": dtype
    for kind, dtype in STORAGES.items()
    for module in ("torch", "torch.cuda", "torch.storage")
}
CLASSES |= {"torch.storage.UntypedStorage": "uint8", "torch.UntypedStorage": "uint8"}
OVERLAP = 1 << 24  # an expanded tensor may be this much larger than its storage


class Storage(Pending):
    """The memory one or more tensors share: a stretch of the file, found only after the pickle in the legacy form."""

    def __init__(self, source: Source, key: str, dtype: str, count: int, order: Order) -> None:
        self.source, self.key, self.dtype, self.count = source, key, DTYPES[dtype].newbyteorder(order), count
        self.order, self.offset, self.crc = order, -1, 0

    @property
    def nbytes(self) -> int:
        """Bytes of the whole storage."""
        return self.count * self.dtype.itemsize

    def place(self, offset: int, length: int, crc: int = 0) -> None:
        """Say where the bytes are; Damaged if they are not as many as the pickle says."""
        if length != self.nbytes:
            raise Damaged(f"the storage {self.key[:80]!r} should have {self.nbytes} bytes, the file has {length}")
        self.source.check(offset, length)
        self.offset, self.crc = offset, crc

    def bytes(self) -> np.ndarray:
        """Return all bytes, checked against the checksum the first time."""
        data, crc = self.source.array(self.offset, self.nbytes), self.crc  # which another thread may take away
        if crc and zlib.crc32(data.data) != crc:
            raise Damaged(f"the storage {self.key[:80]!r} does not match its checksum: the file was damaged on its way")
        self.crc = 0
        return data

    def build(self, state: object) -> None:
        """No pickle sets the state of a storage."""
        raise Damaged("sets the state of a storage")

    def finish(self) -> Lazy:
        """A storage as a value is the array of all its elements."""
        return tensor(self, 0, (self.count,), (1,))


class Storages:
    """What the pickle's persistent ids stand for, and the stand-ins that make tensors of them."""

    def __init__(self, source: Source, order: Order, place: Callable[[Storage], None]) -> None:
        self.source, self.order, self.place = source, order, place
        self.found: dict[str, Storage] = {}

    def __call__(self, identity: Any) -> Storage | Global:
        """('storage', class, key, device, count[, None]) -> the storage; ('module', class, file, source) -> the class.

        The legacy form names classes derived from torch.nn.Module that way, with their source, which nobody reads.
        """
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            if not isinstance(identity[1], Global):
                raise Damaged("refers to a class in an unknown form")
            return identity[1]
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or not isinstance(identity[0], str):
            raise Damaged("refers to a storage in an unknown form")
        kind, key, count = identity[1], identity[2], identity[4]
        if (
            identity[0] != "storage"
            or not isinstance(kind, Global)
            or kind.name not in CLASSES
            or not isinstance(key, str)
        ):
            raise Damaged("refers to a storage in an unknown form")
        if len(identity) == 6 and identity[5] is not None:
            raise Damaged("uses storages inside storages, as PyTorch before 0.4 did; save it again with a newer one")
        dtype = CLASSES[kind.name]
        checked_shape((count,), 16)
        storage = self.found.get(key)
        if storage is None:
            storage = self.found[key] = Storage(self.source, key, dtype, count, self.order)
            self.place(storage)
        if (storage.count, storage.dtype) != (count, DTYPES[dtype].newbyteorder(self.order)):
            raise Damaged(f"describes the storage {key[:80]!r} in two ways")
        return storage

    def allowed(self) -> dict[str, Callable[..., Any]]:
        """Return the table of stand-ins for PyTorch's pickles."""
        table = common(self.source)
        table |= dict.fromkeys(CLASSES, _only_named)
        table |= {f"torch.{name}": _only_named for name in (*DTYPES, "Tensor")}
        table |= {
            "torch._utils._rebuild_tensor": lambda storage, offset, size, stride: tensor(storage, offset, size, stride),
            "torch._utils._rebuild_tensor_v2": _tensor_2,
            "torch._utils._rebuild_tensor_v3": _tensor_3,
            "torch._utils._rebuild_qtensor": lambda *_: Inert("torch._utils._rebuild_qtensor"),
            "torch._utils._rebuild_parameter": lambda data, grad, hooks: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, grad, hooks, state: data,
            "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
            "torch.nn.parameter.Parameter": lambda data, grad=True: data,
            "torch.Size": _size,
            "torch.device": _device,
        }
        return table


def _tensor_2(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None) -> Lazy:
    """torch._utils._rebuild_tensor_v2."""
    if isinstance(metadata, dict) and (metadata.get("conj") or metadata.get("neg")):
        raise Damaged(
            "holds a tensor that stands for the conjugate or negative of its storage; save its resolve_conj()"
        )
    return tensor(storage, offset, size, stride)


def _tensor_3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Lazy:
    """torch._utils._rebuild_tensor_v3: dtypes without a storage class of their own."""
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
    if name not in DTYPES:
        raise Damaged("holds a tensor of an unknown dtype")
    return tensor(storage, offset, size, stride, DTYPES[name])


def _tensor_of_type(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor that carries Python attributes, which are dropped."""
    if not isinstance(rebuild, Global) or rebuild.name not in (
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
    ):
        return Inert(kind.name if isinstance(kind, Global) else "torch._tensor._rebuild_from_type_v2")
    if not isinstance(arguments, tuple) or len(arguments) > 8:
        raise Damaged("rebuilds a tensor in an unknown way")
    return rebuild.call(*arguments)


def _only_named(*_: object) -> object:
    """A class that is named but never called."""
    raise Damaged("makes an object in a way no checkpoint needs")


def _size(items: object = ()) -> tuple[Any, ...]:
    """torch.Size as a tuple."""
    return checked_numbers(items)


def _device(kind: object, index: object = None) -> str:
    """torch.device as text."""
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise Damaged("names a device in an unknown way")
    return kind if index is None else f"{kind}:{index}"


def tensor(storage: object, offset: object, size: object, stride: object, dtype: np.dtype[Any] | None = None) -> Lazy:
    """Describe the view of a storage with size and stride in elements; Damaged where it would leave the storage."""
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise Damaged("describes a tensor without a storage")
    kind = storage.dtype if dtype is None else dtype.newbyteorder(storage.order)
    sizes, strides = checked_shape(size, kind.itemsize), checked_numbers(stride)
    if len(sizes) != len(strides):
        raise Damaged("describes a tensor with another number of strides than sizes")
    count = storage.nbytes // kind.itemsize
    reach = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + 1
    whole = kind.isnative and strides == row_strides(sizes) and math.prod(sizes) * kind.itemsize == storage.nbytes
    described = Lazy(
        sizes,
        kind.name,
        lambda: _view(storage, kind, offset, sizes, strides),
        where=storage.source.path,
        crc=storage.crc if whole else 0,
    )
    if described.size and reach > count:
        raise Damaged(f"describes a tensor that reaches to element {reach} of a storage of {count}")
    if described.nbytes > storage.nbytes + OVERLAP:
        raise Damaged(f"describes a tensor of {described.nbytes} bytes in a storage of {storage.nbytes}")
    return described


def row_strides(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The strides in elements of an array of these sizes in C order."""
    return tuple(math.prod(max(n, 1) for n in sizes[axis + 1 :]) for axis in range(len(sizes)))


def _view(
    storage: Storage, kind: np.dtype[Any], offset: int, sizes: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray:
    """Return the tensor's values in C order; without copying where they stand in that order already."""
    if 0 in sizes:
        return np.empty(sizes, kind.newbyteorder("="))
    reach = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + 1
    flat = ready(storage.bytes()[offset * kind.itemsize : reach * kind.itemsize], kind)
    steps = [step * kind.itemsize for step in strides]
    return np.asarray(np.ndarray(sizes, flat.dtype, flat.view(np.uint8), 0, steps), order="C")
