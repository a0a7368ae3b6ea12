"""What `torch.save` wrote, or safetensors: tensors by name, read without executing anything."""

import io
import mmap
import pickletools
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from steadymap.models.registry import read_state

# What a normal pickle of a state dict needs is below a hundredth of these.
_MAX_PICKLE_BYTES = 1 << 30

_MAX_OPCODES = 20_000_000

_MAGIC = 0x1950A86A20F9469CFC6C

_PROTOCOL = 1001

_DTYPES = {
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

_DICTS = {
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "dict"),
    ("__builtin__", "dict"),
}


class CheckpointError(ValueError):
    """A weights file that can't be taken: file, reason, remedy."""


class _Malformed(Exception):
    """What is wrong with the bytes; the file's name is added further up."""


def _printable(text: str) -> str:
    """Words of a file, fit for a message."""
    return (text if text.isprintable() else ascii(text))[:200]


@dataclass(frozen=True)
class _Named:
    """A class or function by its name; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return _printable(f"{self.module}.{self.name}")


@dataclass(frozen=True, eq=False)
class _Inert:
    """What an unknown class or function would have made: nothing."""

    of: str

    def __str__(self) -> str:
        return self.of


@dataclass(frozen=True)
class _Storage:
    """A run of numbers in the file: elements `start` to `start + size` of the storage `key`."""

    key: str
    dtype: torch.dtype | None
    numel: int
    start: int
    size: int

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize if self.dtype else 1


@dataclass(frozen=True)
class _Stored:
    """A tensor before its numbers are read."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _Malformed(f"{what} is {str(value)[:40]!r}, not a whole number")
    return value


def _stored(storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any = None) -> _Stored:
    if not isinstance(storage, _Storage):
        raise _Malformed("a tensor without a storage")
    if isinstance(dtype, _Named):
        dtype = getattr(torch, dtype.name, None) if dtype.module == "torch" else None
    dtype = dtype or storage.dtype
    if not isinstance(dtype, torch.dtype):
        raise _Malformed("a tensor of an unknown dtype")
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        raise _Malformed("a tensor whose shape and strides do not match")
    shape = tuple(_whole(value, "a tensor's size") for value in shape)
    stride = tuple(_whole(value, "a tensor's stride") for value in stride)
    first, count, last = _whole(offset, "a tensor's offset"), 1, 0
    for size, step in zip(shape, stride, strict=True):
        count *= size
        last += (size - 1) * step
    held = storage.size * storage.itemsize // dtype.itemsize
    # An expanded tensor could claim any size.
    if count and (first + last >= held or count > held):
        raise _Malformed(f"a tensor of shape {shape} reaches beyond its {held} numbers")
    return _Stored(storage, dtype, first, shape, stride)


class _Machine:
    """A pickle's opcodes carried out on plain values; nothing is imported, nothing is called.

    Strings, numbers, lists, tuples and dicts come about as they do in `pickle`. A class or function
    stays a name; what calling it would give is an `_Inert`, but for dicts, `torch.Size` and the
    functions that rebuild tensors, which are known here.
    """

    def __init__(self, persistent: Callable[[Any], Any]):
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.unknown: set[str] = set()

    def run(self, stream: IO[bytes] | mmap.mmap) -> Any:
        """Value of the next pickle of a stream."""
        try:
            for count, (opcode, argument, _) in enumerate(
                pickletools.genops(cast("IO[bytes]", stream))
            ):
                if count > _MAX_OPCODES:
                    raise _Malformed(f"more than {_MAX_OPCODES} pickle opcodes")
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._step(opcode.name, argument)
        except (ValueError, LookupError, TypeError, OverflowError, struct.error) as error:
            raise _Malformed(f"broken pickle: {error}") from None
        raise _Malformed("a pickle without an end")

    def _inert(self, of: object) -> _Inert:
        known = isinstance(of, (_Named, _Inert, str))
        name = _printable(str(of)) if known else f"a {type(of).__name__}"
        self.unknown.add(name)
        return _Inert(name)

    def _above(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marked.append(stack)
            self.stack = []
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "GLOBAL":
            stack.append(_Named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Named(str(module), str(attribute)))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            if stack:
                stack.pop()
            else:
                self._above()
        elif name == "POP_MARK":
            self._above()
        elif name == "BUILD":
            # A state's only use would be to change what the object does.
            stack.pop()
        elif name in ("PERSID", "BINPERSID"):
            stack.append(self.persistent(argument if name == "PERSID" else stack.pop()))
        elif name in _CONTAINERS:
            self._contain(name)
        elif name in _CALLS:
            self._make(name, argument)
        else:
            raise _Malformed(f"the pickle opcode {name}")

    def _contain(self, name: str) -> None:
        if name == "EMPTY_SET":
            self.stack.append(self._inert("builtins.set"))
        elif name.startswith("EMPTY"):
            self.stack.append([] if name == "EMPTY_LIST" else {})
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(self.stack) < count:
                raise _Malformed("a tuple of more than there is")
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            items = self._above()
            made: Any = items if name == "LIST" else tuple(items)
            if name == "DICT":
                made = dict(_pairs(items))
            self.stack.append(self._inert("builtins.frozenset") if name == "FROZENSET" else made)
        else:
            if name in ("APPEND", "SETITEM"):
                count = 1 if name == "APPEND" else 2
                items = self.stack[-count:]
                del self.stack[-count:]
            else:
                items = self._above()
            target = self.stack[-1]
            if name.startswith("APPEND") and isinstance(target, list):
                target.extend(items)
            elif name.startswith("SETITEM") and isinstance(target, dict):
                target.update(_pairs(items))
            elif not isinstance(target, _Inert):
                raise _Malformed(f"{name} on a {type(target).__name__}")

    def _make(self, name: str, argument: Any) -> None:
        if name.startswith("EXT"):
            self.stack.append(self._inert(f"copyreg extension {argument}"))
            return
        if name == "INST":
            function, arguments = _Named(*argument.split(" ", 1)), tuple(self._above())
        elif name == "OBJ":
            function, *rest = self._above()
            arguments = tuple(rest)
        else:
            if name == "NEWOBJ_EX":
                self.stack.pop()
            arguments, function = self.stack.pop(), self.stack.pop()
            if not isinstance(arguments, tuple):
                raise _Malformed(f"{name} without a tuple of arguments")
        self.stack.append(self._result(function, arguments))

    def _result(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if not isinstance(function, _Named):
            return self._inert(function)
        known = (function.module, function.name)
        if known in _DICTS:
            pairs = arguments[0] if arguments and isinstance(arguments[0], (list, dict)) else []
            return dict(pairs)
        if known == ("torch", "Size"):
            return tuple(arguments[0])
        if function.module == "torch._utils":
            if function.name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
                return _stored(*arguments[:4])
            if function.name == "_rebuild_tensor_v3":
                return _stored(*(arguments[place] for place in (0, 1, 2, 3, 6)))
            if function.name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
                return arguments[0]
        if known == ("torch._tensor", "_rebuild_from_type_v2"):
            return self._result(arguments[0], arguments[2])
        return self._inert(function)


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}

_CONTAINERS = {
    *("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "LIST", "DICT", "FROZENSET"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"),
}

_CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}


def _pairs(items: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _storage(identifier: Any) -> Any:
    """What a persistent id stands for: a storage, or a module that torch wrapped in one."""
    if not isinstance(identifier, tuple) or len(identifier) < 2:
        raise _Malformed(f"the persistent id {str(identifier)[:40]!r}")
    if identifier[0] == "module":
        return identifier[1]
    if identifier[0] != "storage" or len(identifier) < 5:
        raise _Malformed(f"the persistent id {str(identifier[0])[:40]!r}")
    kind, key, _, numel, *view = identifier[1:]
    name = kind.name if isinstance(kind, _Named) else str(kind)
    if name not in _DTYPES and name != "UntypedStorage":
        raise _Malformed(f"a storage of type {name[:40]!r}")
    if not isinstance(key, (str, int)):
        raise _Malformed("a storage without a name")
    numel, start = _whole(numel, "a storage's size"), 0
    size = numel
    if view and view[0] is not None:
        start, size = (_whole(value, "a view of a storage") for value in view[0][1:3])
        if start + size > numel:
            raise _Malformed("a view that reaches beyond its storage")
    return _Storage(str(key), _DTYPES.get(name), numel, start, size)


@dataclass
class Checkpoint:
    """What a weights file holds.

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


# The pickle's value, the names that it left alone, and a reader of its storages.
_Opened = tuple[Any, set[str], Callable[[_Storage], bytes]]


@contextmanager
def _zip(path: Path) -> Iterator[_Opened]:
    with zipfile.ZipFile(path) as archive:
        yield _zipped(path, archive)


def _zipped(path: Path, archive: zipfile.ZipFile) -> _Opened:
    pickles = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        raise _Malformed(f"a zip archive with {len(pickles)} data.pkl, torch writes one")
    root = pickles[0].removesuffix("data.pkl")
    # torch compresses nothing; what is compressed could unpack to any size.
    total = sum(info.file_size for info in archive.infolist())
    stored = all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    if not stored or total > path.stat().st_size:
        raise _Malformed("compressed members, or larger ones than the file: torch writes neither")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise _Malformed("numbers in big-endian order")
    if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE_BYTES:
        raise _Malformed("a pickle of more than 1 GiB")
    machine = _Machine(_storage)
    value = machine.run(io.BytesIO(archive.read(pickles[0])))

    def data(storage: _Storage) -> bytes:
        try:
            return archive.read(f"{root}data/{storage.key}")
        except KeyError:
            raise _Malformed(f"the storage {storage.key!r} is missing") from None

    return value, machine.unknown, data


@contextmanager
def _legacy(path: Path) -> Iterator[_Opened]:
    with (
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        yield _unzipped(content)


def _unzipped(content: mmap.mmap) -> _Opened:
    def plain() -> Any:
        return _Machine(_storage).run(content)

    if plain() != _MAGIC or plain() != _PROTOCOL:
        raise _Malformed("a pickle that torch.save did not write")
    system = plain()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Malformed("numbers in big-endian order")
    sizes: dict[str, int] = {}

    def noted(identifier: Any) -> Any:
        found = _storage(identifier)
        if isinstance(found, _Storage):
            sizes[found.key] = found.itemsize
        return found

    machine = _Machine(noted)
    value = machine.run(content)
    keys = plain()
    if not isinstance(keys, list):
        raise _Malformed("no list of storages")
    places: dict[str, tuple[int, int]] = {}
    position = content.tell()
    for key in map(str, keys):
        if key not in sizes or len(content) < position + 8:
            raise _Malformed(f"the storage {key!r} is missing: the file ends early")
        (numel,) = struct.unpack_from("<q", content, position)
        end = position + 8 + numel * sizes[key]
        if numel < 0 or end > len(content):
            raise _Malformed(f"the storage {key!r} is cut off: the file ends early")
        places[key] = (position + 8, end)
        position = end

    def data(storage: _Storage) -> bytes:
        if storage.key not in places:
            raise _Malformed(f"the storage {storage.key!r} is missing")
        return content[slice(*places[storage.key])]

    return value, machine.unknown, data


def _state_dicts(value: Any, within: str = "", depth: int = 0) -> Iterable[tuple[str, dict]]:
    """Every dict of tensors under string keys, with the keys that lead to it."""
    if not isinstance(value, dict) or depth > 4:
        return
    names = [name for name in value if isinstance(name, str)]
    if len(names) == len(value) and any(isinstance(v, _Stored) for v in value.values()):
        others = [v for v in value.values() if not isinstance(v, _Stored)]
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
    return all(isinstance(value, _Stored) for value in state.values())


def _n_kernels(state: dict) -> int:
    """Tensors of two dimensions or more: what tells a network from its statistics."""
    return sum(isinstance(value, _Stored) and len(value.shape) > 1 for value in state.values())


def _candidates(value: Any) -> list[tuple[str, dict]]:
    """Sets that may be the weights, with the keys that lead to each."""
    found = list(_state_dicts(value))
    pure = [(key, state) for key, state in found if _is_pure(state)]
    # What is noted among the weights makes a set no other thing than its equals.
    least = min((n for _, state in pure if (n := _n_kernels(state))), default=1)
    networks = [
        (key, state)
        for key, state in found
        if _n_kernels(state) >= (1 if _is_pure(state) else least)
    ]
    return networks or pure or found


def _equal(one: dict, other: dict, data: Callable[[_Storage], bytes]) -> bool:
    if one == other:
        return True
    if set(one) != set(other) or not (_is_pure(one) and _is_pure(other)):
        return False
    first, second = _filled(one, data), _filled(other, data)
    return all(same_bits(first[name], second[name]) for name in first)


def _chosen(
    value: Any, within: str | None, data: Callable[[_Storage], bytes]
) -> tuple[str, dict[str, _Stored]]:
    """The weights and the keys down to them; refused where sets that differ leave a choice."""
    if isinstance(value, _Inert):
        raise CheckpointError(
            f"holds a whole object of {value}, not its weights; save its state_dict() alone"
        )
    found = _candidates(value)
    if within is not None:
        known = list(_state_dicts(value))
        found = [(key, state) for key, state in known if key == within]
        if known and not found:
            raise CheckpointError(
                f"holds no weights under {within!r}; correct checkpoint_key: known are "
                f"{', '.join(repr(_printable(key)) for key, _ in known)}"
            )
    if not found:
        keys = "no dict"
        if isinstance(value, dict):
            keys = ", ".join(_printable(str(key)) for key in list(value)[:8])
        raise CheckpointError(f"holds no tensors by name (found: {keys}); save model.state_dict()")
    key, state = found[0]
    if not all(_equal(state, other, data) for _, other in found[1:]):
        names = [_printable(name) for name, _ in found]
        raise CheckpointError(
            f"holds several sets of weights that differ: {', '.join(map(repr, names))}; choose one "
            f"by checkpoint_key (within= in Python), as in checkpoint_key: {names[0]}"
        )
    for name, held in state.items():
        if not name.isprintable() or len(name) > 500:
            raise _Malformed(f"the tensor's name {_printable(name)}")
        if not isinstance(held, _Stored):
            raise CheckpointError(
                f"{name!r} is no tensor ({_printable(str(held))}); save model.state_dict() alone"
            )
    return key, state


def read_checkpoint(path: Path, *, within: str | None = None) -> Checkpoint:
    """Read a weights file as it is; nothing in it is executed.

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
        try:
            return Checkpoint(path, "safetensors", read_state(path))
        except ValueError as error:
            raise CheckpointError(str(error)) from None
    try:
        if start[:4] == b"PK\x03\x04":
            kind, opener = "torch zip", _zip
        elif start[:1] == b"\x80":
            kind, opener = "torch legacy", _legacy
        elif tarfile.is_tarfile(path):
            raise CheckpointError(
                f"{path}: a tar archive, as torch wrote before 0.2, or an archive of something "
                "else; unpack it, or save the weights again with a newer torch"
            )
        else:
            raise _Malformed("neither safetensors nor a file of torch.save")
        with opener(path) as (value, unknown, data):
            key, state = _chosen(value, within, data)
            return Checkpoint(path, kind, _filled(state, data), key, sorted(unknown))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    # zipfile raises all of these on spoiled directories.
    except (
        *(_Malformed, zipfile.BadZipFile, EOFError, RuntimeError, OSError),
        *(ValueError, LookupError, struct.error),
    ) as error:
        raise CheckpointError(
            f"{path}: no readable weights file ({error}); fetch it again, compare its sha256 with "
            "the publisher's, or save model.state_dict() with safetensors.torch.save_file"
        ) from None


def _filled(state: Mapping[str, _Stored], data: Callable[[_Storage], bytes]) -> dict[str, Tensor]:
    buffers: dict[str, Tensor] = {}
    tensors = {}
    for name, stored in state.items():
        storage, expected = stored.storage, stored.storage.numel * stored.storage.itemsize
        if storage.key not in buffers:
            content = bytearray(data(storage))
            empty = torch.empty(0, dtype=torch.uint8)
            buffers[storage.key] = (
                torch.frombuffer(content, dtype=torch.uint8) if content else empty
            )
        if len(buffers[storage.key]) != expected:
            raise _Malformed(f"{name}: {len(buffers[storage.key])} bytes where {expected} belong")
        begin, size = storage.start * storage.itemsize, storage.size * storage.itemsize
        held = buffers[storage.key][begin : begin + size]
        usable = size // stored.dtype.itemsize * stored.dtype.itemsize
        flat = held[:usable].clone() if begin % stored.dtype.itemsize else held[:usable]
        typed = flat.view(stored.dtype)
        place = typed.storage_offset() + stored.offset
        tensors[name] = typed.as_strided(stored.shape, stored.stride, place)
    return tensors
