"""Files of `torch.save` and safetensors: tensors by name, read without executing anything."""

import io
import mmap
import pickle
import pickletools
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from steadymap.models.registry import read_state

# The pickle of a state dict stays below a hundredth of these.
_MAX_PICKLE_BYTES = 1 << 30

_MAX_OPCODES = 20_000_000

_MAX_NAMES = 10_000

# Python hashes a tuple by recursion in C, which crashes some 100,000 levels down.
_MAX_TUPLE_DEPTH = 1000

_MAGIC = 0x1950A86A20F9469CFC6C

_PROTOCOL = 1001

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}


class CheckpointError(ValueError):
    """A weights file that can't be read: with file, reason and remedy."""


class _Malformed(Exception):
    """Reason why bytes can't be read; `read_checkpoint` adds file and remedy."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make any `ValueError` about a weights file a `CheckpointError` that begins with its path."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def _printable(text: str) -> str:
    """Text of a file, fit for a message."""
    return (text if text.isprintable() else ascii(text))[:200]


class _StandIn(type):
    """Stand-in for a class or function that a pickle names, which is never imported.

    Calling it, setting its state or adding items to it gives the stand-in again, but for what a
    state dict needs: these names have a function of ours. It is a class, for pickle makes objects
    of nothing else.
    """

    module: str
    name: str
    is_called: bool
    result: Callable[..., Any]

    def __new__(mcs, module: str, name: str, function: Callable[..., Any] | None = None) -> Any:
        def result(cls: _StandIn, *arguments: Any, **_: Any) -> Any:
            if function is not None:
                return function(*arguments)
            cls.is_called = True
            return cls

        members: dict[str, Any] = {"module": module, "name": name, "is_called": False}
        members |= {"__new__": result, "result": staticmethod(result)}
        return super().__new__(mcs, "StandIn", (), members)

    def __init__(cls, *_: Any) -> None:
        pass

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return cls.result(cls, *arguments, **options)

    def _ignore(cls, *_: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore

    def __str__(cls) -> str:
        return _printable(f"{cls.module}.{cls.name}")


class _Dict(dict):
    """Dict of a pickle, which may come with attributes; they are ignored."""

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class _Storage:
    """Numbers in the file: elements `start` to `start + size` of the storage `key`."""

    key: str
    dtype: torch.dtype | None
    numel: int
    start: int
    size: int

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize if self.dtype else 1

    def __setstate__(self, state: Any) -> None:
        """Ignore what a pickle would change."""


@dataclass(frozen=True)
class _TensorSpec:
    """A tensor before its numbers are read."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        """Ignore what a pickle would change."""


def _natural(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _Malformed(f"{what} is {_shown(value)[:40]!r}, not a whole number")
    return value


def _shown(value: Any) -> str:
    """A value of a file for a message; only the type of a container, which may be huge."""
    plain = value is None or isinstance(value, (str, int, float, _StandIn))
    return _printable(str(value)) if plain else f"a {type(value).__name__}"


def _rebuild_dict(pairs: Any = None, *_: Any) -> _Dict:
    items: Any = pairs if isinstance(pairs, (list, dict)) else ()
    return _Dict(items)


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *_: Any, dtype: Any = None
) -> _TensorSpec:
    if not isinstance(storage, _Storage):
        raise _Malformed("a tensor without a storage")
    if isinstance(dtype, _StandIn):
        dtype = vars(torch).get(dtype.name) if dtype.module == "torch" else None
    dtype = dtype or storage.dtype
    if not isinstance(dtype, torch.dtype):
        raise _Malformed("a tensor of an unknown dtype")
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        raise _Malformed("a tensor whose shape and strides do not match")
    shape = tuple(_natural(value, "a tensor's size") for value in shape)
    stride = tuple(_natural(value, "a tensor's stride") for value in stride)
    first, count, last = _natural(offset, "a tensor's offset"), 1, 0
    for size, step in zip(shape, stride, strict=True):
        count *= size
        last += (size - 1) * step
    available = storage.size * storage.itemsize // dtype.itemsize
    # An expanded tensor could claim any size.
    if count and (first + last >= available or count > available):
        raise _Malformed(f"a tensor of shape {shape} reaches beyond its {available} numbers")
    return _TensorSpec(storage, dtype, first, shape, stride)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> _TensorSpec:
    return _rebuild_tensor(storage, offset, shape, stride, dtype=dtype)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _rebuild_from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    if not isinstance(function, _StandIn):
        raise _Malformed("a tensor that no function rebuilds")
    return function(*arguments)


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _rebuild_dict,
    ("collections", "defaultdict"): _rebuild_dict,
    ("builtins", "dict"): _rebuild_dict,
    ("__builtin__", "dict"): _rebuild_dict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that replaces every class and function by a stand-in, and tensors by their specs.

    Plain values come about as in `pickle`; nothing is imported, and nothing is called but
    `_FUNCTIONS` ("Restricting Globals" in the documentation of `pickle`).
    """

    def __init__(self, stream: IO[bytes], storage: Callable[[Any], Any]):
        # Python 2 wrote bytes where names belong.
        super().__init__(stream, encoding="latin1")
        self._storage = storage
        self._names: dict[tuple[str, str], _StandIn] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            if len(self._names) == _MAX_NAMES:
                raise _Malformed(f"more than {_MAX_NAMES} names of classes and functions")
            self._names[module, name] = _StandIn(module, name, _FUNCTIONS.get((module, name)))
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return self._storage(pid)

    @property
    def unknown(self) -> list[str]:
        """Classes and functions that the pickle would have called."""
        return sorted({str(name) for name in self._names.values() if name.is_called})


def _check_limits(stream: IO[bytes]) -> None:
    """Refuse a pickle that would fill the memory or overflow the stack when it is read."""
    memo: dict[int, int] = {}
    depths: list[int] = []
    marks: list[int] = []
    for count, (opcode, operand, position) in enumerate(pickletools.genops(stream)):
        name, before, argument = opcode.name, opcode.stack_before, cast("Any", operand)
        if count > _MAX_OPCODES:
            raise _Malformed(f"more than {_MAX_OPCODES} pickle opcodes")
        if name.startswith("EXT") or ("PUT" in name and argument > (position or 0)):
            # Extensions name objects of this process; a memo is as long as its largest index.
            raise _Malformed(f"the pickle opcode {name} {argument}")
        first = len(depths) - len(before)
        if pickletools.markobject in before:
            first = marks.pop() - before.index(pickletools.markobject)
        if first < 0:
            raise _Malformed(f"the pickle opcode {name} on too few values")
        depth = max(depths[first:], default=0) + name.startswith("TUPLE")
        if depth > _MAX_TUPLE_DEPTH:
            raise _Malformed(f"tuples in tuples, more than {_MAX_TUPLE_DEPTH} deep")
        if "GET" in name:
            depth = memo[argument]
        elif "PUT" in name or name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = depths[-1]
        del depths[first:]
        if name == "MARK":
            marks.append(len(depths))
        elif name == "POP" and marks and marks[-1] == first:
            marks.pop()
        depths += [depth] * len(opcode.stack_after)


def _unpickle(
    stream: IO[bytes] | mmap.mmap, storage: Callable[[Any], Any]
) -> tuple[Any, list[str]]:
    """Value of the next pickle of a stream, and the names that were left alone."""
    opened = cast("IO[bytes]", stream)
    begin = opened.tell()
    try:
        _check_limits(opened)
        opened.seek(begin)
        unpickler = _Unpickler(opened, storage)
        return unpickler.load(), unpickler.unknown
    except (
        *(pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError),
        *(OverflowError, MemoryError, EOFError, struct.error),
    ) as error:
        raise _Malformed(f"broken pickle: {_printable(str(error))}") from None


def _parse_storage(identifier: Any) -> Any:
    """Storage of a persistent id, or the class that torch wrapped in one."""
    if not isinstance(identifier, tuple) or len(identifier) < 2:
        raise _Malformed(f"the persistent id {_shown(identifier)[:40]!r}")
    if identifier[0] == "module":
        return identifier[1]
    if identifier[0] != "storage" or len(identifier) < 5:
        raise _Malformed(f"the persistent id {_shown(identifier[0])[:40]!r}")
    kind, key, _, numel, *view = identifier[1:]
    name = kind.name if isinstance(kind, _StandIn) else _shown(kind)
    if name not in _STORAGE_DTYPES and name != "UntypedStorage":
        raise _Malformed(f"a storage of type {_printable(name)[:40]!r}")
    if not isinstance(key, (str, int)):
        raise _Malformed("a storage without a name")
    numel, start = _natural(numel, "a storage's size"), 0
    size = numel
    if view and view[0] is not None:
        start, size = (_natural(value, "a view of a storage") for value in view[0][1:3])
        if start + size > numel:
            raise _Malformed("a view that reaches beyond its storage")
    return _Storage(str(key), _STORAGE_DTYPES.get(name), numel, start, size)


@dataclass
class Checkpoint:
    """Content of a weights file.

    Attributes
    ----------
    path : Path
        The file.
    format : str
        `safetensors`, `torch zip` or `torch legacy`.
    tensors : dict of str to Tensor
        The weights, under the names that they have in the file.
    within : str
        Keys down to them, dotted; empty where they are the outermost.
    unknown : list of str
        Classes and functions that the pickle names and that were left alone.
    """

    path: Path
    format: str
    tensors: dict[str, Tensor]
    within: str = ""
    unknown: list[str] = field(default_factory=list)


# Value of the pickle, the names that were left alone, and a function that reads a storage.
_Content = tuple[Any, list[str], Callable[[_Storage], bytes]]


@contextmanager
def _open_zip(path: Path) -> Iterator[_Content]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise _Malformed(f"a zip archive with {len(pickles)} data.pkl, torch writes one")
        root = pickles[0].removesuffix("data.pkl")
        # torch compresses nothing; a compressed member could unpack to any size.
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > path.stat().st_size:
            raise _Malformed("compressed members, or larger ones than the file: torch writes none")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise _Malformed("numbers in big-endian order")
        if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE_BYTES:
            raise _Malformed("a pickle of more than 1 GiB")
        value, unknown = _unpickle(io.BytesIO(archive.read(pickles[0])), _parse_storage)

        def read(storage: _Storage) -> bytes:
            try:
                return archive.read(f"{root}data/{storage.key}")
            except KeyError:
                raise _Malformed(f"the storage {storage.key!r} is missing") from None

        yield value, unknown, read


@contextmanager
def _open_legacy(path: Path) -> Iterator[_Content]:
    with (
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        itemsizes: dict[str, int] = {}

        def parse(identifier: Any) -> Any:
            storage = _parse_storage(identifier)
            if isinstance(storage, _Storage):
                itemsizes[storage.key] = storage.itemsize
            return storage

        magic, protocol, system = (_unpickle(content, _parse_storage)[0] for _ in range(3))
        if magic != _MAGIC or protocol != _PROTOCOL:
            raise _Malformed("a pickle that torch.save did not write")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise _Malformed("numbers in big-endian order")
        value, unknown = _unpickle(content, parse)
        keys, _ = _unpickle(content, _parse_storage)
        if not isinstance(keys, list):
            raise _Malformed("no list of storages")
        extents: dict[str, slice] = {}
        begin = content.tell()
        for key in map(str, keys):
            if key not in itemsizes or len(content) < begin + 8:
                raise _Malformed(f"the storage {key!r} is missing: the file ends early")
            (numel,) = struct.unpack_from("<q", content, begin)
            end = begin + 8 + numel * itemsizes[key]
            if numel < 0 or end > len(content):
                raise _Malformed(f"the storage {key!r} is cut off: the file ends early")
            extents[key] = slice(begin + 8, end)
            begin = end

        def read(storage: _Storage) -> bytes:
            if storage.key not in extents:
                raise _Malformed(f"the storage {storage.key!r} is missing")
            return content[extents[storage.key]]

        yield value, unknown, read


def _state_dicts(value: Any, within: str = "", depth: int = 0) -> Iterable[tuple[str, dict]]:
    """Every dict of tensors under string keys, with the keys that lead to it."""
    if not isinstance(value, dict) or depth > 4:
        return
    names = [name for name in value if isinstance(name, str)]
    if len(names) == len(value) and any(isinstance(v, _TensorSpec) for v in value.values()):
        others = [v for v in value.values() if not isinstance(v, _TensorSpec)]
        if not any(isinstance(v, dict) for v in others):
            yield within, value
            return
    for name in names:
        if not name.startswith(("optim", "schedul")):
            yield from _state_dicts(value[name], f"{within}.{name}" if within else name, depth + 1)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether shape, dtype and every bit are equal, so that NaN equals itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    first, second = (t.contiguous().flatten().view(torch.uint8) for t in (one, other))
    return torch.equal(first, second)


def _is_pure(state: dict) -> bool:
    return all(isinstance(value, _TensorSpec) for value in state.values())


def _n_kernels(state: dict) -> int:
    """Tensors of two dimensions or more, which a network has and its statistics lack."""
    return sum(isinstance(value, _TensorSpec) and len(value.shape) > 1 for value in state.values())


def _candidates(states: list[tuple[str, dict]]) -> list[tuple[str, dict]]:
    """Those of the dicts of tensors that may be the weights, with the keys that lead to each."""
    pure = [(key, state) for key, state in states if _is_pure(state)]
    # Notes among the weights, such as a decay, do not make a set another thing than its equals.
    least = min((n for _, state in pure if (n := _n_kernels(state))), default=1)
    networks = [
        (key, state)
        for key, state in states
        if _n_kernels(state) >= (1 if _is_pure(state) else least)
    ]
    return networks or pure or states


def _equal(one: dict, other: dict, read: Callable[[_Storage], bytes]) -> bool:
    if one == other:
        return True
    if set(one) != set(other) or not (_is_pure(one) and _is_pure(other)):
        return False
    first, second = _read_tensors(one, read), _read_tensors(other, read)
    return all(same_bits(first[name], second[name]) for name in first)


def _choose(
    value: Any, within: str | None, read: Callable[[_Storage], bytes]
) -> tuple[str, dict[str, _TensorSpec]]:
    """Choose the weights among all dicts of tensors; the keys down to them, and the weights.

    Several sets that differ are refused, unless `within` names one.
    """
    if isinstance(value, _StandIn):
        raise CheckpointError(
            f"holds a whole object of {value}, not its weights; save its state_dict() alone"
        )
    states = list(_state_dicts(value))
    if not states:
        keys = "no dict"
        if isinstance(value, dict):
            keys = ", ".join(_shown(key) for key in list(value)[:8])
        raise CheckpointError(f"holds no tensors by name (found: {keys}); save model.state_dict()")
    candidates = _candidates(states)
    if within is not None:
        candidates = [(key, state) for key, state in states if key == within]
        if not candidates:
            raise CheckpointError(
                f"holds no weights under {within!r}; correct checkpoint_key: known are "
                f"{', '.join(repr(_printable(key)) for key, _ in states)}"
            )
    key, state = candidates[0]
    if not all(_equal(state, other, read) for _, other in candidates[1:]):
        names = [_printable(name) for name, _ in candidates]
        raise CheckpointError(
            f"holds several sets of weights that differ: {', '.join(map(repr, names))}; choose one "
            f"by checkpoint_key (within= in Python), as in checkpoint_key: {names[0]}"
        )
    for name, tensor in state.items():
        if not name.isprintable() or len(name) > 500:
            raise _Malformed(f"the tensor's name {_printable(name)}")
        if not isinstance(tensor, _TensorSpec):
            raise CheckpointError(
                f"{name!r} is no tensor ({_shown(tensor)}); save model.state_dict() alone"
            )
    return key, state


def read_checkpoint(path: Path, *, within: str | None = None) -> Checkpoint:
    """Read a weights file without executing anything in it.

    Parameters
    ----------
    path : Path
        Safetensors, or what `torch.save` writes today (zip) or wrote before torch 1.6. The content
        decides, not the name.
    within : str, optional
        Dotted keys down to the weights, where a file holds several.

    Raises
    ------
    CheckpointError
        Where the file is damaged, of another format, or holds no one set of tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; place the weights there")
    with path.open("rb") as opened:
        start = opened.read(512)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        if within is not None:
            raise CheckpointError(
                f"{path}: safetensors nest nothing, so there is no {within!r} to choose; remove "
                "checkpoint_key, or take what has a prefix by checkpoint_prefix"
            )
        with naming(path):
            return Checkpoint(path, "safetensors", read_state(path))
    try:
        if start[:4] == b"PK\x03\x04":
            kind, opener = "torch zip", _open_zip
        elif start[:1] == b"\x80":
            kind, opener = "torch legacy", _open_legacy
        elif tarfile.is_tarfile(path):
            raise CheckpointError(
                f"{path}: a tar archive, as torch wrote before 0.2, or an archive of something "
                "else; unpack it, or save the weights again with a newer torch"
            )
        else:
            raise _Malformed("neither safetensors nor a file of torch.save")
        with opener(path) as (value, unknown, read):
            key, state = _choose(value, within, read)
            return Checkpoint(path, kind, _read_tensors(state, read), key, unknown)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    # zipfile raises all of these on damaged directories.
    except (
        *(_Malformed, zipfile.BadZipFile, EOFError, RuntimeError, OSError),
        *(ValueError, LookupError, struct.error),
    ) as error:
        raise CheckpointError(
            f"{path}: no readable weights file ({error}); fetch it again, compare its sha256 with "
            "the publisher's, or save model.state_dict() with safetensors.torch.save_file"
        ) from None


def _read_tensors(
    state: Mapping[str, _TensorSpec], read: Callable[[_Storage], bytes]
) -> dict[str, Tensor]:
    """Tensors of a state dict; those of one storage share its memory."""
    buffers: dict[str, Tensor] = {}
    tensors = {}
    for name, spec in state.items():
        storage = spec.storage
        if storage.key not in buffers:
            content = np.frombuffer(bytearray(read(storage)), np.uint8)
            buffers[storage.key] = torch.from_numpy(content)
        buffer, expected = buffers[storage.key], storage.numel * storage.itemsize
        if len(buffer) != expected:
            raise _Malformed(f"{name}: {len(buffer)} bytes where {expected} belong")
        begin, size = storage.start * storage.itemsize, storage.size * storage.itemsize
        itemsize = spec.dtype.itemsize
        view = buffer[begin : begin + size // itemsize * itemsize]
        # torch takes no view of numbers that do not begin at a multiple of their size.
        numbers = (view.clone() if begin % itemsize else view).view(spec.dtype)
        offset = numbers.storage_offset() + spec.offset
        tensors[name] = numbers.as_strided(spec.shape, spec.stride, offset)
    return tensors
