import itertools
import re

import numpy as np
import pytest
import torch
import yaml

from conftest import ROOT, Tiny
from steadymap.experiments import cost
from steadymap.models import registry
from steadymap.params.checks import validate
from steadymap.params.files import profile
from steadymap.params.schema import ParamsError

RATES = {"forward": 100.0, "gradient": 50.0, "training": 40.0}


def planned(values, tmp_path, monkeypatch):
    """Lines of the table by stage, and what stands under it."""
    monkeypatch.chdir(tmp_path)
    text = cost.estimate(validate(values, root=ROOT), tmp_path / "cache")
    rows = {}
    for line in text.splitlines():
        if line.startswith("│"):
            name, *cells = (cell.strip() for cell in line.strip("│").split("│"))
            rows[name] = [int(cell.replace(",", "")) for cell in cells]
    return rows, text.split("┘")[-1]


def imagenet(name="imagenet"):
    values = yaml.safe_load(profile(name, ROOT / "profiles"))
    registry = values["models"]["regular"]
    values["plan"] = {"throughput": dict.fromkeys(registry, RATES), "assumption": "a device"}
    return values


def test_imagenet_is_planned_without_data_and_weights(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("measured, though the rates are given")

    monkeypatch.setattr(cost, "calibrate", never)
    rows, below = planned(imagenet(), tmp_path, monkeypatch)

    # Stage: tasks, to run, forward, backward, seconds, megabytes.
    assert rows["evaluation set"][2] == 4 * 50_000
    assert rows["evaluation set"][4] == 4 * 50_000 / 100
    # Accuracy on the validation images, and 20 steps of an attack on 1,000.
    assert rows["train googlenet"][2:5] == [70_000, 20_000, 20_000 / 50 + 50_000 / 100]
    assert rows["attribute gradient"][2:5] == [4 * 1735, 4 * 1735, round(4 * 1735 / 50)]
    # Eleven maps per image and model, three times: task cache, results, DVC's cache.
    assert rows["attribute lime"][5] == round(3 * 11 * 4 * 1735 * 224**2 * 4 / 1e6)
    # A pass per place of the patch, every third pixel, and one of the image itself.
    sides = [(224 - p) // 3 + 1 for p in (5, 17, 29, 41, 53, 52, 54)]
    places = sum(side**2 + 1 for side in sides)
    assert rows["attribute sliding_patch"][2:4] == [4 * 1735 * places, 0]
    assert "assumed, not measured (a device): googlenet 100 forward" in below
    assert "measured here" not in below
    seconds = sum(row[4] for row in rows.values())
    hours = int(re.search(r"about ([\d,]+) device hours", below)[1].replace(",", ""))
    assert hours == pytest.approx(seconds / 3600, abs=1)


class Machine:
    """Stands in for the clocks: other processes take all but `share` of the processors."""

    def __init__(self, monkeypatch, *, share, threads=2, processors=2, efficiency=1.0):
        self.wall = self.processor = self.idle = 0.0
        self.share, self.threads, self.processors = share, threads, processors
        self.efficiency = efficiency
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(cost.psutil, "cpu_count", lambda: processors)
        monkeypatch.setattr(
            cost, "_clock", lambda: np.array([self.wall, self.processor, self.idle])
        )

    def call(self):
        """Work of a tenth of a second on a free machine."""
        used = 0.1 * self.threads * self.efficiency
        wall = 0.1 / self.share
        self.wall += wall
        self.processor += used
        if self.share == 1:
            self.idle += self.processors * wall - used


@pytest.mark.parametrize("share", [1, 0.5, 0.1])
def test_a_rate_is_that_of_a_free_machine(monkeypatch, share):
    machine = Machine(monkeypatch, share=share)

    seconds, disturbed = cost._measure(machine.call)

    assert seconds == pytest.approx(0.1)
    assert disturbed is (share < 1)


def test_threads_that_wait_for_each_other_are_no_busy_machine(monkeypatch):
    machine = Machine(monkeypatch, share=1, threads=8, processors=16, efficiency=0.3)

    seconds, disturbed = cost._measure(machine.call)

    assert seconds == pytest.approx(0.1)
    assert not disturbed


@pytest.mark.parametrize("busy", [True, False])
def test_a_busy_machine_is_told_in_the_plan(values, monkeypatch, busy):
    machine, measure = Machine(monkeypatch, share=0.1 if busy else 1), cost._measure
    monkeypatch.setattr(cost, "_measure", lambda call: (call(), measure(machine.call))[1])
    # A whole batch, however long a pass takes here.
    monkeypatch.setattr(cost.time, "monotonic", itertools.count(0.0, 1e-3).__next__)
    params = validate(values, root=ROOT)

    told = cost._rates({"googlenet": cost.calibrate("googlenet", params, 8)}, params)

    assert f"googlenet {10 * params.attribution.batch_size} forward" in told
    assert ("the machine is busy" in told) is busy


def test_a_device_that_is_not_there_is_told_with_its_key(values, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    values["attribution"]["device"] = "cuda"

    with pytest.raises(ValueError, match=r"attribution.device: cuda, .*write auto or cpu"):
        planned(values, tmp_path, monkeypatch)


def test_a_network_that_returns_no_logits_is_told_in_the_plan(values, tmp_path, monkeypatch):
    class Pair(Tiny):
        def forward(self, x):
            return super().forward(x), x

    monkeypatch.setitem(registry.CONSTRUCTORS, "googlenet", Pair)

    with pytest.raises(ValueError, match=r"architecture 'googlenet': Pair returns tuple of 2"):
        planned(values, tmp_path, monkeypatch)


def test_parameter_sensitivity_of_five_classifiers_is_planned(tmp_path, monkeypatch):
    values = imagenet("imagenet-ipr")
    rows, below = planned(values, tmp_path, monkeypatch)

    # Units by the paper's count; each method explains the trained model and one copy per unit.
    units = {"inception_v3": 17, "vgg16": 13, "mobilenet_v2": 19, "resnet18": 8, "resnet50": 16}
    blocks, methods = -(-900 // 16), 7
    for name, count in units.items():
        tasks = rows[f"randomize {name}"][0]
        # A method that draws has a second setting, with fresh draws.
        assert tasks >= blocks * methods * (count + 1)
        assert tasks % (count + 1) == 0
    assert "device hours" in below


@pytest.mark.parametrize("name", ["imagenet", "imagenet-ipr"])
def test_what_the_documentation_says_of_costs_is_what_is_planned(name, tmp_path, monkeypatch):
    rows, _ = planned(imagenet(name), tmp_path, monkeypatch)
    told = (ROOT / "docs" / "reproduce-the-paper.md").read_text()

    forward, backward = (sum(row[place] for row in rows.values()) for place in (2, 3))
    disk = round(sum(row[5] for row in rows.values()) / 1e3)
    assert f"| `{name}` | {forward:,} | {backward:,} | {disk:,} GB |" in told


class TestGivenRates:
    def problem(self, values, message):
        with pytest.raises(ParamsError, match=message):
            validate(values, root=ROOT)

    def test_without_their_assumption(self):
        values = imagenet()
        values["plan"]["assumption"] = " "

        self.problem(values, r"plan.assumption: missing; say which device the rates are of")

    def test_of_another_architecture(self):
        values = imagenet()
        values["plan"]["throughput"]["resnet5"] = RATES

        self.problem(values, r"plan.throughput.resnet5: .*did you mean 'resnet50'")

    def test_an_assumption_about_nothing(self):
        values = imagenet()
        values["plan"]["throughput"] = {}

        self.problem(values, r"plan.assumption: there are no rates that it is about")
