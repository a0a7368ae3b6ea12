import hashlib
import json
import re

import pandas as pd
import pytest
import torch

from steadymap.engine import tasks as grid
from steadymap.engine.settings import pairs, points, setting, unique_settings
from steadymap.engine.tasks import cost_of, plan_settings, task_key
from steadymap.params.schema import Attribution, Sweep
from steadymap.store import fingerprint

ATTRIBUTION = Attribution(batch_size=16, block_size=8, device="cpu")
SG_N = Sweep(vary="n_samples", values=[2, 4, 8], reference=4, fixed={"sigma": 0.1})
SG_SIGMA = Sweep(vary="sigma", values=[0.1, 0.2], reference=0.2, fixed={"n_samples": 8})
SP = Sweep(vary="patch_size", values=[3, 5], reference=5)


def rows_of(n):
    import pandas as pd

    names = [f"val-{i}" for i in range(n)]
    rows = pd.DataFrame({"image_id": names, "sha256": [f"sha-{name}" for name in names]})
    targets = pd.concat(
        pd.DataFrame({"image_id": names, "model": model, "target": 1}) for model in "ab"
    )
    return {"rows": rows, "targets": targets}


def planned(sweeps, n=9, method="smoothgrad", **changes):
    options = {
        "weights": {"a": "wa", "b": "wb"},
        "preprocessing": "p",
        "attribution": ATTRIBUTION,
        **rows_of(n),
        **changes,
    }
    return plan_settings(unique_settings(points(method, sweeps)), **options)


def test_settings_carry_all_effective_hyperparameters():
    assert setting("smoothgrad", {"sigma": 1}).hyperparameters == {
        "n_samples": 50,
        "sigma": 1.0,
        "sigma_unit": "range",
        "input_space": "normalized",
        "output": "logit",
        "seed": 0,
    }


def test_a_lone_setting_can_differ_from_the_defaults():
    (point,) = points("gradient", {"default": Sweep(fixed={"output": "probability"})})

    assert (point.sweep, point.hyperparameter, point.value) == ("default", "", "")
    assert point.is_reference
    assert point.setting == setting("gradient", {"output": "probability"})


def test_moments_of_one_optimization_share_a_pass_but_no_second_reference():
    sweep = Sweep(vary="n_iterations", values=[10, 30], reference=30)

    found = points("meaningful_perturbation", {"MP-N": sweep})

    assert [(p.value, p.draws) for p in found] == [("10", "nested"), ("30", "nested")]
    assert found[0].setting.shared_pass_key == found[1].setting.shared_pass_key


def test_a_count_sweep_has_one_more_reference_with_draws_of_its_own():
    found = points("smoothgrad", {"SG-N": SG_N})

    assert [(p.value, p.draws, p.is_reference) for p in found] == [
        ("2", "nested", False),
        ("4", "nested", True),
        ("4", "independent", True),
        ("8", "nested", False),
    ]
    assert [p.setting.hyperparameters["seed"] for p in found] == [0, 0, 1, 0]


def test_pairs_leave_the_reference_with_itself_out():
    found = pairs("smoothgrad", {"SG-N": SG_N, "SG-sigma": SG_SIGMA})

    assert [(a.value, b.value, draws) for a, b, draws in found] == [
        ("4", "2", "nested"),
        ("4", "8", "nested"),
        ("4", "2", "independent"),
        ("4", "8", "independent"),
        ("0.2", "0.1", "nested"),
    ]
    assert found[2][0].setting.hyperparameters["seed"] == 1


def test_deterministic_sweeps_have_no_draws():
    assert {point.draws for point in points("sliding_patch", {"SP": SP})} == {"none"}


def test_a_method_without_sweeps_has_its_defaults():
    (only,) = points("gradient", {})

    assert (only.sweep, only.value, only.setting.hyperparameters) == (
        "default",
        "",
        {"output": "logit"},
    )
    assert pairs("gradient", {}) == []


def test_settings_shared_by_sweeps_are_computed_once():
    found = points("smoothgrad", {"SG-N": SG_N, "SG-sigma": SG_SIGMA})

    assert len(found) == 6
    assert len(unique_settings(found)) == 5  # n_samples 8 at sigma .1 stands in both


def test_settings_that_differ_in_counts_share_one_task():
    made = planned({"SG-N": SG_N, "SG-sigma": SG_SIGMA})

    groups = {tuple(s.hyperparameters["n_samples"] for s in task.settings) for task in made.tasks}
    assert groups == {(2, 4, 8), (4,), (8,)}
    # Groups x blocks x models.
    assert len(made.tasks) == 3 * 2 * 2


def test_growing_the_evaluation_set_keeps_the_keys_of_full_blocks():
    few, many = planned({"SG-N": SG_N}, n=16), planned({"SG-N": SG_N}, n=32)

    assert all(many.keys[name][:2] == few.keys[name] for name in few.keys)
    assert all(len(keys) == 4 for keys in many.keys.values())


def test_another_value_leaves_the_other_settings_alone():
    other = SG_N.model_copy(update={"values": [2, 4, 16]})
    before, after = planned({"SG-N": SG_N}), planned({"SG-N": other})

    kept = set(before.keys) & set(after.keys)
    assert {s.hyperparameters["n_samples"] for _, s in kept} == {2, 4}
    assert all(before.keys[name] == after.keys[name] for name in kept)
    assert len(set(after.keys) - set(before.keys)) == 2  # one per model


KEY = {
    "weights_sha256": "w",
    "preprocessing": "p",
    "images": [("val-1", "sha", 3)],
    "attribution": ATTRIBUTION,
}


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "other"},
        {"preprocessing": "other"},
        {"images": [("val-2", "sha", 3)]},
        {"images": [("val-1", "other", 3)]},
        {"images": [("val-1", "sha", 4)]},
        {"images": [("val-1", "sha", 3), ("val-2", "sha", 3)]},
        {"attribution": ATTRIBUTION.model_copy(update={"batch_size": 32})},
    ],
    ids=str,
)
def test_the_key_holds_everything_that_maps_depend_on(change):
    made = setting("smoothgrad", {})

    assert task_key(made, **KEY) == task_key(made, **KEY)
    assert task_key(made, **{**KEY, **change}) != task_key(made, **KEY)


def test_the_key_holds_hyperparameters_seed_method_and_torch(monkeypatch):
    keys = {
        task_key(setting(method, options), **KEY)
        for method, options in [
            ("smoothgrad", {}),
            ("smoothgrad", {"sigma": 0.2}),
            ("smoothgrad", {"seed": 1}),
            ("gradient", {}),
        ]
    }
    monkeypatch.setattr(torch, "__version__", "99")
    keys.add(task_key(setting("smoothgrad", {}), **KEY))

    assert len(keys) == 5


def test_the_key_holds_the_libraries_that_a_method_names(monkeypatch):
    keys = {name: task_key(setting(name, {}), **KEY) for name in ("lime", "gradient")}

    monkeypatch.setattr(grid, "_version", lambda name: "99")

    assert task_key(setting("lime", {}), **KEY) != keys["lime"]
    assert task_key(setting("gradient", {}), **KEY) == keys["gradient"]


def test_planning_asks_for_a_librarys_version_once(monkeypatch):
    """It is read from a file of metadata; a large plan has a million keys."""
    asked = []
    monkeypatch.setattr(grid, "version", lambda name: asked.append(name) or "99")
    grid._version.cache_clear()

    planned({"default": Sweep()}, n=40, method="lime")

    grid._version.cache_clear()
    assert sorted(asked) == sorted(set(asked)) != []


def test_block_size_is_no_part_of_the_key():
    other = Attribution(batch_size=16, block_size=16, device="cpu")

    made = setting("smoothgrad", {})
    assert task_key(made, **{**KEY, "attribution": other}) == task_key(made, **KEY)


def test_the_kind_of_device_is_in_the_key_except_for_a_cpu(monkeypatch):
    made = setting("smoothgrad", {})
    parts = {
        "method": "smoothgrad",
        "hyperparameters": made.hyperparameters,
        "weights": "w",
        "preprocessing": "p",
        "images": [["val-1", "sha", 3]],
        "batch_size": 16,
        "dtype": "float32",
        "torch": torch.__version__,
        "libraries": {},
        "source": fingerprint.digest(
            "steadymap.attribution.gradients", "steadymap.models.registry"
        ),
    }

    def key(device, there):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
        changed = ATTRIBUTION.model_copy(update={"device": device})
        return task_key(made, **{**KEY, "attribution": changed})

    def hashed(parts):
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    assert key("cpu", True) == key("cpu", False) == key("auto", False) == hashed(parts)
    assert key("cuda", False) == key("auto", True) == hashed({**parts, "device": "cuda"})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's sources, for planting edits in."""
    import shutil

    copy = tmp_path / "steadymap"
    shutil.copytree(fingerprint._PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "_PACKAGE", copy)
    return copy


def plant(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("attribution/gradients.py", 'shared["sigma"] * std', 'shared["sigma"]'),
        ("attribution/model_runner.py", "score.sum()", "score.mean()"),
        ("draws.py", "key[:16]", "key[16:]"),
        ("models/registry.py", "images - self.mean", "images"),
    ],
)
def test_an_edit_of_a_module_that_the_method_uses_changes_its_key(package, module, before, after):
    key = task_key(setting("smoothgrad", {}), **KEY)

    plant(package / module, before, after)

    assert task_key(setting("smoothgrad", {}), **KEY) != key


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("attribution/sliding_patch.py", "(patch_size - 1) / 2", "patch_size / 2"),
        ("report/figures/theme.py", '"""', '"""x = 1\n\n'),
        ("attribution/gradients.py", "# Float64 and draw by draw", "# Draw by draw"),
        ("attribution/gradients.py", "Mean gradient over noisy", "The mean gradient over noisy"),
        ("params/schema.py", "confidence: float", "coverage: float"),
        ("params/methods.yaml", "patch_size:", "size:"),
        ("store/atomic.py", "indent=2", "indent=1"),
    ],
)
def test_other_edits_and_comments_keep_it(package, module, before, after):
    key = task_key(setting("smoothgrad", {}), **KEY)

    plant(package / module, before, after)

    assert task_key(setting("smoothgrad", {}), **KEY) == key


def test_renaming_a_module_keeps_it(package):
    key = task_key(setting("smoothgrad", {}), **KEY)

    (package / "draws.py").rename(package / "keyed_noise.py")
    for path in package.rglob("*.py"):
        text = path.read_text().replace("steadymap.draws", "steadymap.keyed_noise")
        text = text.replace("from steadymap import draws", "from steadymap import keyed_noise")
        path.write_text(re.sub(r"\bdraws\.(?=\w+\()", "keyed_noise.", text))

    assert "keyed_noise.generator(" in (package / "attribution" / "gradients.py").read_text()
    assert task_key(setting("smoothgrad", {}), **KEY) == key


def test_moving_a_function_between_modules_keeps_it(package):
    key = task_key(setting("smoothgrad", {}), **KEY)
    text = (package / "models" / "registry.py").read_text()
    function = re.search(r"def choose_device.*?(?=\n\n\nclass )", text, re.DOTALL)[0]

    (package / "devices.py").write_text(f"import torch\n\n\n{function}\n")
    planted = text.replace(f"{function}\n\n\n", "")
    (package / "models" / "registry.py").write_text(
        planted.replace(
            "from steadymap.draws",
            "from steadymap.devices import choose_device\nfrom steadymap.draws",
        )
    )

    assert "def choose_device" not in planted
    assert task_key(setting("smoothgrad", {}), **KEY) == key


def test_settings_of_any_kind_fill_a_pass_where_a_method_lets_them():
    """16 rows of a step hold four settings of four images; smoothgrad's share none."""
    rows = pd.DataFrame({"image_id": list("abcd"), "sha256": list("abcd")})
    targets = pd.DataFrame({"model": "m", "image_id": list("abcd"), "target": 0})

    def tasks(method, hyperparameters, n=4):
        return plan_settings(
            [setting(method, values) for values in hyperparameters],
            weights={"m": "w"},
            rows=rows[:n],
            targets=targets[:n],
            preprocessing="p",
            attribution=Attribution(batch_size=64, block_size=8, device="cpu"),
        ).tasks

    seeds = [{"seed": seed, "n_iterations": n} for seed in range(5) for n in (5, 9)]
    made = tasks("meaningful_perturbation", seeds)

    assert [len(task.settings) for task in made] == [8, 2]
    assert cost_of(made[0].settings, 64)[1] == 4 * 9
    assert len(tasks("smoothgrad", [{"seed": seed} for seed in range(5)])) == 5
    alone = tasks("meaningful_perturbation", seeds[:1]) + tasks(
        "meaningful_perturbation", seeds[2:3]
    )
    assert [key for task in alone for key in task.keys] == [made[0].keys[0], made[0].keys[2]]
