"""Tasks on a small study in a folder, in-process."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import write_model
from steadymap.attribution import attribute
from steadymap.engine import evaluation_set, runner, selection
from steadymap.engine.settings import setting
from steadymap.experiments import similarity_scores
from steadymap.experiments.similarity_scores import score
from steadymap.models.registry import load
from steadymap.params.checks import overlay, validate
from steadymap.params.files import read_yaml
from steadymap.params.schema import EvaluationSet
from steadymap.store.maps import Maps
from steadymap.store.task_cache import TaskCache


@pytest.fixture(scope="module")
def study(tmp_path_factory, embedded):
    """Models and evaluation sets of 9 and 17 images, and their params."""
    from conftest import ROOT

    root = tmp_path_factory.mktemp("study")
    base = overlay(
        read_yaml(ROOT / "profiles" / "embedded.yaml"), read_yaml(ROOT / "profiles" / "tiny.yaml")
    )
    classes = base["data"]["classes"]
    for seed, model in enumerate(("googlenet", "googlenet-r")):
        write_model(root / "models" / model, model=model, classes=classes, seed=seed)
    labels = embedded.rows("val")["label"].to_numpy()
    for n in (9, 17):
        rule = EvaluationSet(rule="any", target="label", n_images=n, seed=0)
        chosen = selection.choose(
            rule, embedded, dict.fromkeys(["googlenet", "googlenet-r"], labels)
        )
        selection.write(chosen, embedded, root / f"set-{n}")
    return root, validate(base)


def planned(study, method, n=9):
    from steadymap.engine.settings import points, unique_settings
    from steadymap.engine.tasks import plan_settings
    from steadymap.store.atomic import read_json

    root, params = study
    rows, targets, _ = evaluation_set.read(root / f"set-{n}")
    weights = {
        name: read_json(root / "models" / name / "card.json")["weights_sha256"]
        for name in params.models.names
    }
    made = plan_settings(
        unique_settings(points(method, params.sweeps[method])),
        weights=weights,
        rows=rows,
        targets=targets,
        preprocessing="p",
        attribution=params.attribution,
    )
    return made, runner.RunContext(root / "models", root / f"set-{n}", params.attribution)


def run(study, method, cache, n=9):
    made, run_context = planned(study, method, n)
    ran = runner.run(made.tasks, cache=cache, run_context=run_context, title=method)
    return made, run_context, ran


@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "sliding_patch"])
def test_tasks_give_the_maps_of_a_direct_call(study, method, tmp_path):
    root, _ = study
    cache = TaskCache(tmp_path / "cache")
    made, run_context, _ = run(study, method, cache)
    runner.assemble(method, made, cache=cache, run_context=run_context, folder=tmp_path / "maps")

    maps = Maps(tmp_path / "maps")
    rows, _, pixels = evaluation_set.read(root / "set-9")
    setting = made.settings[-1].hyperparameters
    expected = attribute(
        method,
        load(root / "models" / "googlenet-r"),
        evaluation_set.as_images(pixels),
        rows["label"].tolist(),
        image_ids=rows["image_id"].tolist(),
        batch_size=16,
        **setting,
    )
    assert (maps.read("googlenet-r", setting) == expected.numpy()).all()
    assert maps.image_ids == rows["image_id"].tolist()
    assert maps.task_ids[-1]["googlenet-r"] == made.task_id("googlenet-r", made.settings[-1])


def test_a_second_run_executes_nothing(study, tmp_path):
    cache = TaskCache(tmp_path)

    _, _, first = run(study, "smoothgrad", cache)
    _, _, second = run(study, "smoothgrad", cache)

    assert first.executed == len(first_tasks := planned(study, "smoothgrad")[0].tasks)
    assert (second.executed, second.cached) == (0, len(first_tasks))
    assert str(second).startswith("0 tasks executed")


def test_a_task_reads_its_own_images_and_no_others(study, tmp_path, monkeypatch):
    """So that a worker's memory does not grow with the evaluation set."""
    seen, as_images = [], evaluation_set.as_images

    def watched(pixels):
        seen.append(len(pixels))
        return as_images(pixels)

    monkeypatch.setattr(evaluation_set, "as_images", watched)
    cache = TaskCache(tmp_path / "cache")
    made, run_context, _ = run(study, "gradient", cache, n=17)
    runner.assemble(
        "gradient", made, cache=cache, run_context=run_context, folder=tmp_path / "maps"
    )

    assert sorted(seen) == sorted(len(task.block) for task in made.tasks)
    assert max(seen) < 17
    # Whoever plans or assembles reads rows and targets; the pixels stay where they are.
    _, _, pixels = evaluation_set.read(run_context.evaluation_set)
    assert isinstance(pixels, np.memmap)


def test_joining_and_scoring_hold_no_more_for_more_images(tmp_path, monkeypatch):
    """Of maps they hold a block or a chunk, of all there are 8 MB."""
    side, size = 64, 16

    def peaks(n):
        rows = pd.DataFrame({"image_id": [f"image-{i}" for i in range(n)]})
        monkeypatch.setattr(
            evaluation_set, "read", lambda folder: (rows, None, np.empty((1, side, side, 3)))
        )
        cache = TaskCache(tmp_path / f"cache-{n}")
        made = setting("gradient", {})
        keys = [f"{n:x}{start:x}" for start in range(0, n, size)]
        for position, key in enumerate(keys):
            maps = np.random.default_rng(position).random((size, side, side), dtype=np.float32)
            cache.write(key, maps, {"loss": np.zeros(size)})
        plan = SimpleNamespace(
            keys={("net", made): keys},
            settings=[made],
            tasks=[SimpleNamespace(block=range(n))],
            task_id=lambda model, made: "task",
        )
        folder = tmp_path / f"maps-{n}"
        found = []
        for step in (
            lambda: runner.assemble(
                "gradient",
                plan,
                cache=cache,
                run_context=SimpleNamespace(evaluation_set=tmp_path),
                folder=folder,
            ),
            lambda: similarity_scores.dynamic_ranges(
                Maps(folder).read("net", made.hyperparameters)
            ),
        ):
            tracemalloc.start()
            step()
            found.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return np.array(found)

    monkeypatch.setattr(similarity_scores, "_CHUNK", 32)
    peaks(32)  # what a first call imports
    few, many = peaks(64), peaks(512)

    assert Maps(tmp_path / "maps-512").read(
        "net", setting("gradient", {}).hyperparameters
    ).shape == (
        512,
        side,
        side,
    )
    assert (many - few < 512 * side * side * 4 / 8).all()


def test_joining_holds_the_array_diagnostics_of_one_setting(tmp_path, monkeypatch):
    """Each has its own file, in which they are what the blocks said, one after the other."""
    side, n, size = 64, 32, 16
    rows = pd.DataFrame({"image_id": [f"image-{i}" for i in range(n)]})
    monkeypatch.setattr(
        evaluation_set, "read", lambda folder: (rows, None, np.empty((1, side, side, 3)))
    )
    cache = TaskCache(tmp_path / "cache")
    fields = np.random.default_rng(0).random((8, n, side, side), dtype=np.float32)
    every = [setting("smoothgrad", {"n_samples": count}) for count in range(1, 9)]

    def peak(settings):
        keys = {}
        for model in ("net", "other"):
            for made in settings:
                position = every.index(made)
                for start in range(0, n, size):
                    key = f"{model}{position}-{start}"
                    block = slice(start, start + size)
                    maps = np.zeros((size, side, side), np.float32)
                    cache.write(key, maps, {"mask": fields[position, block]})
                    keys.setdefault((model, made), []).append(key)
        plan = SimpleNamespace(
            keys=keys,
            settings=settings,
            tasks=[SimpleNamespace(block=range(n))],
            task_id=lambda model, made: "task",
        )
        place = SimpleNamespace(evaluation_set=tmp_path)
        tracemalloc.start()
        runner.assemble(
            "smoothgrad", plan, cache=cache, run_context=place, folder=tmp_path / "maps"
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(every[:1])  # what a first call imports
    few, many = peak(every[:2]), peak(every)

    assert many - few < fields[0].nbytes / 2
    maps = Maps(tmp_path / "maps")
    for model in ("net", "other"):
        for made, expected in zip(every, fields, strict=True):
            found = maps.arrays(model, made.hyperparameters)["mask"]
            np.testing.assert_array_equal(found, expected)
    assert len(list((tmp_path / "maps").glob("*.npz"))) == 16


def test_growing_the_set_computes_only_the_new_images(study, tmp_path, monkeypatch):
    cache = TaskCache(tmp_path)
    run(study, "sliding_patch", cache, n=9)
    blocks = []
    execute = runner.execute
    monkeypatch.setattr(
        runner, "execute", lambda task, place: blocks.append(task.block) or execute(task, place)
    )

    run(study, "sliding_patch", cache, n=17)

    # The first block of eight was full; the ninth image's block grew and is new.
    assert {block for block in blocks} == {tuple(range(8, 16)), (16,)}


def test_a_killed_run_keeps_what_it_finished(study, tmp_path, monkeypatch):
    cache = TaskCache(tmp_path)
    execute, calls = runner.execute, []

    def dies(task, place):
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return execute(task, place)

    monkeypatch.setattr(runner, "execute", dies)
    with pytest.raises(KeyboardInterrupt):
        run(study, "sliding_patch", cache)
    monkeypatch.setattr(runner, "execute", execute)

    made, _, ran = run(study, "sliding_patch", cache)

    assert (ran.cached, ran.executed) == (2, len(made.tasks) - 2)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_damaged_entry_is_computed_again(study, tmp_path):
    cache = TaskCache(tmp_path / "cache")
    made, run_context, _ = run(study, "gradient", cache)
    key = made.tasks[0].keys[0]
    before = cache.read(key)[0]
    cache.path(key).write_bytes(b"broken")

    with pytest.raises(FileNotFoundError, match="gone or damaged since it was computed; run"):
        runner.assemble(
            "gradient", made, cache=cache, run_context=run_context, folder=tmp_path / "m"
        )
    assert not (tmp_path / "m").exists()
    _, _, ran = run(study, "gradient", cache)

    assert ran.executed == 1
    assert (cache.read(key)[0] == before).all()


def test_block_size_never_changes_a_bit(study, tmp_path):
    root, params = study
    stacks = []
    for size in (8, 16):
        attribution = params.attribution.model_copy(update={"block_size": size})
        cache = TaskCache(tmp_path / f"cache-{size}")
        changed = params.model_copy(update={"attribution": attribution})
        made, run_context, _ = run((root, changed), "smoothgrad", cache)
        folder = tmp_path / f"maps-{size}"
        runner.assemble("smoothgrad", made, cache=cache, run_context=run_context, folder=folder)
        stacks.append(np.load(folder / "googlenet.npy"))

    assert (stacks[0] == stacks[1]).all()


def test_a_map_that_is_not_finite_is_named(study, tmp_path, monkeypatch):
    made, run_context = planned(study, "gradient")

    class Broken:
        @staticmethod
        def explain(passes, images, targets, *, image_ids, settings):
            maps = torch.zeros(len(images), 32, 32)
            maps[1, 0, 0] = float("nan")
            return [(maps, {}) for _ in settings]

    monkeypatch.setattr(runner, "explainer", lambda name: Broken)
    rows, _, _ = evaluation_set.read(run_context.evaluation_set)

    name = rows["image_id"][1]
    with pytest.raises(FloatingPointError, match=f"the map of image {name} is not finite; check"):
        runner.execute(made.tasks[0], run_context)


def test_diagnostics_reach_the_archive(study, tmp_path, monkeypatch):
    import pandas as pd

    real = runner.explainer

    class Talkative:
        def __init__(self, name):
            self.real = real(name)

        def explain(self, passes, images, targets, **options):
            found = self.real.explain(passes, images, targets, **options)
            return [(maps, {"residual": targets.double()}) for maps, _ in found]

    monkeypatch.setattr(runner, "explainer", Talkative)
    cache = TaskCache(tmp_path / "cache")
    made, run_context, _ = run(study, "gradient", cache)
    runner.assemble(
        "gradient", made, cache=cache, run_context=run_context, folder=tmp_path / "maps"
    )

    notes = pd.read_parquet(tmp_path / "maps" / "diagnostics.parquet")
    rows, _, _ = evaluation_set.read(run_context.evaluation_set)
    assert len(notes) == 2 * 9
    first = notes[notes["model"] == "googlenet"].set_index("image_id")["value"]
    assert first[rows["image_id"]].tolist() == rows["label"].tolist()


def test_scores_compare_variants_with_their_reference(study, tmp_path):
    _, params = study
    cache = TaskCache(tmp_path / "cache")
    made, run_context, _ = run(study, "smoothgrad", cache)
    runner.assemble(
        "smoothgrad", made, cache=cache, run_context=run_context, folder=tmp_path / "maps"
    )
    maps = Maps(tmp_path / "maps")

    images = evaluation_set.read(run_context.evaluation_set)[0].assign(photo="")
    names = params.models.names
    found = score("smoothgrad", params.sweeps["smoothgrad"], names, maps, params.similarity, images)

    ssim = found[(found["metric"] == "ssim") & (found["convention"] == "common")]
    counted = ssim.groupby(["sweep", "draws", "value"]).size()
    assert counted.to_dict() == {
        ("SG-N", "independent", "4"): 18,
        ("SG-N", "mismatch", "2"): 18,
        ("SG-N", "nested", "4"): 18,
        ("SG-sigma", "mismatch", "0.2"): 18,
        ("SG-sigma", "nested", "0.1"): 18,
        ("SG-sigma", "nested", "0.3"): 18,
    }
    nested, independent = (
        ssim[(ssim["sweep"] == "SG-N") & (ssim["draws"] == draws)]["score"]
        for draws in ("nested", "independent")
    )
    # Half of the nested samples are shared.
    assert nested.mean() > independent.mean() + 0.02
    from skimage.metrics import structural_similarity

    a, b = (
        maps.read("googlenet", {**made.settings[0].hyperparameters, "n_samples": n})[4]
        for n in (2, 4)
    )
    expected = structural_similarity(
        (a / abs(a).max()).astype(float), (b / abs(b).max()).astype(float), data_range=2, win_size=5
    )
    chosen = ssim[
        (ssim["sweep"] == "SG-N")
        & (ssim["draws"] == "nested")
        & (ssim["model"] == "googlenet")
        & (ssim["image_id"] == maps.image_ids[4])
    ]
    assert chosen["score"].item() == pytest.approx(expected, abs=1e-6)


def test_choosing_a_device_turns_off_tf32_and_what_does_not_repeat():
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def flags(values=None):
        if values is not None:
            cuda.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = values
        return cuda.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    before = flags()
    try:
        flags((True, True, False, True))
        assert runner.device_of("cpu") == torch.device("cpu")
        assert flags() == (False, False, True, False)
    finally:
        flags(before)


def test_a_model_is_loaded_onto_a_device_so_chosen(study, monkeypatch):
    root, params = study
    named = []
    monkeypatch.setattr(runner, "device_of", lambda name: named.append(name) or torch.device("cpu"))
    runner.clear_caches()

    runner.trained_model(
        "googlenet", runner.RunContext(root / "models", root / "set-9", params.attribution)
    )

    assert named == [params.attribution.device]
    runner.clear_caches()


def test_workers_take_the_device_that_keys_were_made_for(study, monkeypatch):
    root, params = study
    auto = params.attribution.model_copy(update={"device": "auto"})
    place = runner.RunContext(root / "models", root / "set-9", auto)

    for there, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert place.resolved().attribution.device == device
