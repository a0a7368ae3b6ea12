import contextlib
import functools
import json
import os
import pickle
import re
import struct
import sys
import types
import zipfile
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
import yaml
from torch import nn

from conftest import ROOT, Tiny, perturb
from steadymap.models import registry
from steadymap.params.methods import ARCHITECTURES
from steadymap.store.atomic import file_sha256
from steadymap.training import checkpoints
from steadymap.training.checkpoints import normalization, pretrained, pretrained_file
from steadymap.training.checkpoints import read_state_dict as read
from steadymap.training.torch_files import CheckpointError, read_checkpoint

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
FORMATS = {"zip": True, "legacy": False}


def save(value, path, form="zip", **options):
    torch.save(value, path, _use_new_zipfile_serialization=FORMATS[form], **options)
    return path


@contextlib.contextmanager
def foreign():
    """Modules that exist where the file is written and not where it is read."""
    dill, cox = types.ModuleType("dill._dill"), types.ModuleType("cox.utils")

    def _create_function(*arguments):
        raise AssertionError("dill was called")

    def _load_type(name):
        raise AssertionError("dill was called")

    class Parameters:
        def __init__(self, **values):
            self.values = values

        def __getstate__(self):
            return {"params": self.values}

        def __setstate__(self, state):
            raise AssertionError("a foreign object was restored")

    for function in (_create_function, _load_type):
        function.__module__, function.__qualname__ = "dill._dill", function.__name__
        setattr(dill, function.__name__, function)
    Parameters.__module__, Parameters.__qualname__ = "cox.utils", "Parameters"
    cox.Parameters = Parameters

    class Function:
        """What dill makes of a lambda: a call of `_create_function` on code and globals."""

        def __reduce__(self):
            return _create_function, (Type(), {"__name__": "robustness.train"}, "<lambda>", None)

    class Type:
        def __reduce__(self):
            return _load_type, ("CodeType",)

    packages = {"dill": types.ModuleType("dill"), "cox": types.ModuleType("cox")}
    added = {**packages, "dill._dill": dill, "cox.utils": cox}
    before = {name: sys.modules.get(name) for name in added}
    sys.modules.update(added)
    try:
        yield Parameters(eps=3.0, constraint="2"), Function()
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def attacked(state, *, prefix="module.", mean=MEAN, std=STD):
    """State dict of the robustness library's AttackerModel in DataParallel."""
    found = OrderedDict()
    statistics = {"new_mean": mean, "new_std": std}
    for key, value in statistics.items():
        found[f"{prefix}normalizer.{key}"] = torch.tensor(value)[:, None, None]
    for name, tensor in state.items():
        found[f"{prefix}model.{name}"] = tensor
    for key, value in statistics.items():
        found[f"{prefix}attacker.normalize.{key}"] = torch.tensor(value)[:, None, None]
    for name, tensor in state.items():
        found[f"{prefix}attacker.model.{name}"] = tensor
    found._metadata = {"": {"version": 1}}
    return found


def release(state, path, form, **options):
    """A file as the robustness library's trainer saves it."""
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with foreign() as (parameters, function):
        save(
            {
                "model": state,
                "optimizer": optimizer.state_dict(),
                "schedule": {"last_epoch": 90, "lr_lambdas": [function]},
                "epoch": 90,
                "nat_prec1": torch.tensor(50.9),
                "args": parameters,
            },
            path,
            form,
            **options,
        )
    return path


def paper_googlenet():
    """torchvision's network with heads, and its weights under the paper's names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.googlenet(
            weights=None,
            aux_logits=True,
            transform_input=True,
            init_weights=False,
        )
    alive(network)
    state = OrderedDict(
        (name.replace(".branch4.1.", ".branch4_conv."), value)
        for name, value in network.state_dict().items()
    )
    return network, state


def convert(path, *, destination, **options):
    """Card of a conversion, whose weights a folder gets."""
    network, card = checkpoints.convert(path, **options)
    destination.mkdir()
    safetensors.torch.save_file(network.state_dict(), destination / "weights.safetensors")
    return card


def loaded(folder, card):
    network = registry.build(card["architecture"], card["n_classes"])
    registry.load_state(network, registry.read_state(folder / "weights.safetensors"), source="here")
    return registry.explainable(network, mean=card["mean"], std=card["std"])


def alive(network):
    """Statistics of BatchNorm from images, so that logits depend on these; then off-balance."""
    norms = [module for module in network.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(3)
    for module in norms:
        module.momentum = None
        module.train()
    with torch.no_grad():
        network(torch.randn((4, 3, 96, 96), generator=generator))
        for module in norms:
            module.weight.add_(0.2 * torch.randn(module.weight.shape, generator=generator))
            module.bias.add_(0.2 * torch.randn(module.bias.shape, generator=generator))
    return network.eval()


def close(found, expected):
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.abs().max()
    return (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def logits(network, images, mean=MEAN, std=STD):
    m, s = torch.tensor(mean).reshape(1, 3, 1, 1), torch.tensor(std).reshape(1, 3, 1, 1)
    with torch.no_grad():
        return network.eval()((images - m) / s)


IMAGES = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))


class TestReading:
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("form", FORMATS)
    def test_tensors_are_those_that_torch_reads(self, tmp_path, form, protocol):
        """All dtypes, views of a common storage, strides, no dimension, no element, parameters."""
        base = torch.arange(24.0)
        value = {
            "whole": base,
            "view": base[3:9].reshape(2, 3),
            "transposed": base.reshape(4, 6).t(),
            "parameter": nn.Parameter(torch.rand(3)),
            "scalar": torch.tensor(7),
            "empty": torch.empty(0, 3),
            **{
                str(dtype): torch.randint(0, 2, (5,)).to(dtype)
                for dtype in (
                    *(torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8),
                    *(torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64),
                )
            },
        }
        path = save(value, tmp_path / "w.pt", form, pickle_protocol=protocol)

        found, expected = read(path), torch.load(path, weights_only=False)

        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert found[name].stride() == tensor.stride(), name
            assert torch.equal(found[name], tensor), name

    def test_storages_without_a_type_of_their_own(self, tmp_path):
        value = {"a": torch.arange(5).to(torch.uint16)}

        assert torch.equal(read(save(value, tmp_path / "w.pt"))["a"], value["a"])

    def test_safetensors_under_any_name(self, tmp_path):
        state = {"a": torch.rand(2, 3)}
        safetensors.torch.save_file(state, tmp_path / "w.pt")

        assert torch.equal(read(tmp_path / "w.pt")["a"], state["a"])

    @pytest.mark.parametrize("form", FORMATS)
    def test_weights_of_a_real_network(self, tmp_path, form):
        state = perturb(registry.build("googlenet", 7)).state_dict()

        found = read(save(state, tmp_path / "w.pt", form))

        assert list(found) == list(state)
        assert all(torch.equal(found[name], value) for name, value in state.items())

    @pytest.mark.parametrize("form", FORMATS)
    def test_weights_are_found_among_what_trainers_save(self, tmp_path, form):
        """Optimizer state holds tensors too, and a foreign object stays a name."""
        state = perturb(Tiny()).state_dict()
        path = release(state, tmp_path / "w.pt", form)

        found = read_checkpoint(path)

        assert found.within == "model"
        assert found.format == f"torch {form}"
        assert found.unknown == ["cox.utils.Parameters", *found.unknown[1:]]
        assert "dill._dill._create_function" in found.unknown
        assert all(torch.equal(found.tensors[name], value) for name, value in state.items())
        assert not any(name.split(".")[0] in ("dill", "cox") for name in sys.modules)

    def test_one_of_several_sets_is_named(self, tmp_path):
        sets = {key: {"a": torch.full((2,), value)} for key, value in (("one", 1.0), ("two", 2.0))}
        path = save(sets, tmp_path / "w.pt")

        with pytest.raises(
            CheckpointError,
            match=r"holds several sets of weights .*'one', 'two'; choose .*key: one",
        ):
            read(path)
        assert read(path, within="two")["a"].tolist() == [2.0, 2.0]
        with pytest.raises(
            CheckpointError, match=r"under 'three'; correct .*known are 'one', 'two'"
        ):
            read(path, within="three")

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize(
        ("plain", "other"),
        [("state_dict", "state_dict_ema"), ("model", "ema"), ("net", "teacher")],
    )
    def test_averaged_weights_beside_the_plain_ones_are_chosen_by_key(
        self, tmp_path, form, plain, other
    ):
        state = perturb(Tiny()).state_dict()
        averaged = {name: value * 0.5 for name, value in state.items()}
        noted = {"decay": 0.99, **averaged}
        for second in (averaged, noted):
            path = save({plain: state, "epoch": 3, other: second}, tmp_path / "w.pt", form)
            with pytest.raises(
                CheckpointError, match=rf"differ: '{plain}', '{other}'; .*checkpoint_key: {plain}"
            ):
                read(path)
        path = save({plain: state, "epoch": 3, other: averaged}, path, form)
        for key, expected in ((plain, state), (other, averaged)):
            found = read(path, within=key)
            assert all(torch.equal(found[name], value) for name, value in expected.items())

    @pytest.mark.parametrize("form", FORMATS)
    def test_equal_sets_and_statistics_leave_no_choice(self, tmp_path, form):
        """Equal in value, wherever their numbers lie; statistics of the input are no network."""
        state = perturb(Tiny()).state_dict()
        copy = {name: value.clone() for name, value in state.items()}
        beside = {"normalizer": {"mean": torch.rand(3), "std": torch.rand(3)}}

        path = save({"state_dict": state, "ema": copy, **beside}, tmp_path / "w.pt", form)

        assert read_checkpoint(path).within == "state_dict"
        assert all(torch.equal(read(path)[name], value) for name, value in state.items())

    def test_a_key_has_no_meaning_in_safetensors(self, tmp_path):
        safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")

        with pytest.raises(CheckpointError, match=r"no 'ema' to choose; remove checkpoint_key, or"):
            read(tmp_path / "w.safetensors", within="ema")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"epoch": 3}, r"holds no tensors by name \(found: epoch\); save model.state_dict"),
            ([torch.rand(2)], r"holds no tensors by name \(found: no dict\)"),
            (Tiny(), r"holds a whole object of conftest.Tiny, not its weights; save its state_d"),
            ({"a": torch.rand(2), "b": 3}, r"'b' is no tensor \(3\); save model.state_dict\(\)"),
            (
                {"a": torch.rand(2), "b": torch.rand(3).to_sparse()},
                r"'b' is no tensor \(torch._utils._rebuild_sparse_tensor\)",
            ),
        ],
    )
    @pytest.mark.parametrize("form", FORMATS)
    def test_other_contents_are_refused(self, tmp_path, form, value, message):
        with pytest.raises(CheckpointError, match=f"w.pt: {message}"):
            read(save(value, tmp_path / "w.pt", form))

    def test_what_is_no_weights_file_is_refused(self, tmp_path):
        for name, content in (
            ("empty.pt", b""),
            ("text.pt", b"hello"),
            ("pickle.pt", pickle.dumps({"a": 1})),
            ("short.safetensors", b"short"),
        ):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"{name}: no readable .*; .*save_file"):
                read(tmp_path / name)
        with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
            archive.writestr("a.txt", "b")
        with pytest.raises(CheckpointError, match=r"zip archive with 0 data.pkl, torch writes one"):
            read(tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=r"nowhere.pt: no such file; place the weights"):
            read(tmp_path / "nowhere.pt")


class Hostile:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Restored:
    """Runs code when its state is set, not when it is made."""

    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        Path(state["path"]).touch()


Pair = namedtuple("Pair", "a b")


class TestHostile:
    """Every file would touch `executed` if it were unpickled; none may, and each is refused."""

    @pytest.fixture(autouse=True)
    def bait(self, tmp_path):
        self.path, self.bait = tmp_path / "w.pt", tmp_path / "executed"
        self.command = f"touch {self.bait}"
        yield
        assert not self.bait.exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["w.pt"]

    def hostile(self):
        return {
            "os.system": Hostile(os.system, self.command),
            "eval": Hostile(eval, f"open({str(self.bait)!r}, 'w')"),
            "touch": Hostile(Path.touch, self.bait),
            "getattr": Hostile(getattr, Hostile(__import__, "os"), "system"),
            "state": Restored(str(self.bait)),
        }

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("protocol", [2, 4])
    def test_the_bait_works(self, form, protocol):
        """Or the others would prove nothing."""
        save({"a": self.hostile()}, self.path, form, pickle_protocol=protocol)

        torch.load(self.path, weights_only=False)

        assert self.bait.exists()
        self.bait.unlink()

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("protocol", [2, 4])
    def test_code_beside_the_weights_is_left_alone(self, form, protocol):
        save(
            {"model": {"a": torch.ones(2)}, **self.hostile()},
            self.path,
            form,
            pickle_protocol=protocol,
        )

        found = read_checkpoint(self.path)

        assert found.tensors["a"].tolist() == [1.0, 1.0]
        assert {"system", "eval", "Restored"} <= {n.rsplit(".", 1)[1] for n in found.unknown}

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("name", ["os.system", "eval", "touch", "getattr", "state"])
    def test_code_in_place_of_a_tensor_is_refused(self, form, name):
        save({"a": torch.ones(2), "b": self.hostile()[name]}, self.path, form)

        with pytest.raises(CheckpointError, match=r"w.pt: 'b' is no tensor \(.+\); save model"):
            read(self.path)

    @pytest.mark.parametrize(
        "program",
        [
            b"cposix\nsystem\n(VCOMMAND\ntR.",
            b"(VCOMMAND\niposix\nsystem\n.",
            b"(cposix\nsystem\nVCOMMAND\no.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93(VCOMMAND\nt\x81.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93(VCOMMAND\nt}\x92.",
            # What one name made is called: operator.attrgetter("system")(os).
            b"coperator\nattrgetter\n(Vsystem\ntRcos\npath\n\x85R(VCOMMAND\ntR.",
            # A known name gets another meaning, or other defaults.
            b"ccollections\nOrderedDict\n(N}V__init__\ncposix\nsystem\nstb.",
            b"ctorch._utils\n_rebuild_tensor_v2\n(N}V__defaults__\n(tstb.",
            b"(Vstorage\ncposix\nsystem\nVCOMMAND\nVcpu\nI1\ntQ.",
            b"(Vmodule\ncposix\nsystem\ntQ(VCOMMAND\ntR.",
            b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nN(VCOMMAND\nt}tR.",
            b"cposix\nsystem\n" + b"(VCOMMAND\ntR" * 5000 + b".",
            b"](VCOMMAND\ntR.",
            b"\x82\x01.",
            b"\x97.",
            b"N" * 3 + b"u.",
            b"]N\x94a" + b"\x88" * 3,
            # State for a tensor, a list, a number.
            b"ctorch._utils\n_rebuild_parameter\n(I1\ntR}V__class__\ncposix\nsystem\nsb.",
            b"]}Vappend\ncposix\nsystem\nsb.",
            b"ctorch\nSize\n((VCOMMAND\ntltR}V__class__\ncposix\nsystem\nsb.",
            # Items for what is no container; a class in a sequence of a foreign one.
            b"cposix\nsystem\nVCOMMAND\na.",
            b"cposix\nsystem\nVCOMMAND\nI1\ns.",
            b"cbuiltins\ngetattr\n(cos\npath\nVsystem\ntR(VCOMMAND\ntR.",
            b"cbuiltins\neval\n(V__import__('os').system('COMMAND')\ntR.",
            b"cbuiltins\nmap\n(cposix\nsystem\n(VCOMMAND\nltR.",
            b"\x80\x04\x8c\x05torch\x8c\x0e_dynamo.config\x93(tR.",
            # Depth, in tuples that are hashed and in lists; a memo of 2**31 places; a huge string.
            b"})" + b"\x85" * 300_000 + b"NsVa\nNs.",
            b"]" * 300_000 + b"a" * 299_999 + b".",
            b"]Nr\xff\xff\xff\x7f.",
            b"\x80\x04\x8e" + b"\xff" * 6 + b"\x00\x00a.",
            b"".join(b"cm%d\nf\n" % n for n in range(10_001)) + b".",
        ],
        ids=lambda program: program[:24].decode("latin1"),
    )
    def test_no_opcode_calls_anything(self, program):
        program = program.replace(b"COMMAND", self.command.encode())
        with zipfile.ZipFile(self.path, "w") as archive:
            archive.writestr("w/data.pkl", program)
        before = set(sys.modules)

        with pytest.raises(CheckpointError, match=r"w.pt: .+; .+"):
            read(self.path)
        # Decoding a string may load its codec.
        assert not {name for name in set(sys.modules) - before if "encodings" not in name}

    def test_state_of_a_tensor_is_left_alone(self):
        """A pickle that sets the shape of a tensor behind the checks."""
        save({"a": torch.ones(2)}, self.path)
        with zipfile.ZipFile(self.path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        (name,) = (name for name in members if name.endswith("data.pkl"))
        state = b"}X\x05\x00\x00\x00shape(J\xff\xff\xff\x7ftsb"
        # Behind the call that rebuilds the tensor.
        call = members[name].rindex(b"R") + 1
        while members[name][call : call + 1] == b"q":
            call += 2
        members[name] = members[name][:call] + state + members[name][call:]
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

        assert read(self.path)["a"].tolist() == [1.0, 1.0]

    @pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
    @pytest.mark.parametrize(
        ("shape", "stride", "offset"),
        [((1 << 40,), (0,), 0), ((3,), (1,), 0), ((2,), (1,), 1), ((2,), (-1,), 1), ((2,), (), 0)],
    )
    def test_a_tensor_beyond_its_numbers_is_refused(self, shape, stride, offset):
        """Among them one that a stride of 0 blows up to a terabyte."""
        tensor = torch.ones(2)
        described = Hostile(
            torch._utils._rebuild_tensor_v2,
            *(tensor.storage(), offset, shape, stride, False, OrderedDict()),
        )
        save({"a": described}, self.path)

        with pytest.raises(CheckpointError, match=r"w.pt: no readable weights file \(.*tensor"):
            read(self.path)

    def test_names_can_t_steer_a_terminal(self):
        for value in ({"\x1b[2Ja": torch.ones(2)}, {"\x1b[2Ja": 3}, {"a" * 501: torch.ones(2)}):
            save(value, self.path)
            with pytest.raises(CheckpointError) as caught:
                read(self.path)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 700

    def test_compressed_members_are_refused(self):
        save({"a": torch.zeros(1 << 16)}, self.path)
        with zipfile.ZipFile(self.path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

        with pytest.raises(CheckpointError, match="compressed members, or larger ones than the fi"):
            read(self.path)

    def test_programs_are_refused(self):
        """torch.load would hand an archive of torch.jit to what runs the code in it."""
        save({"a": torch.zeros(2)}, self.path)
        with zipfile.ZipFile(self.path, "a") as archive:
            archive.writestr("w/constants.pkl", pickle.dumps(()))

        with pytest.raises(CheckpointError, match=r"w.pt: .*a TorchScript archive.*; .*save_file"):
            read(self.path)

    @pytest.mark.parametrize("form", FORMATS)
    def test_a_cut_file_is_refused_wherever_it_ends(self, form):
        save({"model": perturb(Tiny()).state_dict(), "epoch": 3}, self.path, form)
        whole = self.path.read_bytes()

        for end in [*range(0, len(whole) - 1, 83), len(whole) - 1]:
            self.path.write_bytes(whole[:end])
            with pytest.raises(CheckpointError, match=r"w.pt: .+; .+"):
                read(self.path)

    @pytest.mark.parametrize("form", FORMATS)
    def test_a_spoiled_file_gives_weights_or_one_kind_of_error(self, form, rng):
        save({"model": perturb(Tiny()).state_dict(), "epoch": 3}, self.path, form)
        whole = np.frombuffer(self.path.read_bytes(), np.uint8)
        refused = 0

        for _ in range(200):
            spoiled = whole.copy()
            places = rng.integers(0, len(whole), 3)
            spoiled[places] = rng.integers(0, 256, 3)
            self.path.write_bytes(spoiled.tobytes())
            try:
                read(self.path)
            except CheckpointError:
                refused += 1

        assert refused > 10

    def test_storages_longer_than_they_say(self):
        save({"a": torch.ones(4)}, self.path, "legacy")
        content = self.path.read_bytes()
        self.path.write_bytes(content[:-24] + struct.pack("<q", 1 << 60) + content[-16:])

        with pytest.raises(
            CheckpointError, match=r"w.pt: no readable weights file \(.*\); fetch it again"
        ):
            read(self.path)


@functools.cache
def resnet50():
    return alive(registry.build("resnet50", 1000, seed=1))


@functools.cache
def googlenet():
    return paper_googlenet()


class TestLayouts:
    @pytest.mark.parametrize("form", FORMATS)
    def test_the_public_robust_resnet50(self, tmp_path, form):
        network = resnet50()
        path = release(attacked(network.state_dict()), tmp_path / "imagenet_l2_3_0.pt", form)

        card = convert(
            path, architecture="resnet50", n_classes=1000, destination=tmp_path / "resnet50-r"
        )

        assert (card["mean"], card["std"]) == (MEAN, STD)
        assert card["sha256"] == file_sha256(path)
        assert card["source"] == str(path)
        assert [rule["rule"] for rule in card["rules"]] == [
            "prefix `module.` of a wrapper taken off",
            "AttackerModel: the classifier under `model.`",
        ]
        assert card["mapping"]["layer1.0.conv1.weight"] == "module.model.layer1.0.conv1.weight"
        copies = [row for row in card["dropped"] if "attacker's copy" in row["reason"]]
        assert len(copies) == len(network.state_dict()) + 2
        assert {"name": copies[-1]["name"], "reason": copies[-1]["reason"]} == {
            "name": "module.attacker.model.fc.bias",
            "reason": "the attacker's copy, equal to module.model.fc.bias",
        }
        assert json.loads(json.dumps(card)) == card
        model = loaded(tmp_path / "resnet50-r", card)
        with torch.no_grad():
            assert close(model(IMAGES), logits(network, IMAGES))

    @pytest.mark.parametrize("form", FORMATS)
    def test_the_paper_s_googlenet(self, tmp_path, form):
        """Names, heads, and the transform that its network applies behind the normalizer."""
        network, state = googlenet()
        path = release(attacked(state), tmp_path / "GoogLeNet_R.pt", form)

        card = convert(
            path, architecture="googlenet", n_classes=1000, destination=tmp_path / "googlenet-r"
        )

        assert card["normalization"] == {
            "mean": MEAN,
            "std": STD,
            "from": "file",
            "transform_input": True,
        }
        assert card["mean"] == pytest.approx([0.5] * 3, abs=1e-9)
        assert card["std"] == pytest.approx([0.5] * 3, abs=1e-9)
        assert card["mapping"]["inception3a.branch4.1.conv.weight"] == (
            "module.model.inception3a.branch4_conv.conv.weight"
        )
        heads = [row for row in card["dropped"] if row["reason"].startswith("auxiliary head")]
        assert len(heads) == sum(name.startswith("aux") for name in state)
        with torch.no_grad():
            assert close(loaded(tmp_path / "googlenet-r", card)(IMAGES), logits(network, IMAGES))

    def test_read_state_dict_fits_torchvision_s_network_with_heads(self, tmp_path):
        network, state = googlenet()
        found = read(release(attacked(state), tmp_path / "GoogLeNet_R.pt", "legacy"))

        other = torchvision.models.googlenet(
            weights=None, aux_logits=True, transform_input=True, init_weights=False
        )
        other.load_state_dict(found)

        assert list(found) == list(network.state_dict())
        assert torch.equal(logits(other, IMAGES), logits(network, IMAGES))

    @pytest.mark.parametrize(
        "prefix",
        [
            *("", "module.", "module.module.", "_orig_mod.", "model.", "_orig_mod.module."),
            *("module._orig_mod.", "net.", "backbone.", "state.model.", "_orig_mod.module.net."),
        ],
    )
    def test_wrappers(self, tmp_path, monkeypatch, prefix):
        monkeypatch.setitem(registry.CONSTRUCTORS, "tiny", Tiny)
        state = perturb(Tiny()).state_dict()
        path = save({prefix + name: value for name, value in state.items()}, tmp_path / "w.pt")

        card = convert(path, architecture="tiny", n_classes=5, destination=tmp_path / "out")

        assert card["mapping"] == {name: prefix + name for name in state}
        assert (card["mean"], card["std"]) == (None, None)
        found = registry.read_state(tmp_path / "out" / "weights.safetensors")
        assert all(torch.equal(found[name], value) for name, value in state.items())

    def test_an_averaged_and_compiled_network(self, tmp_path, monkeypatch):
        monkeypatch.setitem(registry.CONSTRUCTORS, "tiny", Tiny)
        network = perturb(Tiny())
        averaged = torch.optim.swa_utils.AveragedModel(network)
        averaged.update_parameters(network)
        state = averaged.state_dict().items()
        inner = {name.replace("bn1.", "bn1._orig_mod."): value for name, value in state}
        path = save(inner, tmp_path / "w.pt")

        card = convert(path, architecture="tiny", n_classes=5, destination=tmp_path / "out")

        assert [row["name"] for row in card["dropped"]] == ["n_averaged"]
        found = registry.read_state(tmp_path / "out" / "weights.safetensors")
        assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())

    @pytest.mark.parametrize("prefix", ["net.", "net", "_orig_mod.module.net."])
    def test_a_prefix_beside_others_is_named_and_params_apply_it(
        self, tmp_path, monkeypatch, prefix
    ):
        monkeypatch.setitem(registry.CONSTRUCTORS, "tiny", Tiny)
        state = perturb(Tiny()).state_dict()
        whole = f"{prefix.removesuffix('.')}."
        wrapper = whole.removesuffix("net.")
        others = {f"{wrapper}loss.weight": torch.rand(5, 3)}
        path = save({**others, **{whole + n: v for n, v in state.items()}}, tmp_path / "w.pt")
        options = {"architecture": "tiny", "n_classes": 5, "destination": tmp_path / "out"}

        with pytest.raises(
            CheckpointError, match=rf"tensors stand under `{whole}`.*checkpoint_prefix: {whole}"
        ):
            convert(path, **options)
        with pytest.raises(CheckpointError, match=r"under 'nett.'; correct checkpoint_prefix"):
            convert(path, **options, prefix="nett")
        card = convert(path, **options, prefix=prefix)

        assert card["prefix"] == prefix
        assert [row["name"] for row in card["dropped"]] == list(others)
        found = registry.read_state(tmp_path / "out" / "weights.safetensors")
        assert all(torch.equal(found[name], value) for name, value in state.items())
        assert set(read(path, prefix=prefix)) == set(state)

    def test_two_prefixes_that_fit_are_both_named(self, tmp_path, monkeypatch):
        monkeypatch.setitem(registry.CONSTRUCTORS, "tiny", Tiny)
        state = perturb(Tiny()).state_dict()
        both = {
            f"{key}.{n}": v * (1 + (key == "ema"))
            for key in ("net", "ema")
            for n, v in state.items()
        }
        path = save(both, tmp_path / "w.pt")
        options = {"architecture": "tiny", "n_classes": 5, "destination": tmp_path / "out"}

        with pytest.raises(CheckpointError, match=r"under `net.` and `ema.`.*_prefix: net."):
            convert(path, **options)
        convert(path, **options, prefix="ema.")

        found = registry.read_state(tmp_path / "out" / "weights.safetensors")
        assert torch.equal(found["fc.weight"], 2 * state["fc.weight"])

    def test_half_precision_and_counters_that_old_files_lack(self, tmp_path, monkeypatch):
        monkeypatch.setitem(registry.CONSTRUCTORS, "tiny", Tiny)
        state = perturb(Tiny()).state_dict()
        old = {n: v.half() for n, v in state.items() if not n.endswith("num_batches_tracked")}

        card = convert(
            save(old, tmp_path / "w.pt"),
            architecture="tiny",
            n_classes=5,
            destination=tmp_path / "out",
        )

        assert card["filled"] == ["bn1.num_batches_tracked", "bn2.num_batches_tracked"]
        assert card["dtypes"] == ["torch.float16", "torch.int64"]
        found = registry.read_state(tmp_path / "out" / "weights.safetensors")
        assert torch.equal(found["fc.weight"], state["fc.weight"].half().float())

    def test_an_own_network_s_names_stay_as_they_are(self, tmp_path, monkeypatch):
        """Wrappers' prefixes may be names of its own."""

        class Own(nn.Module):
            def __init__(self, n_classes):
                super().__init__()
                self.module = nn.Linear(3, n_classes)

        monkeypatch.setitem(registry.CONSTRUCTORS, "own", Own)
        path = save(Own(2).state_dict(), tmp_path / "w.pt")

        card = convert(path, architecture="own", n_classes=2, destination=tmp_path / "out")

        assert card["rules"] == []
        assert sorted(card["mapping"]) == ["module.bias", "module.weight"]


class TestRefusals:
    """File, reason, remedy; and no folder, not even a temporary one."""

    @pytest.fixture(autouse=True)
    def small(self, tmp_path, monkeypatch):
        monkeypatch.setitem(registry.CONSTRUCTORS, "tiny", Tiny)
        self.path, self.state = tmp_path / "w.pt", perturb(Tiny()).state_dict()
        yield
        assert sorted(p.name for p in tmp_path.iterdir()) == ["w.pt"]

    def refused(self, state, message, **options):
        options = {"architecture": "tiny", "n_classes": 5} | options
        with pytest.raises(CheckpointError, match=rf"^\S+w\.pt: .*{message}"):
            convert(save(state, self.path), destination=self.path.with_name("out"), **options)

    def test_missing_surplus_and_shapes(self):
        missing = {n: v for n, v in self.state.items() if n != "fc.bias"}
        self.refused(missing, r"fc.bias is missing; name weights of this very architecture")
        self.refused({**self.state, "aux1.w": torch.ones(2)}, r"aux1.w is surplus; name weights")
        self.refused(self.state, r"fc.weight has shape \(5, 8\), the network \(7, 8\)", n_classes=7)

    def test_numbers_that_are_none(self):
        for value in (torch.nan, torch.inf):
            spoiled = {**self.state, "bn1.weight": torch.full((8,), value)}
            self.refused(spoiled, "bn1.weight holds NaN or infinity; name weights")

    def test_quantised_weights(self):
        spoiled = {**self.state, "fc.weight": torch.ones(5, 8, dtype=torch.int8)}
        self.refused(spoiled, r"fc.weight is torch.int8, the network's torch.float32; save the")

    def test_some_counters_missing(self):
        """All of them is an old version, some is a damaged file."""
        missing = {n: v for n, v in self.state.items() if n != "bn1.num_batches_tracked"}
        self.refused(missing, "bn1.num_batches_tracked is missing")

    def test_copies_that_differ(self):
        both = attacked(self.state)
        both["module.attacker.model.fc.bias"] = torch.zeros(5)
        self.refused(
            both,
            r"two copies of one weight differ: module.model.fc.bias and "
            r"module.attacker.model.fc.bias; take the file anew",
        )
        both = attacked(self.state)
        both["module.attacker.normalize.new_std"] = torch.ones(3, 1, 1)
        self.refused(both, r"differ: module.normalizer.new_std and module.attacker.normalize")

    def test_a_copy_without_its_original(self):
        both = attacked(self.state)
        del both["module.model.fc.bias"]
        self.refused(both, r"fc.bias is missing, attacker.model.fc.bias is surplus")

    def test_a_normalizer_that_is_none(self):
        self.refused(attacked(self.state, std=[0.2, 0.0, 0.2]), r"normalizer's std is \[0.2, 0.0")

    def test_two_tensors_of_one_name(self):
        split = {"a.branch4.1.w": torch.ones(1), "a.branch4_conv.w": torch.ones(1)}
        self.refused(split, r"two tensors are called a.branch4.1.w: a.branch4.1.w and a.branch4_co")

    def test_a_transform_that_the_network_has_not(self):
        self.refused(
            self.state,
            "transform_input is for googlenet and inception_v3, not for tiny; remove it",
            transform_input=True,
        )


class TestNormalization:
    def test_without_the_transform_they_are_what_was_given(self):
        assert normalization(MEAN, STD, transform_input=False) == (MEAN, STD)

    def test_the_transform_in_closed_form(self):
        mean, std = normalization([0.4, 0.5, 0.6], [0.3, 0.2, 0.1], transform_input=True)

        x, m, s = 0.7, np.array([0.4, 0.5, 0.6]), np.array([0.3, 0.2, 0.1])
        through = ((x - m) / s) * np.array(STD) / 0.5 + (np.array(MEAN) - 0.5) / 0.5
        assert (x - np.array(mean)) / np.array(std) == pytest.approx(through, abs=1e-7)


@pytest.fixture
def torchvision_files(tmp_path, monkeypatch):
    """A folder with torchvision's file of an architecture, of random weights, as it would be named.

    The digits in the name are those of the random weights; the real ones are not at hand.
    """

    def make(architecture, form):
        constructor = getattr(torchvision.models, architecture)
        options = {"init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = alive(constructor(weights=None, **options))
        if options:
            network.transform_input = True
        path = save(network.state_dict(), tmp_path / "file.pth", form)
        real = pretrained(architecture, "IMAGENET1K_V1")
        digits = file_sha256(path)[:8]
        name = real.file.replace(real.digits, digits)
        path.rename(tmp_path / name)
        made = checkpoints.Pretrained(
            **{**vars(real), "url": real.url.replace(real.digits, digits)}
            | {"file": name, "digits": digits}
        )
        return network, made

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return make


class TestPretrained:
    def test_what_torchvision_says_of_each_architecture(self):
        found = {name: pretrained(name, "IMAGENET1K_V1") for name in ARCHITECTURES}

        assert len(found) == 7
        for name, made in found.items():
            assert made.url.startswith("https://download.pytorch.org/models/")
            assert (list(made.mean), list(made.std)) == (MEAN, STD)
            assert made.image_size == (299 if name == "inception_v3" else 224)
            assert made.transform_input == (name in ("googlenet", "inception_v3"))
        assert found["resnet50"].digits == "0676ba61"

    @pytest.mark.parametrize(
        ("architecture", "form"),
        [("googlenet", "legacy"), ("inception_v3", "zip"), ("mobilenet_v2", "zip")],
    )
    def test_transform_input_keeps_its_meaning(
        self, tmp_path, torchvision_files, architecture, form
    ):
        network, wanted = torchvision_files(architecture, form)
        path = pretrained_file(wanted, cache=tmp_path / "cache", directory=tmp_path)

        card = convert(
            path,
            architecture=architecture,
            n_classes=1000,
            destination=tmp_path / "out",
            statistics=(wanted.mean, wanted.std),
            transform_input=wanted.transform_input,
        )

        images = torch.rand((2, 3, 96, 96), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            found = loaded(tmp_path / "out", card)(images)
        assert close(found, logits(network, images))
        if wanted.transform_input:
            assert not close(found, logits_without_transform(network, images))

    def test_places_in_order(self, tmp_path, torchvision_files, monkeypatch):
        _, wanted = torchvision_files("mobilenet_v2", "zip")
        with pytest.raises(FileNotFoundError, match=rf"{wanted.file}: no such file; download http"):
            pretrained_file(wanted, cache=tmp_path / "cache", directory=tmp_path / "nowhere")

        asked = []
        monkeypatch.setattr(
            checkpoints, "download", lambda url, to, *, sha256: asked.append((url, to, sha256))
        )
        pretrained_file(wanted, cache=tmp_path / "cache")
        assert asked == [(wanted.url, tmp_path / "cache" / wanted.file, wanted.digits)]

        kept = tmp_path / "hub" / "checkpoints" / wanted.file
        kept.parent.mkdir(parents=True)
        kept.write_bytes((tmp_path / wanted.file).read_bytes())
        assert pretrained_file(wanted, cache=tmp_path / "cache") == kept
        kept.write_bytes(b"other")
        with pytest.raises(
            ValueError, match=rf"{wanted.file}: sha256 .* is not the {wanted.digits}"
        ):
            pretrained_file(wanted, cache=tmp_path / "cache")


def logits_without_transform(network, images):
    network.transform_input = False
    return logits(network, images)


def test_pages_and_profiles_name_one_place_for_weights_and_the_stages_there_are():
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "profiles").glob("*.yaml")]
    text = "".join(path.read_text() for path in [ROOT / "README.md", *pages])
    (place,) = set(re.findall(r"[\w./]*\bcheckpoints/", text))

    # Git ignores it.
    assert f"/{place.split('/')[0]}/" in (ROOT / ".gitignore").read_text().splitlines()
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    named = re.findall(r"dvc repro -f (\w+)@MODEL`", page)
    assert named == ["train", "train_robust"]
    # DVC calls both by the regular model; the twin's `-r` stands in the command.
    assert all(stages[name]["matrix"].keys() == {"model"} for name in named)
    assert stages["train_robust"]["cmd"] == "python stages/train.py ${item.model}-r"
