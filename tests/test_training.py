import numpy as np
import pytest
import safetensors.torch
import torch

from conftest import ROOT, Tiny
from steadymap import attribute, models, training
from steadymap.data.embedded import generate
from steadymap.data.fetch import fetch
from steadymap.evaluation import predictions
from steadymap.params import Attack, Recipe, RobustAccuracy
from steadymap.params import load as load_params
from steadymap.store import read_json, read_table

THREAT = RobustAccuracy(norm="l2", eps=0.5, step_size=0.2, steps=2, n_images=16)
ATTACK = Attack(norm="l2", eps=0.5, step_size=0.3, steps=1)


def recipe(**changes):
    return Recipe(**{"epochs": 2, "batch_size": 16, "learning_rate": 0.05} | changes)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(models.CONSTRUCTORS, "googlenet", Tiny)


def trained(tmp_path, embedded, name="googlenet", made=None, cache="cache", **options):
    return training.train(
        name,
        made or recipe(),
        embedded,
        tmp_path / name,
        cache=tmp_path / cache,
        threat=THREAT,
        device="cpu",
        **options,
    )


def test_a_model_folder_holds_weights_card_and_curves(tmp_path, embedded):
    card = trained(tmp_path, embedded)

    assert sorted(path.name for path in (tmp_path / "googlenet").iterdir()) == [
        "card.json",
        "curves.csv",
        "weights.safetensors",
    ]
    assert card == read_json(tmp_path / "googlenet" / "card.json")
    assert card["accuracies"]["n_clean"] == 48
    assert card["accuracies"]["n_robust"] == 16
    assert card["classes"] == list(embedded.classes)
    assert not card["robust"]
    curves = read_table(tmp_path / "googlenet" / "curves.csv")
    assert list(curves) == list(training.CURVES)
    assert curves["epoch"].tolist() == [1, 2]
    model = models.load(tmp_path / "googlenet")
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 8)


def test_training_learns(tmp_path, embedded):
    card = trained(tmp_path, embedded, made=recipe(epochs=30, precision="float32"))

    curves = read_table(tmp_path / "googlenet" / "curves.csv")
    assert curves["train_loss"].iloc[-1] < 0.85 * curves["train_loss"].iloc[0]
    assert card["accuracies"]["clean"] >= card["accuracies"]["robust"]


def weights(folder):
    return safetensors.torch.load_file(folder / "weights.safetensors")


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_killed_training_ends_in_the_same_weights(tmp_path, embedded):
    """Flips, order and attack starts are keyed by the epoch."""
    made = recipe(
        epochs=3, flip=True, attack=Attack(**ATTACK.model_dump() | {"random_start": True})
    )
    trained(tmp_path / "whole", embedded, "googlenet-r", made)

    def dies(card, curves):
        if len(curves) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", embedded, "googlenet-r", made, on_epoch=dies)
    assert not (tmp_path / "killed" / "googlenet-r").exists()
    seen = []
    trained(
        tmp_path / "killed",
        embedded,
        "googlenet-r",
        made,
        on_epoch=lambda card, curves: seen.append(len(curves)),
    )

    assert seen == [3]
    whole, killed = (tmp_path / part / "googlenet-r" for part in ("whole", "killed"))
    assert same(weights(whole), weights(killed))
    for name in ("card.json", "curves.csv", "weights.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert not list((tmp_path / "killed").rglob("*.pt"))


def test_a_finished_training_is_taken_from_the_cache(tmp_path, embedded, monkeypatch):
    trained(tmp_path, embedded)
    first = weights(tmp_path / "googlenet")
    monkeypatch.setattr(training, "_fit", lambda *_: pytest.fail("trained again"))

    trained(tmp_path, embedded)

    assert same(first, weights(tmp_path / "googlenet"))


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"learning_rate": 0.06}, {"attack": ATTACK}, {"epochs": 3}], ids=str
)
def test_another_recipe_is_another_training(embedded, changes):
    digests = {
        training.recipe_digest("googlenet", made, embedded, threat=THREAT, init_sha256=None)
        for made in (recipe(), recipe(**changes))
    }

    assert len(digests) == 2


def test_a_robust_twin_starts_from_its_regular_one(tmp_path, embedded):
    regular = trained(tmp_path, embedded)
    made = recipe(
        init_from="googlenet", attack=ATTACK, epochs=1, learning_rate=1e-9, precision="float32"
    )

    card = trained(tmp_path, embedded, "googlenet-r", made, init_folder=tmp_path / "googlenet")

    assert card["init_sha256"] == regular["weights_sha256"]
    assert card["robust"]
    before, after = weights(tmp_path / "googlenet"), weights(tmp_path / "googlenet-r")
    assert torch.allclose(before["fc.weight"], after["fc.weight"], atol=1e-5)


def test_given_weights_are_measured_not_trained(tmp_path, embedded, monkeypatch):
    trained(tmp_path, embedded)
    monkeypatch.setattr(training, "_fit", lambda *_: pytest.fail("trained"))
    given = Recipe(weights=str(tmp_path / "googlenet"))

    card = training.train(
        "googlenet", given, embedded, tmp_path / "b", cache=tmp_path / "c", threat=THREAT
    )

    assert same(weights(tmp_path / "googlenet"), weights(tmp_path / "b"))
    assert card["accuracies"]["n_clean"] == 48
    with pytest.raises(
        ValueError, match=r"googlenet-r.weights: .* holds 'googlenet', robust False"
    ):
        training.train(
            "googlenet-r", given, embedded, tmp_path / "d", cache=tmp_path / "c", threat=THREAT
        )
    assert not (tmp_path / "d").exists()


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 5), nn.Linear(6, num_classes)

    def forward(self, x):
        return self.fc(nn.functional.relu(self.conv(x), inplace=True).mean((2, 3)))
"""


class TestOwnModel:
    """An architecture and a weights file of one's own, as params name them."""

    @pytest.fixture(autouse=True)
    def own(self, tmp_path, monkeypatch):
        self.name = f"own_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{self.name}.py").write_text(OWN)
        monkeypatch.chdir(tmp_path)

    def given(self, suffix=".safetensors"):
        network = models.build(f"{self.name}:Net", 8, seed=3)
        if suffix == ".pt":
            torch.save(network.state_dict(), "given.pt")
        else:
            safetensors.torch.save_file(network.state_dict(), "given.safetensors")
        made = Recipe(
            architecture=f"{self.name}:Net",
            weights=f"given{suffix}",
            mean=[0.5, 0.4, 0.3],
            std=[0.2, 0.2, 0.3],
        )
        return network, made

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_a_weights_file_is_taken_measured_and_explained(self, tmp_path, embedded, suffix):
        network, made = self.given(suffix)

        card = trained(tmp_path, embedded, name="mine", made=made)

        assert card["accuracies"]["n_clean"] == 48
        assert (card["mean"], card["std"]) == (made.mean, made.std)
        assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == [
            "card.json",
            "conversion.json",
            "curves.csv",
            "weights.safetensors",
        ]
        model = models.load(tmp_path / "mine")
        images = torch.rand(2, 3, 32, 32)
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (made.mean, made.std))
        expected = network((images - mean) / std)
        assert torch.allclose(model(images), expected, atol=1e-5 * float(expected.abs().max()))
        guided, plain = (
            attribute(method, model, images, [0, 1]) for method in ("guided_backprop", "gradient")
        )
        assert not torch.allclose(guided, plain)

    def test_it_is_trained_where_there_are_no_weights_and_has_a_robust_twin(
        self, tmp_path, embedded
    ):
        architecture = f"{self.name}:Net"
        first = trained(tmp_path, embedded, "mine", recipe(architecture=architecture))
        twin = trained(
            tmp_path,
            embedded,
            "mine-r",
            recipe(architecture=architecture, attack=ATTACK, init_from="mine"),
            init_folder=tmp_path / "mine",
        )

        assert first["architecture"] == twin["architecture"] == architecture
        assert twin["init_sha256"] == first["weights_sha256"]
        assert models.load(tmp_path / "mine-r")(torch.rand(1, 3, 32, 32)).shape == (1, 8)

    def test_code_that_changed_since_is_told(self, tmp_path, embedded):
        trained(tmp_path, embedded, name="mine", made=self.given()[1])

        (tmp_path / f"{self.name}.py").write_text(OWN + "\n# other\n")

        with pytest.raises(ValueError, match=r"changed since; .*dvc repro -f train@mine"):
            models.load(tmp_path / "mine")

    def test_weights_that_do_not_fit_leave_nothing(self, tmp_path, embedded):
        made = self.given()[1]
        safetensors.torch.save_file({"fc.weight": torch.zeros(8, 6)}, "given.safetensors")

        with pytest.raises(
            ValueError, match=r"training.mine.weights: given.safetensors: .* conv.weight is missing"
        ):
            trained(tmp_path, embedded, name="mine", made=made)

        assert not (tmp_path / "mine").exists()


def test_a_diverging_training_says_so(tmp_path, embedded):
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch 1; lower"):
        trained(tmp_path, embedded, made=recipe(learning_rate=1e30))
    assert not (tmp_path / "googlenet").exists()


def test_the_random_state_is_left_as_it_was(tmp_path, embedded):
    before = torch.random.get_rng_state()

    trained(tmp_path, embedded)

    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1, 0.1, 0.1, 0.1]),
        ("step", [0.1, 0.1, 0.01, 0.001]),
        ("one_cycle", [0.004, 0.1, 0.05, 0.0]),
    ],
)
def test_schedules(schedule, expected):
    made = recipe(epochs=8, learning_rate=0.1, schedule=schedule, step_epochs=3)

    at = {"constant": [0, 1, 2, 7], "step": [0, 2, 3, 6], "one_cycle": [0, 2, 5, 8]}[schedule]
    found = [training._learning_rate(made, progress) for progress in at]
    assert found == pytest.approx(expected, abs=1e-4)


class Constant(torch.nn.Module):
    """Always the same class."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

    def forward(self, x):
        return self.bias + 0 * x.mean((1, 2, 3))[:, None]


def test_accuracy_is_the_share_of_right_answers():
    images = np.zeros((5, 8, 8, 3), np.uint8)

    assert training.accuracy(Constant(), images, np.array([1, 1, 0, 2, 1])) == 0.6


@pytest.fixture
def real(monkeypatch):
    """The real architecture in place of the small one."""
    monkeypatch.undo()


@pytest.mark.slow
def test_the_embedded_pair_is_what_the_study_needs(real, tmp_path):
    """Accuracies of both twins, and nothing learnt from backgrounds; minutes without the cache."""
    params = load_params(ROOT / "profiles" / "embedded.yaml")
    dataset = fetch(params.data)
    labels = dataset.rows("val")["label"].to_numpy()
    found = {}
    for name in params.models.names:
        made = params.training[name]
        found[name] = training.train(
            name,
            made,
            dataset,
            tmp_path / name,
            cache=ROOT / ".cache" / "training",
            threat=params.robust_accuracy,
            init_folder=tmp_path / made.init_from if made.init_from else None,
        )["accuracies"]

    assert found["googlenet"]["clean"] >= 0.85
    assert found["googlenet"]["robust"] <= 0.15
    assert found["googlenet-r"]["clean"] >= 0.70
    assert found["googlenet-r"]["robust"] >= 0.40
    assert all(accuracies["n_robust"] >= 400 for accuracies in found.values())

    bare = generate("val", params.data.n_val, image_size=params.data.image_size, objects=False)
    chance = 1 / len(dataset.classes)
    bound = chance + 3 * (chance * (1 - chance) / params.data.n_val) ** 0.5
    for name in params.models.names:
        predicted = predictions(models.load(tmp_path / name), bare.images)
        assert (predicted == labels).mean() < bound
