import dataclasses

import numpy as np
import pytest
import safetensors.torch
import torch

from conftest import ROOT, Tiny, perturb
from steadymap import attribute
from steadymap.data.embedded import generate
from steadymap.data.fetch import fetch
from steadymap.engine.selection import predictions
from steadymap.models import registry
from steadymap.params.files import load as load_params
from steadymap.params.schema import Attack, Recipe, RobustAccuracy
from steadymap.store.atomic import file_sha256, read_json
from steadymap.store.tables import read_table
from steadymap.training import checkpoints, loop

THREAT = RobustAccuracy(norm="l2", eps=0.5, step_size=0.2, steps=2, n_images=16)
ATTACK = Attack(norm="l2", eps=0.5, step_size=0.3, steps=1)


def recipe(**changes):
    return Recipe(**{"epochs": 2, "batch_size": 16, "learning_rate": 0.05} | changes)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(registry.CONSTRUCTORS, "googlenet", Tiny)


def trained(
    tmp_path, embedded, name="googlenet", made=None, cache="cache", init_folder=None, on_epoch=None
):
    spec = loop.TrainingSpec(name, made or recipe(), embedded, THREAT, init_folder)
    return loop.train(
        spec, tmp_path / name, cache=tmp_path / cache, device="cpu", on_epoch=on_epoch
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
    assert list(curves) == list(loop.CURVES)
    assert curves["epoch"].tolist() == [1, 2]
    model = registry.load(tmp_path / "googlenet")
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


def timed(monkeypatch, **seconds):
    """Steps take these seconds, whatever the clock says; which were asked for."""
    asked = []

    def fake(step, device):
        step()
        asked.append(("float32", "bf16")[len(asked) % 2])
        return seconds[asked[-1]]

    monkeypatch.setattr(loop, "_step_seconds", fake)
    return asked


@pytest.mark.parametrize("faster", ["bf16", "float32"])
def test_auto_trains_in_the_faster_precision_and_says_so(tmp_path, embedded, monkeypatch, faster):
    seconds = {"bf16": 1.0, "float32": 1.0} | {faster: 0.25}
    asked = timed(monkeypatch, **seconds)

    card = trained(tmp_path / "auto", embedded, made=recipe(precision="auto"))
    chosen = trained(tmp_path / "chosen", embedded, made=recipe(precision=faster))

    assert sorted(asked) == ["bf16", "float32"]
    assert (card["precision"], card["step_seconds"]) == (faster, seconds)
    assert card["recipe"]["precision"] == "auto"
    assert chosen["precision"] == faster
    assert "step_seconds" not in chosen
    # Timing steps changes neither weights nor running statistics nor what is drawn.
    assert card["weights_sha256"] == chosen["weights_sha256"]
    assert card["recipe_digest"] != chosen["recipe_digest"]


def test_a_step_is_timed_in_both_precisions(embedded, monkeypatch):
    """The steps that are timed are those of the network, forward and backward."""
    clock = iter([0, 9, 10, 10.5, 11, 11.25, 20, 29, 30, 34, 35, 38])
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    kinds = []

    class Watched(Tiny):
        def forward(self, x):
            found = super().forward(x)
            kinds.append(found.dtype)
            return found

    card = {"image_size": 32, "classes": list("abcde")}

    chosen, seconds = loop.faster_precision(Watched(), recipe(), card)

    assert kinds == [torch.float32] * 3 + [torch.bfloat16] * 3
    assert (chosen, seconds) == ("float32", {"float32": 0.25, "bf16": 3})


@pytest.mark.parametrize("epochs_done", [0, 1])
def test_a_killed_training_goes_on_in_its_precision(tmp_path, embedded, monkeypatch, epochs_done):
    """A machine that has become slower at it does not change it, nor does a kill at once."""
    made = recipe(precision="auto")
    timed(monkeypatch, bf16=1.0, float32=0.5)
    whole = trained(tmp_path / "whole", embedded, made=made)

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if not epochs_done:
            patch.setattr(loop, "accuracy", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", embedded, made=made, on_epoch=dies)
    asked = timed(monkeypatch, bf16=0.5, float32=1.0)
    card = trained(tmp_path / "killed", embedded, made=made)

    assert asked == []
    assert card == whole


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_slow_bf16_is_told_with_the_key(
    tmp_path, embedded, monkeypatch, caplog, capability, warned
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)

    trained(tmp_path, embedded, made=recipe(epochs=1, precision="bf16"))

    assert ("training.googlenet.precision is bf16" in caplog.text) == warned
    assert ("set precision: auto" in caplog.text) == warned


def test_a_finished_training_is_taken_from_the_cache(tmp_path, embedded, monkeypatch):
    trained(tmp_path, embedded)
    first = weights(tmp_path / "googlenet")
    monkeypatch.setattr(loop, "_fit", lambda *_: pytest.fail("trained again"))

    trained(tmp_path, embedded)

    assert same(first, weights(tmp_path / "googlenet"))


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"learning_rate": 0.06}, {"attack": ATTACK}, {"epochs": 3}], ids=str
)
def test_another_recipe_is_another_training(embedded, changes):
    digests = {
        loop.recipe_digest("googlenet", made, embedded, threat=THREAT, init_sha256=None)
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
    monkeypatch.setattr(loop, "_fit", lambda *_: pytest.fail("trained"))
    given = Recipe(weights=str(tmp_path / "googlenet"))

    card = trained(tmp_path / "b", embedded, made=given)

    assert same(weights(tmp_path / "googlenet"), weights(tmp_path / "b" / "googlenet"))
    assert card["accuracies"]["n_clean"] == 48
    with pytest.raises(
        ValueError, match=r"googlenet-r.weights: .* holds 'googlenet', robust False"
    ):
        trained(tmp_path / "d", embedded, "googlenet-r", given)
    assert not list((tmp_path / "d").iterdir())


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
        network = registry.build(f"{self.name}:Net", 8, seed=3)
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
        model = registry.load(tmp_path / "mine")
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
        assert registry.load(tmp_path / "mine-r")(torch.rand(1, 3, 32, 32)).shape == (1, 8)

    def test_code_that_changed_since_is_told(self, tmp_path, embedded):
        trained(tmp_path, embedded, name="mine", made=self.given()[1])

        (tmp_path / f"{self.name}.py").write_text(OWN + "\n# other\n")

        with pytest.raises(ValueError, match=r"changed since; .*dvc repro -f train@mine"):
            registry.load(tmp_path / "mine")

    def test_weights_that_do_not_fit_leave_nothing(self, tmp_path, embedded):
        made = self.given()[1]
        safetensors.torch.save_file({"fc.weight": torch.zeros(8, 6)}, "given.safetensors")

        with pytest.raises(
            ValueError, match=r"training.mine.weights: given.safetensors: .* conv.weight is missing"
        ):
            trained(tmp_path, embedded, name="mine", made=made)

        assert not (tmp_path / "mine").exists()


class TestWeightsFromElsewhere:
    """Real networks behind the names that params give them; 8 classes."""

    @pytest.fixture(autouse=True)
    def real(self, monkeypatch, small):
        monkeypatch.undo()

    def saved(self, path, prefix="module.model."):
        network = perturb(registry.build("resnet18", 8, seed=4))
        state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
        if prefix:
            for key, value in (("new_mean", [0.4, 0.5, 0.6]), ("new_std", [0.2, 0.3, 0.4])):
                state[f"module.normalizer.{key}"] = torch.tensor(value).reshape(3, 1, 1)
        torch.save({"model": state, "epoch": 90}, path, _use_new_zipfile_serialization=False)
        return network

    def test_a_robust_checkpoint_gives_a_model_folder(self, tmp_path, embedded):
        path = tmp_path / "ResNet18_R.pt"
        network = self.saved(path)
        made = Recipe(checkpoint=str(path), sha256=file_sha256(path))

        card = trained(tmp_path, embedded, "resnet18-r", made)

        assert card == read_json(tmp_path / "resnet18-r" / "card.json")
        assert card["robust"]
        assert (card["mean"], card["std"]) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
        assert card["checkpoint"]["sha256"] == made.sha256
        assert card["accuracies"]["n_clean"] == 48
        conversion = read_json(tmp_path / "resnet18-r" / "conversion.json")
        assert conversion["mapping"]["fc.bias"] == "module.model.fc.bias"
        assert sorted(p.name for p in (tmp_path / "resnet18-r").iterdir()) == [
            "card.json",
            "conversion.json",
            "curves.csv",
            "weights.safetensors",
        ]
        found = registry.read_state(tmp_path / "resnet18-r" / "weights.safetensors")
        assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())
        assert registry.load(tmp_path / "resnet18-r").mean.flatten().tolist() == pytest.approx(
            [0.4, 0.5, 0.6]
        )

    def test_statistics_in_params_are_another_model(self, tmp_path, embedded):
        self.saved(tmp_path / "w.pt")
        recipes = (
            Recipe(checkpoint=str(tmp_path / "w.pt")),
            Recipe(checkpoint=str(tmp_path / "w.pt"), mean=[0.5] * 3, std=[0.5] * 3),
        )

        first, second = (trained(tmp_path, embedded, "resnet18", made) for made in recipes)

        assert first["weights_sha256"] == second["weights_sha256"]
        assert registry.identity(first) != registry.identity(second)

    def test_a_key_and_a_prefix_choose_the_model_and_stand_in_its_card(self, tmp_path, embedded):
        """Averaged weights beside the plain ones are two models of one file."""
        state = registry.build("resnet18", len(embedded.classes)).state_dict()
        sets = {
            "state_dict": {f"net.{name}": value for name, value in state.items()},
            "state_dict_ema": {
                f"net.{name}": value // 2 if value.dtype == torch.int64 else value * 0.5
                for name, value in state.items()
            },
        }
        for one in sets.values():
            one["loss.weight"] = torch.ones(2, 2)
        torch.save(sets, tmp_path / "w.pt")
        given = {"checkpoint": str(tmp_path / "w.pt")}
        with pytest.raises(
            ValueError, match=r"training.resnet18.checkpoint: .*differ: 'state_dict'"
        ):
            trained(tmp_path, embedded, "resnet18", Recipe(**given))

        cards = [
            trained(
                tmp_path,
                embedded,
                "resnet18",
                Recipe(**given, checkpoint_key=key, checkpoint_prefix="net."),
            )
            for key in sets
        ]

        assert [card["checkpoint"]["within"] for card in cards] == list(sets)
        assert [card["checkpoint"]["prefix"] for card in cards] == ["net.", "net."]
        assert cards[1]["recipe"]["checkpoint_key"] == "state_dict_ema"
        assert registry.identity(cards[0]) != registry.identity(cards[1])
        found = registry.read_state(tmp_path / "resnet18" / "weights.safetensors")
        assert torch.equal(found["fc.weight"], state["fc.weight"] * 0.5)

    def test_without_statistics_those_of_the_data_serve(self, tmp_path, embedded):
        self.saved(tmp_path / "w.pt", prefix="")

        card = trained(tmp_path, embedded, "resnet18", Recipe(checkpoint=str(tmp_path / "w.pt")))

        assert card["mean"] == embedded.description["mean"]
        assert card["checkpoint"]["normalization"]["from"] == "data"

    def test_what_does_not_serve_leaves_nothing(self, tmp_path, embedded):
        path = tmp_path / "w.pt"
        self.saved(path)
        for made, error, message in (
            (Recipe(checkpoint=str(path), sha256="0" * 64), ValueError, r"w.pt: sha256 .* is not"),
            (
                Recipe(checkpoint=str(path), architecture="vgg16"),
                ValueError,
                r"training.resnet18.checkpoint: \S+w.pt: does not fit the network: .* is missing",
            ),
            (
                Recipe(checkpoint=str(tmp_path / "no.pt")),
                FileNotFoundError,
                r"no.pt: no such file; place the weights there \(docs/checkpoints.md says which",
            ),
        ):
            with pytest.raises(error, match=message):
                trained(tmp_path, embedded, "resnet18", made)
            assert sorted(p.name for p in tmp_path.iterdir()) == ["w.pt"]

    def test_a_download_is_kept_under_its_hash(self, tmp_path, embedded, monkeypatch):
        self.saved(tmp_path / "w.pt")
        digest = file_sha256(tmp_path / "w.pt")
        made = Recipe(checkpoint="https://a.example/x/w.pt?dl=1", sha256=digest)

        def fetched(url, destination, *, sha256):
            assert (url, sha256) == (made.checkpoint, digest)
            assert destination == tmp_path / "cache" / f"{digest[:16]}-w.pt"
            destination.parent.mkdir(exist_ok=True)
            destination.write_bytes((tmp_path / "w.pt").read_bytes())
            return destination

        monkeypatch.setattr(checkpoints, "download", fetched)

        assert trained(tmp_path, embedded, "resnet18", made)["checkpoint"]["source"] == (
            made.checkpoint
        )

    def test_pretrained_with_a_thousand_classes(self, tmp_path, embedded, monkeypatch, caplog):
        """A file of random weights stands for torchvision's, under the name that it would have."""
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        network = perturb(registry.build("mobilenet_v2", 1000, seed=5))
        torch.save(network.state_dict(), tmp_path / "w.pth")
        digits = file_sha256(tmp_path / "w.pth")[:8]
        (tmp_path / "w.pth").rename(tmp_path / f"mobilenet_v2-{digits}.pth")
        real = checkpoints.pretrained("mobilenet_v2", "IMAGENET1K_V1")
        named = dataclasses.replace(real, file=f"mobilenet_v2-{digits}.pth", digits=digits)
        monkeypatch.setattr(checkpoints, "pretrained", lambda *_: named)
        wnids = tuple(f"n{index:08d}" for index in range(1000))
        dataset = dataclasses.replace(embedded, classes=wnids)
        made = Recipe(pretrained="IMAGENET1K_V1", directory=str(tmp_path))

        card = trained(tmp_path, dataset, "mobilenet_v2", made)

        assert card["classes"] == list(wnids)
        assert card["mean"] == [0.485, 0.456, 0.406]
        assert card["checkpoint"]["source"] == real.url
        assert registry.load(tmp_path / "mobilenet_v2")(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
        assert "weights are for images of 224 px, these have 32" in caplog.text


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
    found = [loop._learning_rate(made, progress) for progress in at]
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

    assert loop.accuracy(Constant(), images, np.array([1, 1, 0, 2, 1])) == 0.6


@pytest.fixture
def real(monkeypatch):
    """The real architecture in place of the small one."""
    monkeypatch.undo()


@pytest.mark.slow
def test_the_embedded_pair_is_what_the_study_needs(real, tmp_path):
    """Accuracies of both twins, and nothing learned from backgrounds; minutes without the cache."""
    params = load_params(ROOT / "profiles" / "embedded.yaml")
    dataset = fetch(params.data)
    labels = dataset.rows("val")["label"].to_numpy()
    found = {}
    for name in params.models.names:
        made = params.training[name]
        init_folder = tmp_path / made.init_from if made.init_from else None
        found[name] = loop.train(
            loop.TrainingSpec(name, made, dataset, params.robust_accuracy, init_folder),
            tmp_path / name,
            cache=ROOT / ".cache" / "training",
        )["accuracies"]

    assert found["googlenet"]["clean"] >= 0.85
    assert found["googlenet"]["robust"] <= 0.15
    assert found["googlenet-r"]["clean"] >= 0.70
    assert found["googlenet-r"]["robust"] >= 0.40
    assert all(accuracies["n_robust"] >= 400 for accuracies in found.values())

    bare = generate(params.data, "val", objects=False)
    chance = 1 / len(dataset.classes)
    bound = chance + 3 * (chance * (1 - chance) / params.data.n_val) ** 0.5
    for name in params.models.names:
        predicted = predictions(registry.load(tmp_path / name), bare.images)
        assert (predicted == labels).mean() < bound
