import os
import runpy
import subprocess
import sys

import pytest
import torch
import torchvision
import yaml

import miniature
import rehearsal
from conftest import ROOT
from steadymap.params.checks import validate
from steadymap.params.files import profile
from steadymap.store.atomic import read_json
from steadymap.store.tables import read_table
from steadymap.training import checkpoints

DVC = (ROOT / "dvc.yaml").read_text()


def params(*changes):
    return validate(yaml.safe_load(rehearsal.params(ROOT, {}, *changes)), root=ROOT)


def test_every_stage_of_the_pipeline_is_named_in_order():
    made = params(rehearsal.CUT)
    found = rehearsal.stages(DVC, made)

    names = [name.split("@")[0] for name, _ in found]
    assert list(dict.fromkeys(names)) == list(yaml.safe_load(DVC)["stages"])
    assert ("train_robust@resnet50", ["stages/train.py", "resnet50-r"]) in found
    assert names.count("attribute") == len(made.methods) == 8


@pytest.mark.parametrize("changes", [(rehearsal.CUT,), (rehearsal.CUT, rehearsal.QUICK)])
def test_what_is_cut_keeps_every_method_and_model(changes):
    full = yaml.safe_load(profile("imagenet", ROOT / "profiles"))
    made = params(*changes)

    assert made.methods == full["methods"]
    assert made.models.model_dump() == full["models"]
    assert made.evaluation_set.rule == "any"


def test_weights_are_read_back_from_each_format(tmp_path):
    paths = rehearsal.write_weights(tmp_path)

    for model, path in paths.items():
        found = checkpoints.read_state_dict(path)
        assert found["fc.weight"].shape[0] == 1000, model
    assert torch.load(paths["googlenet"], weights_only=True).keys() >= {"aux1.fc2.bias"}
    assert (tmp_path / "resnet50.pth").read_bytes()[:2] != b"PK"
    with pytest.raises(Exception, match=r"cox\.utils"):
        torch.load(paths["resnet50-r"], weights_only=True)


def stage(name, *arguments, monkeypatch):
    """Run a stage's script here, in the folder of its params."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "stages" / name), *arguments])
    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    runpy.run_path(sys.argv[0])["main"]()


def test_the_archives_become_an_evaluation_set(tmp_path, monkeypatch):
    """The first stages on a miniature in the official layout, with a 1000-class model."""
    official = miniature.write_archives(tmp_path / "official")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().eval().state_dict(), tmp_path / "resnet18.pth")
    values = yaml.safe_load(rehearsal.params(official, {}, rehearsal.CUT, rehearsal.QUICK))
    values["models"] = {"regular": ["resnet18"], "robust": []}
    values["training"] = {"resnet18": {"checkpoint": str(tmp_path / "resnet18.pth")}}
    values["randomization"] = {}
    values["evaluation_set"] |= {"n_images": 5}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)

    stage("fetch.py", monkeypatch=monkeypatch)
    stage("train.py", "resnet18", monkeypatch=monkeypatch)
    stage("evaluation_set.py", monkeypatch=monkeypatch)

    results = tmp_path / "results" / "rehearsed"
    card = read_json(results / "models" / "resnet18" / "card.json")
    assert len(card["classes"]) == 1000
    assert card["accuracies"]["n_clean"] == 8
    rows = read_table(results / "evaluation_set" / "evaluation_set.csv")
    assert len(rows) == 5
    assert (rows["x0"] >= 0).all()
    assert (results / "evaluation_set" / "masks.npy").is_file()
    targets = read_table(results / "evaluation_set" / "targets.csv")
    assert targets["target"].tolist() == rows["label"].tolist()
    assert set(rows["class_name"]) <= set(miniature.SYNSETS.values())


@pytest.mark.slow
def test_the_whole_profile_runs_on_a_miniature(tmp_path):
    """GoogLeNet, ResNet-50 and twins from the true checkpoint formats, every stage."""
    official = miniature.write_archives(tmp_path / "official")
    out = tmp_path / "out"

    ran = subprocess.run(
        [sys.executable, ROOT / "studies" / "rehearsal.py", official, out, "--quick"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr[-3000:]
    told = (out / "summary.md").read_text()
    assert "Localization: measured on the 2 of 2 images that have a box." in told
    for name, _ in rehearsal.stages(DVC, params(rehearsal.CUT, rehearsal.QUICK)):
        assert f"| {name} | " in told
    reports = out / "reports" / "rehearsed"
    assert (reports / "report.html").is_file()
    models = read_table(reports / "tables" / "models.csv")
    assert models["model"].tolist() == ["googlenet", "googlenet-r", "resnet50", "resnet50-r"]
    assert len(read_table(reports / "tables" / "table_s1.csv")) > 0


def test_arguments_are_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rehearsal.py"])
    with pytest.raises(SystemExit):
        rehearsal.main()

    assert "required: photographs, folder" in capsys.readouterr().err
