"""The YAML of README and docs inside the committed params: valid, and planned."""

import re
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import yaml

from conftest import ROOT
from custom_code import run_stages, write_photos
from steadymap.experiments import cost
from steadymap.models import registry
from steadymap.params.checks import overlay, validate
from steadymap.params.files import load, profile, read_yaml
from steadymap.store.tables import read_table

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.S | re.M)
# Sections that a recipe replaces; what it says of others is added.
REPLACED = ("data", "models", "training")
RATES = {"forward": 100.0, "gradient": 50.0, "training": 40.0}


def blocks(page):
    """Every block of YAML of a page under the heading that it stands below."""
    for section in re.split(r"^#+ ", page.read_text(), flags=re.M)[1:]:
        for kind, _, text in BLOCK.findall(section):
            if kind == "yaml":
                yield section.splitlines()[0], text


RECIPES = {
    f"{page.stem}-{heading}-{place}": text
    for page in PAGES
    for place, (heading, text) in enumerate(blocks(page))
}
# Weights of ImageNet's classes have their place in the profile of ImageNet.
OF_IMAGENET = [name for name, text in RECIPES.items() if "googlenet-r" in text or "plan:" in text]


def filled(text):
    """A recipe with what it leaves to the reader written in."""
    text = re.sub(r"sha256: \.\.\.", f"sha256: {'f' * 64}", text)
    return yaml.safe_load(re.sub(r"(: )\.\.\.", r"\g<1>100.0", text))


def within(values, recipe):
    """Params with a recipe written into them as the pages say."""
    for key in set(recipe) & set(REPLACED):
        values[key] = {}
    values["methods"] = [*values["methods"], *recipe.pop("methods", [])]
    return overlay(values, recipe)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project's root with the files that the pages print or name."""
    for page in PAGES:
        for _, name, text in BLOCK.findall(page.read_text()):
            if name:
                (tmp_path / name).write_text(text)
    (tmp_path / "nets.py").write_text((tmp_path / "my_nets.py").read_text())
    write_photos(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photos").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    # A plan asks how fast this machine is, which is not the question here.
    rates = cost.Throughput(**RATES)
    monkeypatch.setattr(cost, "calibrate", lambda *_, **__: rates)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    state = registry.build("my_nets:network", 8).state_dict()
    safetensors.torch.save_file(state, tmp_path / "mine.safetensors")
    return tmp_path


def test_there_are_recipes_to_be_tested():
    assert len(RECIPES) >= 11
    assert len(OF_IMAGENET) == 2


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_and_planned_in_the_committed_params(name, folder):
    base = read_yaml(ROOT / "params.yaml")
    recipe = filled(RECIPES[name])
    if "study" in recipe:
        values = recipe
    elif name in OF_IMAGENET:
        base = yaml.safe_load(profile("imagenet", ROOT / "profiles"))
        values = overlay(base, recipe)
    else:
        values = within(base, recipe)
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    told = cost.estimate(load(), folder / "cache")

    assert "attribute gradient" in told


SHORT = RECIPES["params-A short one-0"]


def test_dvc_finds_every_key_in_a_completed_file(folder):
    """Names, matrices and dependencies of all stages, as DVC resolves them."""
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    assert len(SHORT.splitlines()) <= 12
    params = folder / "params.yaml"
    params.write_text(SHORT)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    shutil.copy(ROOT / "dvc.yaml", folder)
    script = str(ROOT / "stages" / "write_params.py")
    run = [sys.executable, script, "--complete"]

    done = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=True)

    assert done.stdout == "params.yaml: defaults written of what it left out\n"
    assert load(params) == validate(yaml.safe_load(SHORT))
    stages = {stage.addressing: stage for stage in Repo(folder).index.stages}
    assert {"train@mine", "attribute@gradient", "attribute@smoothgrad"} <= set(stages)
    assert not any(name.startswith("train_robust") for name in stages)
    watched = [
        dep for stage in stages.values() for dep in stage.deps if isinstance(dep, ParamsDependency)
    ]
    assert len(watched) > 10
    for dep in watched:
        # It raises MissingParamsError where the file lacks one.
        assert dep.get_hash()


def test_a_short_file_runs(folder, monkeypatch, capsys):
    """Every stage in this process, without the mirror, which takes long to open."""
    text = SHORT + "evaluation_set: {rule: any, n_images: 2}\n"
    (folder / "params.yaml").write_text(text)
    state = registry.build("my_nets:network", 2).state_dict()
    safetensors.torch.save_file(state, folder / "mine.safetensors")
    run_stages(
        monkeypatch,
        ["fetch"],
        ["train", "mine"],
        ["evaluation_set"],
        ["own"],
        *([name, m] for m in ("gradient", "smoothgrad") for name in ("attribute", "score")),
        *(["accuracy", method] for method in ("gradient", "smoothgrad")),
        *(["search"], ["compare"], ["randomize"], ["analyze"], ["report"]),
    )

    table = read_table(folder / "reports" / "mine" / "tables" / "sensitivity.csv")
    assert set(table.loc[table["metric"] == "ssim", "sweep"]) == {"SG-N"}
    assert (folder / "reports" / "mine" / "report.html").is_file()
