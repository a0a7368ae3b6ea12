"""A training whose weights are not those of its card is trained again, or named."""

import logging
import os
import shutil

import pytest
import torch

from conftest import Tiny
from steadymap.engine import runner
from steadymap.models import registry
from steadymap.params.schema import Attack, Recipe, RobustAccuracy
from steadymap.store.atomic import file_sha256, read_json
from steadymap.training import loop, verified
from steadymap.training.verified import train_verified

THREAT = RobustAccuracy(norm="l2", eps=0.5, step_size=0.2, steps=2, n_images=16)
REGULAR = Recipe(epochs=1, batch_size=16, learning_rate=0.05)
TWIN = Recipe(
    init_from="googlenet",
    attack=Attack(norm="l2", eps=0.5, step_size=0.3, steps=1),
    **{"epochs": 1, "batch_size": 16, "learning_rate": 0.05},
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(registry.CONSTRUCTORS, "googlenet", Tiny)


def made(tmp_path, embedded, name="googlenet", recipe=REGULAR, init_folder=None):
    spec = loop.TrainingSpec(name, recipe, embedded, THREAT, init_folder)
    folder = tmp_path / "models" / name
    return train_verified(spec, folder, cache=tmp_path / "cache", device="cpu")


def flip(path):
    """Change one bit of the last weight, which stays a number."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:40])


def entry(tmp_path):
    (found,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    return found


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("weights.safetensors", flip, "is not the card's"),
        ("weights.safetensors", os.remove, "no such file"),
        ("card.json", cut, "not the card of a trained model"),
        ("curves.csv", os.remove, "no such file"),
    ],
)
def test_a_damaged_finished_training_is_trained_once_more(
    tmp_path, embedded, caplog, name, harm, said
):
    card = made(tmp_path, embedded)
    folder, finished = tmp_path / "models" / "googlenet", entry(tmp_path)
    expected = content(folder)
    harm(finished / name)
    # DVC removes an output before its stage runs.
    shutil.rmtree(folder)

    with caplog.at_level(logging.WARNING, logger="steadymap.training.verified"):
        again = made(tmp_path, embedded)

    assert again == card
    assert content(folder) == content(finished) == expected
    (warning,) = caplog.messages
    assert warning.startswith(f"{finished / name}: ")
    assert said in warning
    assert warning.endswith("it is removed and trained again")
    registry.load(folder)


def test_a_whole_one_is_not_trained_again(tmp_path, embedded, monkeypatch, caplog):
    card = made(tmp_path, embedded)
    written = (entry(tmp_path) / "card.json").stat()
    monkeypatch.setattr(loop, "_fit", lambda *_: pytest.fail("trained again"))

    assert made(tmp_path, embedded) == card

    kept = (entry(tmp_path) / "card.json").stat()
    assert (kept.st_ino, kept.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert not caplog.messages


def test_weights_that_are_damaged_as_they_are_written_are_named(tmp_path, embedded, monkeypatch):
    """A training that was made anew and is damaged too: a disk that can't be trusted."""
    folder = tmp_path / "models" / "googlenet"

    def spoiled(*arguments, **options):
        card = loop.train(*arguments, **options)
        flip(folder / "weights.safetensors")
        return card

    monkeypatch.setattr(verified, "train", spoiled)

    with pytest.raises(ValueError, match="is not the card's") as error:
        made(tmp_path, embedded)

    assert str(error.value).startswith(f"{folder / 'weights.safetensors'}: sha256 ")
    assert str(error.value).endswith("the folder was removed: look at the disk, then run it again")
    assert not folder.exists()


@pytest.mark.parametrize("harm", [flip, os.remove])
def test_a_twin_does_not_start_from_damaged_weights(tmp_path, embedded, monkeypatch, harm):
    made(tmp_path, embedded)
    start = tmp_path / "models" / "googlenet"
    harm(start / "weights.safetensors")
    monkeypatch.setattr(loop, "_fit", lambda *_: pytest.fail("trained"))

    with pytest.raises(ValueError, match="googlenet-r starts from it") as error:
        made(tmp_path, embedded, "googlenet-r", TWIN, init_folder=start)

    assert str(error.value).startswith(f"{start / 'weights.safetensors'}: ")
    assert "`dvc repro -f train@googlenet`" in str(error.value)
    assert not (tmp_path / "models" / "googlenet-r").exists()


def test_a_damaged_twin_is_trained_once_more(tmp_path, embedded):
    """What a training is called by has the weights that it starts from in it."""
    start = tmp_path / "models" / "googlenet"
    regular = made(tmp_path, embedded)
    others = {entry(tmp_path)}
    card = made(tmp_path, embedded, "googlenet-r", TWIN, init_folder=start)
    (finished,) = {path for path in (tmp_path / "cache").iterdir() if path.is_dir()} - others
    flip(finished / "weights.safetensors")

    again = made(tmp_path, embedded, "googlenet-r", TWIN, init_folder=start)

    assert again == card
    assert again["init_sha256"] == regular["weights_sha256"]
    assert file_sha256(finished / "weights.safetensors") == card["weights_sha256"]


def test_processes_that_train_together_are_started_again(tmp_path, embedded, monkeypatch):
    made(tmp_path, embedded)
    finished = entry(tmp_path)
    flip(finished / "weights.safetensors")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(verified, "train", lambda *_, **__: pytest.fail("waits for the other"))

    with pytest.raises(ValueError, match="start torchrun again") as error:
        made(tmp_path, embedded)

    assert str(error.value).startswith(f"{finished / 'weights.safetensors'}: ")
    assert not finished.exists()


def test_given_weights_have_no_finished_training(tmp_path, embedded):
    made(tmp_path, embedded)
    given = Recipe(weights=str(tmp_path / "models" / "googlenet"))

    card = made(tmp_path / "other", embedded, recipe=given)

    assert card["weights_sha256"] == read_json(entry(tmp_path) / "card.json")["weights_sha256"]
    assert not (tmp_path / "other" / "cache").exists()


OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.head = nn.Linear(4, n_classes)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


class Pair(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits, x


class Mates(Net):
    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Branch(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits if torch.is_tensor(x) else 2 * logits


def lone(n_classes):
    return Net(1)
"""


class TestOwnNetworks:
    """One that maps can't be trusted of is refused before it is trained, and leaves nothing."""

    @pytest.mark.parametrize(
        ("network", "message"),
        [
            ("Pair", r"training.mine.architecture: Pair returns tuple of 2 .*output\[0\]"),
            ("Mates", "training.mine.architecture: Mates: .*norm, BatchNorm2d without running"),
            ("Branch", "training.mine.architecture: Branch: .*differ from the network's by"),
            ("lone", "training.mine.architecture: Net returns 1 logits, the data have 8 classes"),
        ],
    )
    def test_are_refused_before_training(self, tmp_path, embedded, monkeypatch, network, message):
        name = f"nets_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(OWN)
        monkeypatch.chdir(tmp_path)
        recipe = REGULAR.model_copy(update={"architecture": f"{name}:{network}"})

        with pytest.raises(ValueError, match=message):
            made(tmp_path, embedded, name="mine", recipe=recipe)
        assert not (tmp_path / "models").exists()
        assert not (tmp_path / "cache").exists()

    def test_whose_weights_fix_the_probability_leave_no_folder(
        self, tmp_path, embedded, monkeypatch
    ):
        name = f"nets_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(OWN)
        monkeypatch.chdir(tmp_path)
        network = registry.build(f"{name}:Net", 8)
        torch.nn.init.zeros_(network.head.weight)
        torch.save(network.state_dict(), tmp_path / "w.pt")
        recipe = Recipe(architecture=f"{name}:Net", weights=str(tmp_path / "w.pt"))

        with pytest.raises(ValueError, match=r"training.mine: Net: output 'probability' can't"):
            made(tmp_path, embedded, name="mine", recipe=recipe)
        assert not (tmp_path / "models" / "mine").exists()


def test_a_loaded_model_is_checked(tmp_path, embedded, monkeypatch):
    """Code is told by its hash; what it imports from elsewhere is not."""
    card = made(tmp_path, embedded)
    folder = tmp_path / "models" / "googlenet"
    runner._model.cache_clear()
    assert runner._model(folder, "cpu")(torch.rand(1, 3, 32, 32)).shape == (1, 8)

    forward = Tiny.forward
    monkeypatch.setattr(Tiny, "forward", lambda self, x: torch.dropout(forward(self, x), 0.5, True))
    runner._model.cache_clear()
    with pytest.raises(ValueError, match=rf"{folder}: Tiny: .*dropout\(\) at "):
        runner._model(folder, "cpu")
    assert card["image_size"] == 32
