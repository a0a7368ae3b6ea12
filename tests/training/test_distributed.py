import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import GoogLeNet

from conftest import ROOT
from steadymap.models import registry
from steadymap.params.schema import Attack, Recipe, RobustAccuracy
from steadymap.store.atomic import read_json
from steadymap.store.tables import read_table
from steadymap.training import loop
from steadymap.training.augmentation import augment, augmented_batches
from steadymap.training.distributed import ProcessGroup, process_group
from steadymap.training.loop import add_heads, drop_heads, loss_of
from two_processes import N, gradients

THREAT = RobustAccuracy(norm="l2", eps=0.5, step_size=0.2, steps=2, n_images=16)


def torchrun(*arguments, n=2):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
        + [str(argument) for argument in arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Folder with the gradients that two processes found in each mode."""
    folder = tmp_path_factory.mktemp("gradients")
    done = torchrun(ROOT / "tests" / "two_processes.py", folder)
    assert done.returncode == 0, done.stderr
    return folder


class TestOneStep:
    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_gradients_of_two_processes_are_the_whole_batchs(self, mode, two_processes):
        found = torch.load(two_processes / f"{mode}.pt", weights_only=True)

        if mode == "eval":
            expected = gradients(mode)
        else:
            # BatchNorm normalizes each share by itself.
            parts = [
                gradients(mode, share=ProcessGroup(rank, 2).share, n=len(range(N)[rank::2]))
                for rank in range(2)
            ]
            sizes = [len(range(N)[rank::2]) / N for rank in range(2)]
            expected = {
                name: sum(size * part[name] for size, part in zip(sizes, parts, strict=True))
                for name in parts[0]
            }

        # The network's scale: a bias before BatchNorm has a gradient of nothing but rounding.
        scale = max(float(value.abs().max()) for value in expected.values())
        for name, value in expected.items():
            assert torch.allclose(found[name], value, rtol=0, atol=1e-5 * scale), name

    def test_shares_cover_a_batch_once(self):
        shares = [np.arange(11)[ProcessGroup(rank, 3).share] for rank in range(3)]

        assert sorted(np.concatenate(shares)) == list(range(11))

    def test_more_processes_than_gpus_are_refused(self, monkeypatch):
        for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

        with pytest.raises(ValueError, match=r"process 1 .* no GPU, there are 1; start torchrun"):
            process_group("cuda").__enter__()


class TestHeads:
    def test_they_are_trained_along_and_dropped(self):
        network = registry.build("googlenet", 4)
        before = set(network.state_dict())
        add_heads(network, n_classes=4, seed=0)
        images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        truth = torch.tensor([1, 3])

        outputs = network.train()(images)
        plain, _ = loss_of(outputs.logits, truth, Recipe(), n_batch=2)
        loss, logits = loss_of(outputs, truth, Recipe(auxiliary_weight=0.3), n_batch=2)
        others = [loss_of(part, truth, Recipe(), n_batch=2)[0] for part in outputs[1:]]
        drop_heads(network)

        assert isinstance(network, GoogLeNet)
        assert len(others) == 2
        assert torch.allclose(loss, plain + 0.3 * sum(others))
        assert torch.equal(logits, outputs.logits)
        assert set(network.state_dict()) == before
        assert isinstance(network.train()(images), torch.Tensor)

    def test_a_network_without_heads_is_refused(self):
        with pytest.raises(ValueError, match=r"auxiliary_weight: ResNet has no auxiliary heads"):
            add_heads(registry.build("resnet18", 4), n_classes=4, seed=0)


class TestAugmentation:
    def test_it_is_keyed_by_seed_and_nothing_else(self):
        image = Image.fromarray(
            np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        )

        first = augment(image, image_size=32, seed=1)
        torch.manual_seed(7)
        state = torch.get_rng_state()
        again = augment(image, image_size=32, seed=1)

        assert first.shape == (3, 32, 32)
        assert torch.equal(first, again)
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(first, augment(image, image_size=32, seed=2))
        assert 0 <= first.min() <= first.max() <= 1

    def test_a_plain_image_keeps_its_color_nearly(self):
        image = Image.new("RGB", (64, 64), (128, 128, 128))

        shown = torch.stack([augment(image, image_size=8, seed=seed) for seed in range(64)])

        # Brightness by up to a tenth, lighting by .05 of the variances: .05 at the very most.
        assert (shown - 128 / 255).abs().max() < 0.08
        assert shown.std(dim=0).min() > 0.01
        assert torch.allclose(shown.mean(), torch.tensor(128 / 255), atol=0.01)

    def test_a_batch_does_not_depend_on_its_company(self):
        images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)

        def made(*positions):
            return list(
                augmented_batches(
                    images, [np.array(p) for p in positions], image_size=32, seed=0, epoch=0
                )
            )

        whole, halves = made([0, 3, 5]), made([5], [0, 3])

        assert torch.equal(whole[0], torch.cat([halves[1], halves[0]]))


def trained(tmp_path, embedded, monkeypatch, **changes):
    from conftest import Tiny

    monkeypatch.setitem(registry.CONSTRUCTORS, "googlenet", Tiny)
    made = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05} | changes
    card = loop.train(
        loop.TrainingSpec("googlenet-r", Recipe(**made), embedded, THREAT),
        tmp_path / "model",
        cache=tmp_path / "cache",
        device="cpu",
    )
    return card, read_table(tmp_path / "model" / "curves.csv")


def test_the_best_epoch_is_kept(tmp_path, embedded, monkeypatch):
    attack = Attack(norm="l2", eps=0.5, step_size=0.3, steps=1)

    card, curves = trained(tmp_path, embedded, monkeypatch, attack=attack, keep="best")

    robust = curves["val_robust_accuracy"]
    assert card["best_epoch"] == int(robust.argmax()) + 1
    assert card["accuracies"]["robust"] == pytest.approx(robust.max())


def test_training_with_augmentation_learns(tmp_path, embedded, monkeypatch):
    card, curves = trained(
        tmp_path, embedded, monkeypatch, epochs=12, augmentation="imagenet", precision="float32"
    )

    assert curves["train_loss"].iloc[-1] < curves["train_loss"].iloc[0]
    assert card["n_processes"] == 1


@pytest.mark.slow
def test_two_processes_train_and_one_goes_on(tmp_path, embedded):
    """A training begun by two processes is finished by one, and taken from the cache by `train`."""
    script = tmp_path / "go.py"
    embedded.write(tmp_path / "data")
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from conftest import Tiny\n"
        "from steadymap.data.dataset import read_dataset\n"
        "from steadymap.models import registry\n"
        "from steadymap.params.schema import Attack, Recipe, RobustAccuracy\n"
        "from steadymap.training.loop import TrainingSpec, train\n"
        "registry.CONSTRUCTORS['googlenet'] = Tiny\n"
        "root, stop = Path(sys.argv[1]), int(sys.argv[2])\n"
        "def on_epoch(card, curves):\n"
        "    print('epoch', len(curves), flush=True)\n"
        "    if len(curves) == stop:\n"
        "        raise KeyboardInterrupt\n"
        "recipe = Recipe(epochs=3, batch_size=16, learning_rate=0.05,\n"
        "    attack=Attack(norm='l2', eps=0.5, step_size=0.3, steps=1))\n"
        "threat = RobustAccuracy(norm='l2', eps=0.5, step_size=0.2, steps=2, n_images=16)\n"
        "train(TrainingSpec('googlenet-r', recipe, read_dataset(root / 'data'), threat),\n"
        "    root / 'model', cache=root / 'cache', device='cpu', on_epoch=on_epoch)\n"
    )

    broken = torchrun(script, tmp_path, 2)
    assert broken.returncode != 0
    assert not (tmp_path / "model").exists()
    done = torchrun(script, tmp_path, 0, n=1)
    assert done.returncode == 0, done.stderr
    assert "epoch 3" in done.stdout
    assert "epoch 2" not in done.stdout
    card = read_json(tmp_path / "model" / "card.json")
    assert card["n_processes"] == 1
    assert len(read_table(tmp_path / "model" / "curves.csv")) == 3
    assert not list((tmp_path / "cache").glob("*.checkpoint.pt"))
