"""Files of `torch.save` and safetensors: tensors by name, read without executing anything."""

import math
import pickle
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.storage import TypedStorage

from steadymap.models.registry import read_state

# The pickle of a state dict stays below a hundredth of these.
_MAX_PICKLE_BYTES = 1 << 30

_MAX_OPCODES = 20_000_000

_MAX_NAMES = 10_000

# Python hashes a tuple by recursion in C, which crashes some 100,000 levels down.
_MAX_TUPLE_DEPTH = 1000


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
    # Of the numbers in a storage without a type, which torch asks for.
    dtype: torch.dtype | None
    is_called: bool
    result: Callable[..., Any]

    def __new__(mcs, module: str, name: str, function: Callable[..., Any] | None = None) -> Any:
        def result(cls: _StandIn, *arguments: Any, **_: Any) -> Any:
            if function is not None:
                return function(*arguments)
            cls.is_called = True
            return cls

        dtype = torch.uint8 if name == "UntypedStorage" else None
        members: dict[str, Any] = {"module": module, "name": name, "dtype": dtype}
        members |= {"is_called": False, "__new__": result, "result": staticmethod(result)}
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
class _Held:
    """A tensor, out of the reach of the pickle that it comes from."""

    tensor: Tensor

    def __setstate__(self, state: Any) -> None:
        """Ignore what a pickle would change."""


def _shown(value: Any) -> str:
    """A value of a file for a message; only the type of a container, which may be huge."""
    plain = value is None or isinstance(value, (str, int, float, _StandIn))
    return _printable(str(value)) if plain else f"a {type(value).__name__}"


def _rebuild_dict(pairs: Any = None, *_: Any) -> _Dict:
    items: Any = pairs if isinstance(pairs, (list, dict)) else ()
    return _Dict(items)


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *_: Any, dtype: Any = None
) -> _Held:
    if not isinstance(storage, TypedStorage):
        raise _Malformed("a tensor without a storage")
    if isinstance(dtype, _StandIn):
        dtype = vars(torch).get(dtype.name) if dtype.module == "torch" else None
    dtype = dtype or storage.dtype
    if not isinstance(dtype, torch.dtype):
        raise _Malformed("a tensor of an unknown dtype")
    numbers = storage._untyped_storage
    available, count = numbers.nbytes() // dtype.itemsize, math.prod(shape)
    if len(shape) != len(stride) or min(0, offset, *shape, *stride) < 0:
        raise _Malformed("a tensor whose offset, shape and strides do not match")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    # torch would enlarge the storage, and an expanded tensor could claim any size.
    if count and max(last + 1, count) > available:
        raise _Malformed(f"a tensor of shape {shape} reaches beyond its {available} numbers")
    return _Held(torch.empty(0, dtype=dtype).set_(numbers, offset, shape, stride))


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> _Held:
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
    """Unpickler that replaces every class and function by a stand-in.

    Plain values come about as in `pickle`; nothing is imported, and nothing is called but
    `_FUNCTIONS` ("Restricting Globals" in the documentation of `pickle`).
    """

    names: dict[tuple[str, str], _StandIn]

    def __init__(self, stream: IO[bytes], **_: Any):
        begin = stream.tell()
        _check_limits(stream)
        stream.seek(begin)
        # Python 2 wrote bytes where names belong.
        super().__init__(stream, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            if len(self.names) == _MAX_NAMES:
                raise _Malformed(f"more than {_MAX_NAMES} names of classes and functions")
            self.names[module, name] = _StandIn(module, name, _FUNCTIONS.get((module, name)))
        return self.names[module, name]


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


def _unpickled(path: Path) -> tuple[Any, list[str]]:
    """Value of a file, and the classes and functions that its pickles would have called."""
    names: dict[tuple[str, str], _StandIn] = {}
    # torch derives from it what it reads with.
    unpickler = type("_OfFile", (_Unpickler,), {"names": names})

    def load(stream: IO[bytes], **_: Any) -> Any:
        value = unpickler(stream).load()
        if isinstance(value, dict) and value.get("little_endian") is False:
            raise _Malformed("numbers in big-endian order")
        return value

    pickles: Any = SimpleNamespace(__name__="inert", Unpickler=unpickler, load=load)
    with warnings.catch_warnings():
        # That the source code of a foreign class is not there.
        warnings.simplefilter("ignore")
        value = torch.load(path, map_location="cpu", weights_only=False, pickle_module=pickles)
    return value, sorted({str(name) for name in names.values() if name.is_called})


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


def _check_zip(path: Path) -> None:
    """Refuse an archive that torch would not have written, or whose bytes have changed."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise _Malformed(f"a zip archive with {len(pickles)} data.pkl, torch writes one")
        # torch would run the code in it.
        if any(name.endswith("constants.pkl") for name in names):
            raise _Malformed("a TorchScript archive, a program")
        # torch compresses nothing; a compressed member could unpack to any size.
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > path.stat().st_size:
            raise _Malformed("compressed members, or larger ones than the file: torch writes none")
        if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE_BYTES:
            raise _Malformed("a pickle of more than 1 GiB")
        if changed := archive.testzip():
            raise _Malformed(f"{changed} has changed since it was written")


def _state_dicts(value: Any, within: str = "", depth: int = 0) -> Iterable[tuple[str, dict]]:
    """Every dict of tensors under string keys, with the keys that lead to it."""
    if not isinstance(value, dict) or depth > 4:
        return
    names = [name for name in value if isinstance(name, str)]
    if len(names) == len(value) and any(isinstance(v, _Held) for v in value.values()):
        others = [v for v in value.values() if not isinstance(v, _Held)]
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
    return all(isinstance(value, _Held) for value in state.values())


def _n_kernels(state: dict) -> int:
    """Tensors of two dimensions or more, which a network has and its statistics lack."""
    tensors = [value.tensor for value in state.values() if isinstance(value, _Held)]
    return sum(tensor.ndim > 1 for tensor in tensors)


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


def _equal(one: dict, other: dict) -> bool:
    if set(one) != set(other) or not (_is_pure(one) and _is_pure(other)):
        return False
    return all(same_bits(one[name].tensor, other[name].tensor) for name in one)


def _choose(value: Any, within: str | None) -> tuple[str, dict[str, Tensor]]:
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
    if not all(_equal(state, other) for _, other in candidates[1:]):
        names = [_printable(name) for name, _ in candidates]
        raise CheckpointError(
            f"holds several sets of weights that differ: {', '.join(map(repr, names))}; choose one "
            f"by checkpoint_key (within= in Python), as in checkpoint_key: {names[0]}"
        )
    for name, tensor in state.items():
        if not name.isprintable() or len(name) > 500:
            raise _Malformed(f"the tensor's name {_printable(name)}")
        if not isinstance(tensor, _Held):
            raise CheckpointError(
                f"{name!r} is no tensor ({_shown(tensor)}); save model.state_dict() alone"
            )
    return key, {name: held.tensor for name, held in state.items()}


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
        if tarfile.is_tarfile(path):
            raise CheckpointError(
                f"{path}: a tar archive, as torch wrote before 0.2, or an archive of something "
                "else; unpack it, or save the weights again with a newer torch"
            )
        if start[:4] == b"PK\x03\x04":
            kind = "torch zip"
            _check_zip(path)
        elif start[:1] == b"\x80":
            kind = "torch legacy"
        else:
            raise _Malformed("neither safetensors nor a file of torch.save")
        value, unknown = _unpickled(path)
        key, tensors = _choose(value, within)
        return Checkpoint(path, kind, tensors, key, unknown)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    except Exception as error:  # a hostile file makes torch and zipfile raise anything
        reason = _printable(str(error).partition("\n")[0] or type(error).__name__)
        raise CheckpointError(
            f"{path}: no readable weights file ({reason}); fetch it again, compare its sha256 with "
            "the publisher's, or save model.state_dict() with safetensors.torch.save_file"
        ) from None
