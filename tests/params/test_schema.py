import json
import re
from copy import deepcopy

import jsonschema
import pytest
import yaml

from conftest import ROOT, write_model
from steadymap.params.checks import check_recipe, overlay, validate
from steadymap.params.files import _Loader, complete, load, profile, read_yaml, schema
from steadymap.params.methods import METHODS, PROTOCOLS, RESERVED_NAMES
from steadymap.params.schema import ParamsError, Recipe


def test_committed_params_are_the_embedded_profile():
    assert (ROOT / "params.yaml").read_text() == profile("embedded", ROOT / "profiles")


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_makes_valid_params(path, tmp_path):
    made = tmp_path / "params.yaml"
    made.write_text(profile(path.stem, ROOT / "profiles"))

    params = load(made)

    assert params.study == path.stem
    assert set(params.methods) == set(params.sweeps)


def test_models_are_named_twin_behind_twin(values):
    assert validate(values).models.names == ["googlenet", "googlenet-r"]


def spoil(values, path, value):
    *parents, last = path.split("/")
    place = values
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data/image_size", "64", r'data.image_size: "64"; write a whole number'),
        ("data/n_train", 10.5, r"data.n_train: 10.5; write a whole number"),
        ("study", "A study", r'study: "A study"; use lower-case letters, digits, .* and .*, beg'),
        ("data/color", 1, r"data.color: 1 is not a known key; remove it"),
        ("methods", ..., r"methods: missing; add it"),
        ("statistics/confidence", 1.5, r"statistics.confidence: 1.5; .*less than 1"),
        ("evaluation_set/rule", "best", r"evaluation_set.rule: \"best\"; choose 'all_correct'"),
        ("methods", ["gradient", "smoothgard"], r"\"smoothgard\" is no method; did you mean 'smo"),
        (
            "sweeps/smoothgrad/SG-N/vary",
            "n_sample",
            r"SG-N.vary: \"n_sample\" is no hyperparameter of smoothgrad; did you mean 'n_samples'",
        ),
        (
            "sweeps/smoothgrad/SG-N/fixed",
            {"patch_size": 3},
            r"SG-N.fixed.patch_size: \"patch_size\" is no hyperparameter of smoothgrad",
        ),
        (
            "sweeps/smoothgrad/SG-N/reference",
            6,
            r"SG-N.reference: 6 is not in values \[5, 10, 20, 50, 100\]; choose one of them",
        ),
        (
            "sweeps/smoothgrad/SG-N/values",
            [5, 10, 10],
            r"SG-N.values: 10 stands twice; name it once",
        ),
        (
            "sweeps/smoothgrad/SG-N/values",
            [5, 0],
            r"SG-N.values: 0; choose at least 1",
        ),
        (
            "sweeps/smoothgrad/SG-N/values",
            [5, 7.5],
            r"SG-N.values: 7.5; write a whole number",
        ),
        (
            "sweeps/smoothgrad/SG-N/fixed",
            {"input_space": "rgb"},
            r"fixed.input_space: \"rgb\"; choose one of normalized, pixel",
        ),
        (
            "sweeps/sliding_patch/SP-L/values",
            [9, 65],
            r"SP-L.values: 65 is larger than the image \(64 px\); choose a smaller one",
        ),
        ("similarity/win_size", 6, r"similarity.win_size: 6 is even; choose an odd window"),
        ("similarity/win_size", 65, r"win_size: 65 is larger than the image"),
        ("similarity/hog_cell", 30, r"hog_cell: 30 leaves fewer than 3 cells in 64 px"),
        ("similarity/conventions", ["sam"], r"conventions: 'common' is missing"),
        (
            "data/classes",
            ["disc", "blob"],
            r"data.classes: .*\"blob\".*; 'blob' is no class; known are disc, ring",
        ),
        ("data/classes", ["disc", "disc"], r"data.classes: \"disc\" stands twice"),
        ("models/regular", ["googlenet", "alexnet"], r"\"alexnet\" is no architecture; .*known"),
        ("models/robust", ["resnet18"], r"models.robust: \"resnet18\" has no regular twin"),
        ("training/googlenet-r", ..., r"training.googlenet-r: missing; add its recipe"),
        ("training/googlenet/init_from", "googlenet", r"only a robust twin starts from"),
        ("training/googlenet/epochs", 0, r"epochs: 0; train at least 1, or name weights"),
        (
            "training/googlenet/weights",
            "nowhere",
            r"weights: \"nowhere\" is neither a weights file nor",
        ),
        ("training/googlenet/mean", [0.5, 0.5, 0.5], r"mean: it goes with a weights file; remove"),
        ("training/googlenet/architecture", "alexnet", r"architecture: \"alexnet\" is no archite"),
        ("sweeps/gradient/default", {"fixed": {"sigma": 1}}, r"\"sigma\" is no hyperparameter of"),
        ("sweeps/gradient/other", {"fixed": {}}, r"other.vary: missing; name a hyperparameter, or"),
        ("sweeps/smoothgrad/SG-N/reference", None, r"reference: missing; name the value"),
        ("accuracy/alpha", 0.33, r"accuracy.alpha: 0.33 is none of the thresholds"),
        ("comparisons/distance", "SG", r"distance: \"SG\" is no sweep; did you mean 'SG-N'"),
        ("training/googlenet-r/attack", None, r"googlenet-r.attack: missing; a robust twin"),
        ("evaluation_set/rule", "list", r"evaluation_set.images: empty under rule list"),
        ("evaluation_set/n_images", 801, r"n_images: 801 is more than data.n_val 800"),
        (
            "evaluation_set/of_methods",
            {"gradients": 20},
            r"of_methods.gradients: \"gradients\" is no method of the study.*'gradient'",
        ),
        (
            "evaluation_set/of_methods",
            {"gradient": 900},
            r"of_methods.gradient: 900 is more than data.n_val 800",
        ),
        ("attribution/block_size", 4, r"attribution.block_size: 4; .*greater than or equal to 8"),
    ],
)
def test_each_problem_is_one_line_with_key_value_and_remedy(values, path, value, message):
    spoil(values, path, value)

    with pytest.raises(ParamsError, match=message) as caught:
        validate(values)

    lines = str(caught.value).splitlines()
    assert lines[0].startswith("params.yaml: ")
    assert sum(bool(re.search(message, line)) for line in lines) == 1


def test_all_problems_are_told_at_once(values):
    values["similarity"]["win_size"] = 4
    values["sweeps"]["smoothgrad"]["SG-N"]["reference"] = 7
    values["methods"].append("smoothgard")

    with pytest.raises(ParamsError, match="3 problems"):
        validate(values)


def test_weights_of_other_classes_are_refused(values, tmp_path):
    write_model(tmp_path / "given", model="googlenet", classes=["a", "b", "c"])
    values["training"]["googlenet"] = {"weights": "given"}

    with pytest.raises(
        ParamsError, match=r"weights: \"given\" knows 3 classes, data.classes has 8"
    ):
        validate(values, root=tmp_path)


@pytest.mark.parametrize("key", ["checkpoint_key", "checkpoint_prefix"])
def test_keys_that_read_a_file_do_not_go_with_a_folder(values, tmp_path, key):
    write_model(tmp_path / "given", model="googlenet", classes=values["data"]["classes"])
    values["training"]["googlenet"] = {"weights": "given", key: "ema"}

    with pytest.raises(ParamsError, match=rf"googlenet.{key}: the folder's card has it; remove it"):
        validate(values, root=tmp_path)
    del values["training"]["googlenet"]["weights"]
    values["training"]["googlenet"]["epochs"] = 1
    with pytest.raises(ParamsError, match=rf"googlenet.{key}: it goes with a weights file; rem"):
        validate(values, root=tmp_path)


def test_a_folder_without_card_is_refused(values, tmp_path):
    (tmp_path / "given").mkdir()
    values["training"]["googlenet"] = {"weights": "given"}

    with pytest.raises(ParamsError, match=r"has no readable card\.json"):
        validate(values, root=tmp_path)


def test_one_sweep_name_belongs_to_one_method(values):
    values["sweeps"]["sliding_patch"]["SG-N"] = values["sweeps"]["sliding_patch"].pop("SP-L")

    with pytest.raises(ParamsError, match="SG-N is a sweep of smoothgrad too; rename one"):
        validate(values)


def test_a_key_given_twice_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("study: a\nstudy: b\n")

    with pytest.raises(ParamsError, match="study: given twice"):
        load(tmp_path / "params.yaml")


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ParamsError, match=r"params.yaml: no such file; write it with"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("study: [")
    with pytest.raises(ParamsError, match="not valid YAML"):
        load(tmp_path / "params.yaml")


def test_exponents_without_a_point_are_numbers(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1e-4")

    assert read_yaml(tmp_path / "x.yaml") == {"a": 1e-4}


def test_overlay_merges_keys_replaces_lists_and_removes_nulls():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}

    merged = overlay(base, {"a": {"c": [9], "e": 5}, "d": None})

    assert merged == {"a": {"b": 1, "c": [9], "e": 5}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_an_unknown_profile_names_those_there_are():
    with pytest.raises(ParamsError, match="profile 'embeded': there is none; did you mean 'embed"):
        profile("embeded", ROOT / "profiles")


def test_a_profile_is_written_whole():
    made = yaml.safe_load(profile("tiny", ROOT / "profiles"))

    assert set(made) == set(read_yaml(ROOT / "profiles" / "embedded.yaml"))


class TestNames:
    """What files, DVC's keys and MLflow can't take is refused before any of them sees it."""

    @pytest.mark.parametrize(
        ("name", "remedy"),
        [
            ("a.b", "use letters, digits, '-' and '_'"),
            ("a/b", "use letters, digits"),
            ("a b", "use letters, digits"),
            ("-a", "beginning with a letter or digit"),
            ("é", "use letters"),
            ("a\n", "use letters"),
            ("a" * 61, "use at most 60 characters, these are 61"),
        ],
    )
    def test_of_models_sweeps_and_searches(self, values, name, remedy):
        recipe = {**values["training"]["googlenet"], "architecture": "googlenet"}
        whole = deepcopy(values)
        whole["models"]["regular"].append(name)
        whole["training"][name] = recipe
        self.refused(whole, [f"training.{name}", "models.regular.1"], remedy)
        for section in ("sweeps", "search"):
            whole = deepcopy(values)
            made = next(iter(whole[section]["smoothgrad"].values()))
            whole[section]["smoothgrad"][name] = made
            self.refused(whole, [f"{section}.smoothgrad.{name}"], remedy)

    def refused(self, values, keys, remedy):
        with pytest.raises(ParamsError) as caught:
            validate(values)
        for key in keys:
            assert f"{key}: " in str(caught.value)
        assert remedy in str(caught.value)

    @pytest.mark.parametrize("name", ["s", "my_study", "a-1_b", "2024"])
    def test_of_a_study_that_will_do(self, values, name):
        values["study"] = name

        assert validate(values).study == name

    def test_of_a_study_that_is_another_folder_of_reports(self, values):
        folders = {path.name for path in (ROOT / "reports").iterdir() if path.is_dir()}
        studies = {path.parent.name for path in (ROOT / "reports").glob("*/params.yaml")}

        assert folders - studies <= set(RESERVED_NAMES["study"])
        for name in RESERVED_NAMES["study"]:
            values["study"] = name
            with pytest.raises(ParamsError, match=f"study: .{name}.; .*; choose another name"):
                validate(values)

    @pytest.mark.parametrize("kind", ["methods", "metrics"])
    @pytest.mark.parametrize("name", ["a.b", "a-b", "1a", "a" * 61])
    def test_of_ones_own(self, values, kind, name):
        section = {"methods": "attribution", "metrics": "similarity"}[kind]
        values[section]["own"] = {name: "no:where"}

        with pytest.raises(ParamsError, match=f"{section}.own.{name}: .*can't name a m.*; use "):
            validate(values)

    def test_of_a_method_that_mlflow_has_for_trainings(self, values):
        values["attribution"]["own"] = {"training": "no:where"}

        with pytest.raises(ParamsError, match=r"own.training: .*choose another name"):
            validate(values)

    def test_a_twins_suffix_is_no_regular_models(self, values):
        values["models"] = {"regular": ["googlenet", "googlenet-r"], "robust": []}

        with pytest.raises(ParamsError, match=r'models.regular: "googlenet-r" ends in -r, .*; ren'):
            validate(values)

    def test_case_alone_tells_no_two_apart(self, values):
        values["sweeps"]["lime"]["sg-n"] = values["sweeps"]["lime"]["LIME-N"]

        with pytest.raises(ParamsError, match=r'"SG-N" and "sg-n" differ in case alone; rename'):
            validate(values)


SHORT = {
    "study": "short",
    "data": {"kind": "embedded"},
    "models": {"regular": ["resnet18"]},
    "training": {"resnet18": {"epochs": 1}},
    "methods": ["gradient", "smoothgrad"],
}


class TestDefaults:
    def test_what_has_one_may_be_left_out(self):
        params = validate(SHORT)

        assert params.models.names == ["resnet18"]
        assert params.sweeps == {"gradient": {}, "smoothgrad": {}}
        assert (params.search, params.comparisons.denoising) == ({}, [])
        assert params.similarity.hog_cell == 4

    def test_they_fit_the_data(self):
        for n_val, expected in ((12, (12, 12, 8)), (5, (5, 5, 5)), (1000, (400, 16, 8))):
            data = {"kind": "embedded", "n_val": n_val, "image_size": 224}
            params = validate({**SHORT, "data": data})
            sections = params.robust_accuracy, params.evaluation_set, params.randomization
            assert tuple(section.n_images for section in sections) == expected
            assert params.similarity.hog_cell == 14
        few = validate({**SHORT, "evaluation_set": {"n_images": 3}})
        assert few.randomization.n_images == 3

    @pytest.mark.parametrize("section", ["sweeps", "similarity", "evaluation_set", "data"])
    def test_take_the_place_of_nothing_that_stands_there(self, section):
        for value in (5, None):
            with pytest.raises(ParamsError, match=f"{section}(.kind)?: "):
                validate({**SHORT, section: value})

    def test_completed_text_keeps_what_stands_there(self):
        text = "# mine\n" + yaml.safe_dump(SHORT, sort_keys=False)
        text = text.replace("regular:", "# one\n  regular:") + "sweeps: {gradient: {}}  # later\n"

        whole = complete(text)

        assert validate(yaml.safe_load(whole)) == validate(yaml.safe_load(text))
        assert set(text.splitlines()) - set(whole.splitlines()) == {
            "sweeps: {gradient: {}}  # later"
        }
        assert "sweeps: {smoothgrad: {}, gradient: {}}  # later" in whole
        assert complete(whole) == whole

    def test_a_complete_file_stays_as_it_is(self):
        text = (ROOT / "params.yaml").read_text()

        assert complete(text, root=ROOT) == text

    def test_text_without_a_place_for_a_key_is_refused(self):
        with pytest.raises(ParamsError, match=r"DVC needs robust_accuracy.*; add them by hand"):
            complete(json.dumps(SHORT))


class TestProfilesOfOnesOwn:
    @pytest.fixture
    def written(self, tmp_path):
        (tmp_path / "embedded.yaml").write_text((ROOT / "profiles" / "embedded.yaml").read_text())

        def write(text):
            (tmp_path / "own.yaml").write_text(text)
            return yaml.safe_load(profile("own", tmp_path))

        return write

    def test_keys_that_do_not_apply_are_not_inherited(self, written):
        made = written(
            "study: own\n"
            "data: {kind: imagefolder, path: photos}\n"
            "models: {regular: [mine], robust: []}\n"
            "training: {mine: {architecture: nets:mine, checkpoint: w.pt}}\n"
            "methods: [gradient, lime]\n"
            "randomization: {methods: null}\n"
        )

        assert made["data"] == {
            "image_size": 64,
            "seed": 0,
            "kind": "imagefolder",
            "path": "photos",
        }
        assert set(made["training"]) == {"mine"}
        assert set(made["sweeps"]) == {"gradient", "lime"}
        assert made["search"] == {}
        assert made["comparisons"]["denoising"] == []
        assert "distance" not in made["comparisons"]

    def test_weights_that_are_given_are_not_trained(self, written):
        made = written("study: own\ntraining: {googlenet-r: {checkpoint: w.pt}}\n")

        assert made["training"]["googlenet-r"] == {"checkpoint": "w.pt"}
        assert made["training"]["googlenet"]["epochs"] == 6

    def test_fewer_images_are_no_more_than_there_are(self, written):
        made = written("study: own\ndata: {n_val: 10}\nrandomization: {n_images: 4}\n")

        assert made["robust_accuracy"]["n_images"] == made["evaluation_set"]["n_images"] == 10

    def test_what_is_no_profile_says_so(self, written):
        with pytest.raises(ParamsError, match=r"profile own: not a mapping .*write study: own"):
            written("- a\n")
        with pytest.raises(ParamsError, match="data"):
            written("data: 5\n")


class TestSchema:
    def test_is_current_and_named_in_every_profile(self):
        assert (ROOT / "docs" / "params.schema.json").read_text() == schema()
        first = (ROOT / "params.yaml").read_text().splitlines()[0]
        assert (ROOT / first.partition("$schema=")[2]).is_file()
        assert profile("tiny", ROOT / "profiles").splitlines()[0] == first

    @pytest.mark.parametrize(
        "path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem
    )
    def test_accepts_the_profiles(self, path):
        made = yaml.load(profile(path.stem, ROOT / "profiles"), Loader=_Loader)

        jsonschema.validate(made, json.loads(schema()))

    @pytest.mark.parametrize(
        ("place", "value"),
        [("study", "A b"), ("methods", "gradient"), ("evaluation_set/rule", "best"), ("dat", {})],
    )
    def test_refuses_what_is_wrong(self, values, place, value):
        spoil(values, place, value)

        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(values, json.loads(schema()))


class TestOwnModels:
    def test_an_own_architecture_needs_no_registry(self, values):
        values["models"] = {"regular": ["mine"], "robust": ["mine"]}
        values["training"] = {
            "mine": {**values["training"]["googlenet"], "architecture": "nets.mine:make"},
            "mine-r": {**values["training"]["googlenet-r"], "init_from": "mine"},
        }

        params = validate(values)

        assert params.architecture("mine-r") == params.architecture("mine") == "nets.mine:make"
        assert params.recipe("mine-r").architecture == "nets.mine:make"

    def test_two_trainings_of_one_architecture(self, values):
        values["models"]["regular"].append("again")
        values["training"]["again"] = {
            **values["training"]["googlenet"],
            "architecture": "googlenet",
            "seed": 1,
        }

        assert validate(values).architecture("again") == "googlenet"

    def test_a_weights_file_has_a_known_suffix(self, values, tmp_path):
        (tmp_path / "w.bin").write_bytes(b"")
        values["training"]["googlenet"] = {"weights": "w.bin"}

        with pytest.raises(ParamsError, match=r"a weights file ends in .safetensors, .pt or .pth"):
            validate(values, root=tmp_path)


class TestProtocol:
    def test_fills_what_sweeps_leave_open(self, values):
        values["protocol"] = "code"
        values["sweeps"]["sliding_patch"]["SP-L"]["fixed"]["fill"] = "black"

        sweeps = validate(values).sweeps

        assert sweeps["sliding_patch"]["SP-L"].fixed == {
            "fill": "black",
            "upsampling": "stretched",
            "stride": 3,
        }
        assert sweeps["smoothgrad"]["SG-sigma"].fixed["sigma_unit"] == "range"
        assert sweeps["gradient"] == {}

    def test_fills_what_randomized_methods_leave_open(self, values):
        values["protocol"] = "ipr-text"
        values["randomization"] = {"methods": {"lime": {"hyperparameters": {"fill": "black"}}}}
        values["randomization"]["methods"]["guided_gradcam"] = {}

        methods = validate(values).randomization.methods

        lime = {"surrogate": "lasso", "lasso_alpha": 0.01, "fill": "black", "output": "logit"}
        assert methods["lime"].hyperparameters == lime
        assert methods["guided_gradcam"].hyperparameters["interpolation"] == "nearest"

    def test_every_answer_is_one_that_its_method_takes(self):
        for answers in PROTOCOLS.values():
            for method, given in answers.items():
                METHODS[method].effective(given)

    def test_values_that_exclude_one_another_are_told(self, values):
        values["sweeps"]["integrated_gradients"] = {
            "IG-N": {"vary": "n_trials", "values": [1, 5], "reference": 1}
        }

        with pytest.raises(ParamsError, match=r"IG-N: n_trials is 5; with baseline zero all tria"):
            validate(values)


class TestWeightsFromElsewhere:
    SHA256 = "0" * 64

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (
                {"pretrained": "IMAGENET1K_V3"},
                r"pretrained: \"IMAGENET1K_V3\" is not known; did yo",
            ),
            (
                {"pretrained": "IMAGENET1K_V1"},
                r"IMAGENET1K_V1 knows 1000 classes, data.classes has 8",
            ),
            (
                {"pretrained": "IMAGENET1K_V1", "checkpoint": "w.pt"},
                r"googlenet: both pretrained and checkpoint; keep one of them",
            ),
            (
                {"pretrained": "IMAGENET1K_V1", "mean": [0.5, 0.5, 0.5]},
                r"googlenet.mean: it goes with a weights file; remove it, or name weights or check",
            ),
            (
                {"checkpoint": "https://a.example/w.pt"},
                r"sha256: missing; what is downloaded is ch",
            ),
            (
                {"checkpoint": "ftp://a.example/w.pt"},
                r"checkpoint: \"ftp://.*; write http, https o",
            ),
            ({"checkpoint": "w.pt", "directory": "w"}, r"directory: .* name pretrained"),
            ({"checkpoint": "w.pt", "sha256": "12"}, r"sha256: \"12\"; "),
            ({"checkpoint": "w.pt", "mean": [0.5, 0.5, 0.5]}, r"std: missing; it goes with mean"),
            ({"epochs": 3, "sha256": SHA256}, r"sha256: it goes with a weights file; remove it"),
        ],
    )
    def test_keys_that_do_not_go_together(self, values, given, message):
        values["training"]["googlenet"] = given

        with pytest.raises(ParamsError, match=message):
            validate(values)

    def test_torchvision_has_no_robust_twins(self, values):
        values["training"]["googlenet-r"] = {"pretrained": "IMAGENET1K_V1"}

        with pytest.raises(ParamsError, match=r"googlenet-r.pretrained: .*name a checkpoint"):
            validate(values)

    def test_a_transform_that_the_network_has_not(self, values):
        values["models"] = {"regular": ["resnet18"], "robust": []}
        values["training"] = {"resnet18": {"checkpoint": "w.pt", "transform_input": True}}

        with pytest.raises(
            ParamsError, match=r"transform_input: resnet18 has none, only googlenet"
        ):
            validate(values)

    def test_a_checkpoint_needs_neither_epochs_nor_attack_nor_the_file(self, values):
        """A profile must hold on machines that lack the file; the stage asks for it."""
        values["training"]["googlenet-r"] = {"checkpoint": "models/GoogLeNet_R.pt"}

        recipe = validate(values).training["googlenet-r"]

        assert recipe.is_given
        assert not recipe.model_copy(update={"checkpoint": None}).is_given

    def test_imagenets_classes_once_the_data_are_there(self):
        recipe = Recipe(pretrained="IMAGENET1K_V1")
        wnids = [f"n{index:08d}" for index in range(1000)]
        check_recipe("googlenet", recipe, classes=wnids, n_train=0)
        check_recipe("googlenet", recipe, classes=list("ab") * 500, n_train=0)

        with pytest.raises(ParamsError, match=r"knows 1000 classes, the data have 4; use data of"):
            check_recipe("googlenet", recipe, classes=wnids[:4], n_train=0)
        with pytest.raises(
            ParamsError, match=r"numbers classes by sorted wnid, the data don't; so"
        ):
            check_recipe("googlenet", recipe, classes=wnids[::-1], n_train=0)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"kind": "cluster"}, "engine.scheduler: missing; write the address"),
        (
            {"kind": "local", "scheduler": "tcp://a:1"},
            'engine.scheduler: "tcp://a:1" is unused by kind local; remove it, or write kind',
        ),
        (
            {"scheduler": "tcp://a:1", "workers": 2},
            "engine.workers: 2; only a local cluster is started from here: remove it",
        ),
        ({"kind": "ray"}, 'engine.kind: "ray"; choose'),
        ({"threads": 0}, "engine.threads: 0; choose"),
    ],
)
def test_where_tasks_run_is_checked(values, engine, message):
    values["engine"] = engine

    with pytest.raises(ParamsError, match=re.escape(message)):
        validate(values)


def test_where_tasks_run_may_be_left_open_and_changes_no_key(values):
    """Keys are made of the attribution section's batch shape alone."""
    before = validate(values)
    values["engine"] = {"kind": "cluster", "scheduler": "scheduler.json", "threads": 4}
    after = validate(values)

    assert before.engine.kind == "auto"
    assert before.attribution == after.attribution
    assert before.model_copy(update={"engine": after.engine}) == after
