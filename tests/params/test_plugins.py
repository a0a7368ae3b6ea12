"""docs/own.md: its blocks are taken out of the page and run, each alone and all in one study."""

import random
import re
import runpy
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from conftest import ROOT
from custom_code import run_stages, write_photos
from steadymap import Hyperparameter, attribute, attribution_method, show, sweep
from steadymap.data.fetch import fetch
from steadymap.engine.settings import setting
from steadymap.engine.tasks import task_key
from steadymap.metrics.similarity import custom_similarity, ssim
from steadymap.models.registry import build, explainable, load_state, read_state
from steadymap.params import plugins
from steadymap.params.checks import overlay, validate
from steadymap.params.files import profile
from steadymap.params.schema import Attribution, FolderData, ParamsError
from steadymap.store.atomic import read_json
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table
from test_pipeline import call, checked_out, children, executed

PAGE = (ROOT / "docs" / "own.md").read_text()
BLOCK = r"^```(\w+)(?: (\S+))?\n(.*?)^```$"
BLOCKS = re.findall(BLOCK, PAGE, re.S | re.M)
FILES = {name: text for _, name, text in BLOCKS if name}
YAML = [yaml.safe_load(text) for kind, _, text in BLOCKS if kind == "yaml"]


def write_files(folder, names=FILES):
    for name in names:
        (folder / name).write_text(FILES[name])


def write_weights(folder, name="mine", seed=0):
    state = build("my_nets:network", 2, seed=seed).state_dict()
    safetensors.torch.save_file(state, folder / f"{name}.safetensors")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the page's files, as the project's root."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    return tmp_path


@pytest.fixture
def settled(project):
    """Params with the page's method and metric on the embedded data."""
    values = yaml.safe_load(profile("tiny", ROOT / "profiles"))
    for part in (YAML[2], YAML[3]):
        part = dict(part)
        values["methods"] = [*values["methods"], *part.pop("methods", [])]
        values = overlay(values, part)
    return values


def recipes():
    """What the page asks to be written, by section: code and the params that name it, as one."""
    for section in PAGE.split("\n## ")[1:]:
        lines = []
        for kind, _, text in re.findall(BLOCK, section, re.S | re.M):
            lines += text.splitlines()
            if kind == "yaml":
                yield section.splitlines()[0], lines
                lines = []
        if lines:
            yield section.splitlines()[0] + ", another", lines


def test_every_recipe_is_short():
    lengths = {name: len(lines) for name, lines in recipes()}

    assert list(lengths)[:3] == [
        "A model",
        "A folder of images with boxes",
        "An attribution method",
    ]
    assert "A similarity metric" in lengths
    assert sum(lengths.values()) == sum(len(text.splitlines()) for _, _, text in BLOCKS)
    assert max(lengths.values()) < 15, lengths


class TestMethod:
    def test_is_declared_like_any_other(self, settled):
        params = validate(settled)

        declared = params.declared["detail"]
        assert declared.hyperparameters["radius"].high == 15
        assert not declared.stochastic
        assert params.sweeps["detail"]["DT-radius"].values == [1, 2, 5]

    def test_its_maps_are_its_function_s(self, settled, tiny, images):
        validate(settled)

        found = attribute("detail", tiny, images, 1, radius=3, batch_size=16)

        blurred = images.clone().requires_grad_()
        tiny(blurred)[:, 1].sum().backward()
        from torchvision.transforms.functional import gaussian_blur

        expected = ((images - gaussian_blur(images, 7)) * blurred.grad).mean(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
        assert found.dtype == torch.float32

    def test_a_recipe_with_draws_is_keyed_by_image_and_seed(self, project, tiny, images):
        noisy = plugins.load("my_random:noisy_gradient").function
        options = {"image_ids": list("abcdef"), "batch_size": 16}

        whole = attribute(noisy, tiny, images, 1, **options)
        part = attribute(noisy, tiny, images[2:4], 1, image_ids=["c", "d"], batch_size=16)

        assert torch.equal(whole[2:4], part)
        assert not torch.equal(whole, attribute(noisy, tiny, images, 1, seed=1, **options))

    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            (
                "sweeps/detail/DT-radius/values",
                [2, 16],
                r"sweeps.detail.DT-radius.values: 16; choose at least 1 and at most 15",
            ),
            (
                "sweeps/detail/DT-radius/values",
                [2, 2.5],
                r"sweeps.detail.DT-radius.values: 2.5; write a whole number",
            ),
            (
                "sweeps/detail/DT-radius/fixed",
                {"sigma": 1},
                r'fixed.sigma: "sigma" is no hyperparameter of detail; known are radius',
            ),
            (
                "randomization/methods/detail/hyperparameters",
                {"radius": 0},
                r"randomization.methods.detail.hyperparameters.radius: 0; choose at least 1",
            ),
            (
                "attribution/own",
                {"detial": "my_methods:detail_x_gradient"},
                r'methods: "detail" is no method; did you mean \'detial\'\?',
            ),
            (
                "attribution/own/detail",
                "nowhere:f",
                r'attribution.own.detail: "nowhere:f"; there is no module nowhere; put nowhere.py',
            ),
            (
                "attribution/own/detail",
                "my_methods:detail_x_gradiant",
                r"my_methods has no detail_x_gradiant; did you mean 'detail_x_gradient'\?",
            ),
            ("attribution/own/detail", "my_methods", r"'my_methods' is no dotted path; write mod"),
            (
                "attribution/own/detail",
                "my_metrics:top_tenth",
                r"my_metrics:top_tenth is not declared; write @attribution_method",
            ),
            ("attribution/own/detail", "steadymap.draws:generator", r"is the package's own; name"),
            (
                "attribution/own",
                {"gradient": "my_methods:detail_x_gradient"},
                r"gradient is the name of a method of steadymap; choose another",
            ),
            ("similarity/own", {"ssim": "my_metrics:top_tenth"}, r"ssim is the name of a metric"),
            ("similarity/own", {"a.b": "my_metrics:top_tenth"}, r"'a.b' can't name a metric; use"),
            (
                "similarity/own/top_tenth",
                "my_metrics:absent",
                r"top_tenth: .*my_metrics has no abs",
            ),
        ],
    )
    def test_wrong_params_are_told_with_key_value_and_remedy(self, settled, place, value, message):
        *parents, last = place.split("/")
        part = settled
        for key in parents:
            part = part[key]
        if value is ...:
            del part[last]
        else:
            part[last] = value

        with pytest.raises(ParamsError, match=message):
            validate(settled)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("def f(:", r"broken can't be imported \(SyntaxError: .*\); mend it"),
            ("import nowhere_else", r"ModuleNotFoundError: No module named 'nowhere_else'\)"),
            ("1 / 0", r"broken can't be imported \(ZeroDivisionError"),
            ("f = 3", "broken:f is no function; name one"),
        ],
    )
    def test_what_can_t_be_imported_says_why(self, project, text, message):
        (project / "broken.py").write_text(text)

        with pytest.raises(plugins.OwnError, match=message):
            plugins.load("broken:f")

    def test_the_import_path_is_left_as_it_was(self, project):
        before = list(sys.path)

        plugins.load("my_methods:detail_x_gradient")

        assert sys.path == before


WHOLE, COST = Hyperparameter(int, 3, low=1), (1, 1)


class TestDeclaration:
    @pytest.mark.parametrize(
        ("options", "function", "message"),
        [
            ({}, lambda p, i, t, *, width: 0, "takes width, which is not declared; write @attrib"),
            ({"width": WHOLE}, lambda p, i, t: 0, "declares width, but takes no such argument"),
            ({"width": 3}, lambda p, i, t, *, width: 0, r"width is declared as 3; write Hyperpar"),
            (
                {"width": Hyperparameter(int, 0, low=1)},
                lambda p, i, t, *, width: 0,
                "the default of width is 0; choose at least 1",
            ),
            (
                {"seed": Hyperparameter(float, 0.0)},
                lambda p, i, t, *, seed: 0,
                r"seed is no whole number from 0; write Hyperparameter\(int, 0, low=0\)",
            ),
            ({"image_ids": WHOLE}, lambda p, i, t, *, image_ids: 0, "image_ids is no hyperparame"),
            ({}, lambda p, i: 0, r"must take \(runner, images, targets, \*, ...\)"),
            ({}, lambda p, i, t, **rest: 0, r"takes \*\*rest; name each hyperparameter"),
            ({"cost": 3}, lambda p, i, t: 0, r"cost is 3; write \(forward, backward\) passes"),
        ],
    )
    def test_that_does_not_fit_is_refused(self, options, function, message):
        with pytest.raises(plugins.OwnError, match=message):
            attribution_method(**{"cost": COST, **options})(function)

    def test_a_function_without_it_is_refused(self, tiny, images):
        def plain(runner, images, targets):
            return images.mean(1)

        with pytest.raises(
            plugins.OwnError, match="plain is not declared; write @attribution_method"
        ):
            attribute(plain, tiny, images, 0)

    def test_a_name_of_the_package_is_refused(self, tiny, images):
        @attribution_method(cost=(0, 0))
        def gradient(runner, images, targets):
            return images.mean(1)

        with pytest.raises(plugins.OwnError, match="gradient is the name of a method of steadymap"):
            attribute(gradient, tiny, images, 0)

    def test_an_unknown_name_is_told_with_those_there_are(self, tiny, images):
        with pytest.raises(ValueError, match="method is 'smoothgard'; choose one of gradient, "):
            attribute("smoothgard", tiny, images, 0)


def global_draw(images):
    return images.mean(1) + torch.randn(1)


class TestAnswer:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (
                lambda images: images,
                r"returns shape \(6, 3, 24, 24\); return one map per image, \(6",
            ),
            (lambda images: images.mean((1, 2)), r"returns shape \(6, 24\)"),
            (lambda images: images.mean(1) > 0, r"returns torch.bool; return float32"),
            (lambda images: images.mean(1).numpy(), r"returns ndarray; return a torch.Tensor"),
            (lambda images: images.no, r"failed at test_plugins.py:\d+: AttributeError: .*no"),
            (global_draw, r"draws from a global random generator, .*declare seed=Hyper"),
            (
                lambda images: images.mean(1) * np.random.normal(),
                "draws from a global random generator",
            ),
        ],
    )
    def test_that_is_no_map_is_refused(self, tiny, images, answer, message):
        @attribution_method(cost=(0, 0))
        def mine(runner, images, targets):
            return answer(images)

        with pytest.raises(plugins.OwnError, match=f"^mine .*{message}|^mine {message}"):
            attribute(mine, tiny, images, 0)

    def test_another_thread_that_draws_once_is_no_fault_of_the_method(self, tiny, images):
        """Dask's threads draw from Python's generator now and then."""
        calls = []

        @attribution_method(cost=(0, 0))
        def mine(runner, images, targets):
            calls.append(1)
            if len(calls) == 1:
                thread = threading.Thread(target=random.random)
                thread.start()
                thread.join()
            return images.mean(1)

        maps = attribute(mine, tiny, images, 0)

        assert torch.equal(maps, images.mean(1))
        assert len(calls) == 2

    def test_other_floats_become_float32_without_a_graph(self, tiny, images):
        @attribution_method(cost=(0, 0))
        def mine(runner, images, targets):
            return images.double().requires_grad_().mean(1)

        found = attribute(mine, tiny, images, 0)

        assert found.dtype == torch.float32
        assert not found.requires_grad

    def test_what_it_does_to_the_images_stays_with_it(self, tiny, images):
        before = images.clone()

        @attribution_method(cost=(0, 0))
        def mine(runner, images, targets):
            return images.mul_(2).mean(1)

        attribute(mine, tiny, images, 0)

        assert torch.equal(images, before)

    def test_more_passes_than_declared_are_told(self, tiny, images):
        @attribution_method(cost=lambda setting, side: (setting["n"], 0), n=WHOLE)
        def mine(runner, images, targets, *, n):
            for _ in range(n):
                maps = runner.gradients(images, targets, output="logit")
            return maps.mean(1)

        with pytest.raises(
            plugins.OwnError,
            match=r"mine took 3 forward and 3 backward .* 3 and 0 are declared; declare cost=\(3",
        ):
            attribute(mine, tiny, images, 0)


KEY = {
    "weights_sha256": "w",
    "preprocessing": "p",
    "images": [("val-1", "sha", 3)],
    "attribution": Attribution(batch_size=16, block_size=8, device="cpu"),
}
METHOD = """
from steadymap import attribution_method
from pieces import scale

@attribution_method(cost=(0, 0))
def one(runner, images, targets):
    return scale * images.mean(1)

@attribution_method(cost=(0, 0))
def two(runner, images, targets):
    return -scale * images.mean(1)
"""


class TestSource:
    @pytest.fixture
    def keyed(self, project):
        (project / "pieces.py").write_text("scale = 2\n")
        (project / "keyed.py").write_text(METHOD)
        (project / "bystander.py").write_text("x = 1\n")
        return project

    def key(self, path="keyed:one"):
        plugins.register("mine", path)
        return task_key(setting("mine", {}), **KEY)

    @pytest.mark.parametrize(
        ("file", "before", "after"),
        [("keyed.py", "return scale *", "return 3 * scale *"), ("pieces.py", "2", "2.25")],
    )
    def test_an_edit_changes_key_and_code(self, keyed, tiny, images, file, before, after):
        first, maps = self.key(), attribute("mine", tiny, images, 0)

        path = keyed / file
        path.write_text(path.read_text().replace(before, after))

        assert self.key() != first
        changed = attribute("mine", tiny, images, 0)
        assert not torch.equal(changed, maps)
        assert torch.allclose(
            changed / maps, torch.full_like(maps, changed[0, 0, 0] / maps[0, 0, 0])
        )

    def test_comments_and_other_files_keep_the_key(self, keyed):
        first = self.key()

        (keyed / "keyed.py").write_text(METHOD + "\n# a remark\n")
        (keyed / "bystander.py").write_text("x = 1000\n")

        assert self.key() == first

    def test_another_function_of_the_file_has_another_key(self, keyed):
        assert self.key() != self.key("keyed:two")

    def test_what_it_uses_of_the_package_counts(self, keyed):
        (keyed / "keyed.py").write_text(
            METHOD.replace("attribution_method\n", "attribution_method, ssim\n", 1)
        )
        assert plugins.load("keyed:one").uses == (
            "steadymap.metrics.similarity",
            "steadymap.params.plugins",
        )

    def test_libraries_that_it_names_count(self, keyed, monkeypatch):
        (keyed / "keyed.py").write_text(METHOD.replace("(0, 0)", "(0, 0), libraries=['scipy']"))
        first = self.key()

        monkeypatch.setattr("steadymap.engine.tasks._version", lambda name: "99")

        assert self.key() != first

    def test_a_file_of_that_name_elsewhere_is_another(self, keyed, tmp_path, monkeypatch):
        first = plugins.load("keyed:one").source
        other = tmp_path / "other"
        other.mkdir()
        (other / "keyed.py").write_text("def one():\n    return 'elsewhere'\n")
        monkeypatch.chdir(other)

        found = plugins.load("keyed:one")

        assert found.function() == "elsewhere"
        assert found.source != first

    def test_parts_of_a_package_count_by_relative_import(self, project):
        folder = project / "pack"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "parts.py").write_text("scale = 2\n")
        (folder / "maps.py").write_text("from .parts import scale\n\ndef f():\n    return scale\n")
        first = plugins.load("pack.maps:f")

        (folder / "parts.py").write_text("scale = 2.5\n")

        again = plugins.load("pack.maps:f")
        assert again.source != first.source
        assert again.function() == 2.5


class TestMetric:
    def test_recipe_in_closed_form(self, project):
        top_tenth = plugins.load("my_metrics:top_tenth").function
        a = torch.arange(100.0).reshape(1, 10, 10)

        found = [
            float(custom_similarity("top_tenth", top_tenth, a, b))
            for b in (a, -a, a.roll(5))  # the highest tenth: all, none, half of it
        ]

        # Rolled by 5, ranks 90-94 stay among the ten highest: 5 of 15 pixels lie in both.
        assert found == pytest.approx([1, 0, 1 / 3])

    @pytest.mark.parametrize(
        ("metric", "message"),
        [
            (lambda a, b: (a - b).abs().mean((1, 2)), "mine of a map with itself is 0; a simil"),
            (lambda a, b: a[:, 0, 0] * torch.nan, "mine of a map with itself is nan; a similarity"),
            (lambda a, b: 1 + (a - b).abs().mean((1, 2)), r"mine scores 1\.\d+ in magnitude; a si"),
            (lambda a, b: 1 - 1 / ((a == b).all(2).all(1) * 1.0) + 1, "mine scores inf in magnitu"),
            (lambda a, b: (a * b).mean(), r"gives torch.float64 of shape \(\) for 4 pairs"),
            (lambda a, b: a > b, r"gives torch.bool of shape \(4, 8, 8\) for 4 pairs"),
            (lambda a, b: a.no, "mine failed: AttributeError"),
        ],
    )
    def test_that_breaks_its_contract_is_refused(self, metric, message):
        a, b = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))

        with pytest.raises(ValueError, match=message):
            custom_similarity("mine", metric, a, b)

    def test_undefined_pairs_are_nan_and_leave_their_neighbors(self):
        a, b = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
        b[2, 0, 0] = torch.nan

        found = custom_similarity("mine", lambda x, y: ssim(x, y), a, b)

        assert found.isnan().tolist() == [False, False, True, False]
        assert torch.equal(found[[0, 1, 3]], ssim(a, b)[[0, 1, 3]])


def test_notebook_recipe(project, tiny, images, monkeypatch):
    monkeypatch.syspath_prepend(project)
    for name in ("my_methods", "my_metrics"):
        sys.modules.pop(name, None)
    names = {"model": tiny, "images": images}

    exec(compile(FILES["notebook.py"], "notebook.py", "exec"), names)

    found = names["scores"]
    assert set(found["method"]) == {"detail_x_gradient"}
    rows = found[found["metric"] == "top_tenth"]
    assert rows["convention"].unique().tolist() == ["own"]
    assert rows["score"].between(0, 1).all()
    method = names["detail_x_gradient"]
    figure = show(method, tiny, images[:1], 0, vary={"radius": [1, 2]}, batch_size=16)
    shown = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert any("detail_x_gradient" in text for text in shown), shown
    with pytest.raises(plugins.OwnError, match="ssim is the name of a metric"):
        sweep(method, tiny, images, 0, vary={"radius": [1, 2]}, metrics={"ssim": ssim})


def test_folder_recipe(project):
    write_photos(project)

    data = fetch(FolderData(**YAML[1]["data"]))

    boxes = data.manifest.set_index("id")[["x0", "y0", "x1", "y1"]]
    named = [line.split(",")[0] for line in FILES["boxes.csv"].splitlines()[1:]]
    assert data.classes == ("cat", "dog")
    assert (boxes.loc[named] >= 0).all(axis=None)
    # 48 x 40 px become 32 x 32: every pixel that 3..20 x 4..22 touches.
    assert tuple(boxes.loc["cat/1.jpg"]) == (2, 3, 14, 18)
    assert len(boxes) == 12
    assert (boxes.drop(index=named) == -1).all(axis=None)


def test_model_recipe(project):
    write_weights(project)
    network = build(YAML[0]["training"]["mine"]["architecture"], 2)
    load_state(network, read_state(project / "mine.safetensors"), source="mine.safetensors")

    model = explainable(network, mean=[0.5] * 3, std=[0.2] * 3)

    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 2)


def whole_study(folder):
    """The page's four recipes in one study, and some of each stage; its files and params."""
    write_files(folder)
    write_photos(folder)
    write_weights(folder)
    write_weights(folder, "twin", seed=1)
    values = yaml.safe_load(profile("tiny", ROOT / "profiles"))
    for section in ("training", "sweeps", "search", "comparisons", "randomization"):
        values[section] = {}
    values["data"] = {}
    values["methods"] = ["gradient", "noisy"]
    for part in YAML:
        part = dict(part)
        values["methods"] += part.pop("methods", [])
        values = overlay(values, part)
    values["study"] = "own"
    values["models"]["robust"] = ["mine"]
    values["training"]["mine-r"] = {**values["training"]["mine"], "weights": "twin.safetensors"}
    values["evaluation_set"]["n_images"] = 2
    values["robust_accuracy"]["n_images"] = 2
    values["attribution"]["own"]["noisy"] = "my_random:noisy_gradient"
    values["sweeps"] |= {
        "gradient": {},
        "noisy": {"NG-sigma": {"vary": "sigma", "values": [0.1, 0.2], "reference": 0.1}},
    }
    values["search"]["detail"] = {
        "DT-worst": {
            "hyperparameters": {"radius": {"low": 1, "high": 6}},
            "reference": {"radius": 2},
            "objective": "worst_case",
            "sampler": "random",
            "budget": 2,
        }
    }
    values["comparisons"] = {
        "noise": {"variances": [0.1]},
        "denoising": [{"towards": "gradient", "sweep": "DT-radius"}],
        "distance": "DT-radius",
        "teaser": {"detail": {"vary": "radius", "values": [1, 3], "reference": 1}},
        "budget": {"tau": [0.9]},
    }
    values["randomization"] |= {
        "units": {"mine": ["0", "4"]},
        "models": ["mine"],
        "n_images": 2,
        "n_draws": 1,
        "n_function_images": 2,
    }
    values["randomization"]["methods"] |= {"gradient": {}, "noisy": {}}
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


STAGES = (
    ["fetch"],
    ["train", "mine"],
    ["train", "mine-r"],
    ["evaluation_set"],
    ["own"],
    *(["attribute", method] for method in ("gradient", "noisy", "detail")),
    ["search"],
    *(["score", method] for method in ("gradient", "noisy", "detail")),
    *(["accuracy", method] for method in ("gradient", "noisy", "detail")),
    ["compare"],
    ["randomize"],
    ["analyze"],
    ["report"],
    ["plan"],
)


def test_all_four_in_one_study(project, monkeypatch, capsys):
    """Every stage with them, in this process and without the mirror, which takes long to open."""
    whole_study(project)
    run_stages(monkeypatch, *STAGES)

    assert "0 of " in capsys.readouterr().out  # nothing is left to be computed
    results, reports = project / "results" / "own", project / "reports" / "own"
    note = read_json(results / "own" / "methods" / "detail.json")
    assert note["path"] == "my_methods:detail_x_gradient"
    assert read_json(results / "own" / "methods" / "gradient.json") is None
    maps = Maps(results / "maps" / "detail")
    assert [made["radius"] for made in maps.settings] == [1, 2, 5]

    sensitivity = read_table(reports / "tables" / "sensitivity.csv")
    mine = sensitivity[sensitivity["metric"] == "top_tenth"]
    assert set(mine["sweep"]) == {"DT-radius", "NG-sigma"}
    assert set(mine["convention"]) == {"own"}
    assert mine["mean"].between(0, 1).all()
    ssim_rows = sensitivity[
        (sensitivity["metric"] == "ssim") & (sensitivity["convention"] == "common")
    ]
    assert set(ssim_rows["method"]) == {"detail", "noisy"}
    # By hand, from the archive.
    expected = [
        float(
            custom_similarity(
                "top_tenth",
                plugins.load("my_metrics:top_tenth").function,
                *(np.array(maps.read("mine", {"radius": radius}))[:1] for radius in (2, other)),
            )
        )
        for other in (1, 5)
    ]
    scores = read_table(results / "scores.parquet")
    rows = scores[(scores["metric"] == "top_tenth") & (scores["sweep"] == "DT-radius")]
    rows = rows[rows["draws"] != "mismatch"]
    rows = rows[(rows["image_id"] == maps.image_ids[0]) & (rows["model"] == "mine")]
    rows = rows.sort_values("value")
    assert rows["score"].tolist() == pytest.approx(expected)

    assert {"detail", "noisy"} <= set(sensitivity[sensitivity["metric"] == "insertion"]["method"])
    ipr = read_table(reports / "tables" / "ipr.csv")
    assert set(ipr["method"]) == {"gradient", "detail", "noisy"}
    assert set(ipr["metric"]) >= {"ssim", "top_tenth"}
    assert (ipr.loc[ipr["method"] == "noisy", "floor"] > 0).any()
    assert set(read_table(reports / "tables" / "search.csv")["state"]) == {"reference", "complete"}
    comparisons = read_table(reports / "tables" / "comparisons.csv")
    assert {"denoising-gradient", "distance"} <= set(comparisons["comparison"])
    tasks = read_table(reports / "tables" / "tasks.csv")
    detail = tasks[tasks["sweep"] == "DT-radius"]
    assert (detail["forward_passes"] == 2).all()  # one per image
    page = (reports / "report.html").read_text()
    assert "DT-radius" in page
    assert "top_tenth" in page


@pytest.mark.slow
def test_the_mirror_shows_them(project, monkeypatch):
    whole_study(project)
    monkeypatch.syspath_prepend(ROOT / "stages")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)

    for name, *arguments in [*STAGES, ["track"]]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "stages" / f"{name}.py"))["main"]()

    assert ("detail DT-radius mine", "radius=5 mine", "true") in children(project)
    with sqlite3.connect(project / "mlflow.db") as database:
        logged = {key for (key,) in database.execute("select distinct key from metrics")}
    assert {"top_tenth/mean", "top_tenth/std", "top_tenth/S_same"} <= logged


@pytest.mark.slow
def test_an_edit_runs_again_what_rests_on_it(tmp_path, monkeypatch):
    """As a user runs it: DVC, and stages in processes of their own."""
    checkout = checked_out(tmp_path / "checkout")
    monkeypatch.chdir(checkout)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    whole_study(checkout)

    def scored():
        found = call(checkout, "dvc", "repro", "score")
        assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
        started = re.findall(r"Running stage '([\w@]+)'", found.stdout)
        return executed(found.stdout), set(started) - {"own"}

    assert scored()[0] == {"gradient": 2, "noisy": 4, "detail": 6}
    assert scored() == ({}, set())

    path = checkout / "my_methods.py"
    path.write_text(path.read_text().replace('"""Gradient times', '"""The gradient times'))
    assert scored() == ({}, set())  # words change no map

    path.write_text(path.read_text().replace("(detail *", "(2 * detail *"))
    assert scored() == ({"detail": 6}, {"attribute@detail", "score@detail"})

    path = checkout / "my_metrics.py"
    path.write_text(path.read_text().replace("// 10", "// 5"))
    table = checkout / "results" / "own" / "scores" / "detail.parquet"
    before = read_table(table)
    assert scored() == ({}, {"score@gradient", "score@noisy", "score@detail"})
    after = read_table(table)
    assert set(after.loc[before["score"] != after["score"], "metric"]) == {"top_tenth"}
