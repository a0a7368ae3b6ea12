"""Each of the paper's figures shows the table's and the archive's numbers, or says why not."""

import re
import shutil
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from steadymap.analysis import readings
from steadymap.report import paper_figures
from steadymap.report.figures import maps as figures_maps
from steadymap.report.study import Study as StudyFiles
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table, write_table
from synthetic_study import PLAIN, SAM_SWEEPS, Study, write_study

PARAMS = {"accuracy": {"alpha": 0.25}}
NAMES = [*(f"fig{n}" for n in range(1, 8)), *(f"s{n}" for n in range(1, 18))]
WHOLE = Study(
    n_images=5, sweeps=SAM_SWEEPS, without_sweeps=PLAIN, accuracy=True, comparisons=True, size=24
)
TWO_PAIRS = ("googlenet", "googlenet-r", "resnet18", "resnet18-r")


def _read(folder, study):
    reports, results = write_study(folder, study)
    return StudyFiles(reports, results, "toy", PARAMS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return _read(tmp_path_factory.mktemp("whole"), WHOLE)


@pytest.fixture(scope="module")
def drawn(whole):
    return {one.name: one for one in paper_figures.draw(whole)}


@pytest.fixture
def tiles(monkeypatch):
    """Rows that a figure hands to the drawing of tiles, by name."""

    def record(name, study):
        kept = {}
        made = figures_maps.tile_rows

        def keep(rows, **options):
            kept["rows"] = rows
            return made(rows, **options)

        with monkeypatch.context() as patch:
            patch.setattr(figures_maps, "tile_rows", keep)
            caption = paper_figures.draw_one(study, name).caption
        return kept["rows"], caption

    return record


def test_all_figures_are_drawn_in_the_paper_s_order(drawn):
    assert list(drawn) == NAMES
    assert [name for name, one in drawn.items() if one.figure is None] == []
    assert all(one.caption and one.shows and not one.reason for one in drawn.values())
    assert (drawn["fig3"].title, drawn["s12"].title) == ("Fig. 3", "Fig. S12")


def test_different_figures_show_different_images(tmp_path):
    study = _read(tmp_path, replace(WHOLE, n_images=40, size=16))

    shown = {
        one.name: re.findall("`(val-[0-9]+)`", one.caption) for one in paper_figures.draw(study)
    }

    # Of its two objects both are shown before.
    del shown["fig6"]
    every = [image_id for ids in shown.values() for image_id in dict.fromkeys(ids)]
    assert len(every) > 15
    assert len(set(every)) == len(every)
    assert shown["fig1"] == ["val-00000"]
    # Where images are few, figures share them.
    few = _read(tmp_path / "few", replace(WHOLE, n_images=2))
    assert all(one.figure or one.reason for one in paper_figures.draw(few))


def test_no_extreme_example_has_a_blank_map(whole, tmp_path):
    """The image of the largest difference has a degenerate pair: the next one is shown."""
    shutil.copytree(whole.reports, tmp_path / "reports")
    study = StudyFiles(tmp_path / "reports", whole.results, "toy", PARAMS)
    first = paper_figures.draw_one(study, "s7").caption.split("`")[1]
    path = tmp_path / "reports" / "tables" / "images.csv"
    table = read_table(path)
    blank = table["sweep"].eq("MP-seed") & table["image_id"].eq(first)
    write_table(table.assign(n_degenerate=table["n_degenerate"].mask(blank, 1)), path)

    spoiled = StudyFiles(tmp_path / "reports", whole.results, "toy", PARAMS)

    assert paper_figures.draw_one(spoiled, "s7").caption.split("`")[1] != first


def test_figures_with_two_pairs_and_without_boxes(tmp_path):
    study = _read(tmp_path, replace(WHOLE, models=TWO_PAIRS, boxes=False, n_images=3, photos=False))

    found = {one.name: one for one in paper_figures.draw(study)}

    assert [name for name, one in found.items() if one.figure is None] == ["fig6"]
    assert "no object on a blank background" in found["fig6"].reason
    assert "No image has a box" in found["fig5"].caption
    assert len(found["fig5"].figure.axes) == 3


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (
            {"sweeps": (), "without_sweeps": (), "comparisons": False},
            {
                "fig1": "no maps of the methods",
                "fig2": "no comparison denoising-gradient",
                "fig3": "no maps of noisy images",
                "fig4": "no sweep MP-blur; the study has no sweep MP-N",
                "fig5": "no Table S1",
                "s4": "no sweep SG-sigma",
                "s8": "no sweep MP-blur",
                "s9": "no sweep MP-N",
                "s17": "no maps and scores",
            },
        ),
        ({"maps": False}, {"fig4": "no maps of meaningful_perturbation", "s15": "no maps of"}),
        (
            {"comparisons": False},
            {
                "fig2": "denoising-gradient",
                "s1": "denoising-input_x_gradient",
                "s3": "denoising-gradient",
                "fig3": "no maps of noisy images",
                "s13": "gradient-noise",
                "fig6": "no object on a blank",
            },
        ),
        ({"accuracy": False}, {"fig5": "no Table S1", "fig7": "no spread of accuracy"}),
        (
            {"models": ("googlenet",)},
            {"fig2": "robust twin", "fig4": "robust twin", "s7": "robust twin"},
        ),
        ({"models": ("net-r",)}, {"fig1": "no regular model", "s11": "no regular model"}),
        ({"degenerate": True}, {"fig4": "no ssim scores", "s15": "no hog_pearson scores"}),
    ],
    ids=["nothing", "no-maps", "no-comparisons", "no-accuracy", "no-twin", "no-regular", "flat"],
)
def test_what_a_figure_lacks_is_its_reason(change, reasons, tmp_path):
    study = _read(tmp_path, replace(WHOLE, n_images=3, **change))

    found = {one.name: one for one in paper_figures.draw(study)}

    assert list(found) == NAMES
    for name, words in reasons.items():
        assert found[name].figure is None
        assert words in found[name].reason
    assert all(bool(one.reason) != bool(one.figure) for one in found.values())


def test_missing_image_files_leave_their_place_blank(whole, tmp_path, tiles):
    shutil.copytree(whole.reports, tmp_path / "reports")
    shutil.copytree(whole.results, tmp_path / "results")
    shutil.rmtree(tmp_path / "results" / "evaluation_set")
    for path in (tmp_path / "results" / "comparisons").glob("*/images.npy"):
        path.unlink()
    study = StudyFiles(tmp_path / "reports", tmp_path / "results", "toy", PARAMS)

    for name in ("fig3", "fig6", "s4"):
        rows, _ = tiles(name, study)
        assert rows[0].tiles[0] is None
        assert rows[0].tiles[1] is not None


@pytest.mark.parametrize(
    ("name", "sweep"),
    [("s4", "SG-sigma"), ("s6", "LIME-N"), ("s7", "MP-seed"), ("s12", "SG-N")],
)
def test_the_image_is_the_largest_robust_minus_regular_and_an_extreme(name, sweep, whole, tiles):
    rows = readings.nested_draws(read_table(whole.reports / "tables" / "images.csv"))
    rows = rows[rows["sweep"].eq(sweep) & rows["metric"].eq("ssim")]
    rows = rows[rows["convention"] == "common"]
    means = rows.pivot(index="image_id", columns="model", values="mean").sort_index()
    expected = (means["googlenet-r"] - means["googlenet"]).idxmax()

    shown, caption = tiles(name, whole)

    assert f"`{expected}`" in caption
    assert "an extreme" in caption
    assert np.array_equal(shown[0].tiles[0].pixels, whole.pixels[expected])


def test_a_line_shows_the_archive_s_maps_with_the_scores_of_their_image(whole, tiles):
    rows, caption = tiles("s6", whole)
    image_id = caption.split("`")[1]
    maps = Maps(whole.results / "maps" / "lime")
    place = maps.image_ids.index(image_id)
    scores = read_table(whole.results / "scores.parquet").query(
        "sweep == 'LIME-N' and metric == 'ssim' and convention == 'common' and draws == 'nested' "
        f"and image_id == '{image_id}' and model == 'googlenet-r'"
    )

    other, reference = rows[1].tiles[1:]

    expected = maps.read("googlenet-r", {"n_samples": 200, "seed": 0})[place]
    assert np.array_equal(other.pixels, expected)
    assert other.below == f"{scores['score'].iloc[0]:.2f}"
    assert (other.above, reference.above) == ("n_samples 200", "400")
    assert (reference.below, reference.framed, other.framed) == ("reference", True, False)


def test_the_teaser_comes_before_the_sweep(whole, tiles):
    rows, _ = tiles("fig1", whole)

    above = {row.label: [tile.above for tile in row.tiles if tile and tile.above] for row in rows}
    assert above["SG"] == ["n_samples 3", "n_samples 5", "n_samples 8"]
    assert above["MP"] == ["blur_radius 1.5", "blur_radius 3", "blur_radius 8.5"]
    assert above["LIME"] == ["seed 0", "seed 1", "seed 2"]
    assert above["SP"] == ["patch_size 3", "patch_size 9", "patch_size 15"]


def test_denoised_maps_carry_the_score_to_the_twin_s_framed_map(whole, tiles):
    scores = read_table(whole.results / "comparisons" / "comparisons.parquet")
    scores = scores[scores["comparison"].eq("denoising-gradient") & scores["pairing"].eq("same")]
    scores = scores[scores["metric"].eq("ssim") & scores["convention"].eq("common")]
    image_id = whole.table("evaluation_set")["image_id"].iloc[0]
    own = scores[scores["image_id"] == image_id].set_index("value")["score"]

    rows, caption = tiles("fig2", whole)

    (row,) = rows
    words = {tile.above: tile.below for tile in row.tiles}
    expected = {"Grad": "0", "SG 5": "5", "SG 20": "20", "SG 50": "50", "GB": ""}
    assert {name: words[name] for name in expected} == {
        name: f"{own[value]:.2f}" for name, value in expected.items()
    }
    assert [tile.framed for tile in row.tiles] == [False] * (len(row.tiles) - 1) + [True]
    gradient = Maps(whole.results / "maps" / "gradient")
    assert np.array_equal(row.tiles[-1].pixels, gradient.read("googlenet-r", {})[0])
    assert "not an extreme" in caption
    others = tiles("s14", whole)[1]
    assert image_id not in others


def test_noisy_maps_stand_below_the_clean_ones(whole, tiles):
    rows, caption = tiles("fig3", whole)
    clean, noisy = rows
    noise = whole.results / "comparisons" / "noise-0.1"

    assert np.array_equal(noisy.tiles[0].pixels, np.load(noise / "images.npy")[0])
    for place, model in enumerate(("googlenet", "googlenet-r"), start=1):
        kept = Maps(noise / "maps" / "gradient").read(model, {})[0]
        assert np.array_equal(noisy.tiles[place].pixels, kept)
        plain = Maps(whole.results / "maps" / "gradient").read(model, {})[0]
        assert np.array_equal(clean.tiles[place].pixels, plain)
        key = ("gradient-noise", model, "", "gradient", "0.1", "val-00000")
        assert noisy.tiles[place].below == f"{whole.comparison_scores[key]:.2f}"
    assert "variance 0.1 (std 0.316" in caption


def test_objects_share_a_scale_per_model_so_that_blank_maps_stay_blank(whole, tiles):
    rows, _ = tiles("fig6", whole)

    assert [row.label for row in rows] == ["googlenet", "googlenet", "googlenet-r", "googlenet-r"]
    for row in rows:
        scales = {tile.scale for tile in row.tiles[1:]}
        assert scales == {9.0}
        assert [float(tile.pixels.max()) for tile in row.tiles[1:]] == [3.0, 5.0, 9.0]
    assert rows[0].tiles[3].below == f"{81 / 36:.1f}×, 0.45"


def test_losses_and_the_step_of_convergence_are_the_archive_s(whole):
    drawing = paper_figures.draw_one(whole, "s9")
    image_id = drawing.caption.split("`")[1]
    maps = Maps(whole.results / "maps" / "meaningful_perturbation")
    longest = {"n_iterations": 60, "seed": 0}

    for axis, model in zip(drawing.figure.axes, ("googlenet", "googlenet-r"), strict=True):
        kept = maps.arrays(model, longest)["loss_total"][maps.image_ids.index(image_id)]
        assert axis.get_title(loc="left") == model
        assert np.array_equal(axis.lines[0].get_ydata(), kept)
        assert list(axis.lines[-1].get_xdata()) == [20.0, 20.0]


def test_masks_are_shown_as_what_is_blurred_away(whole, tiles):
    rows, _ = tiles("s10", whole)

    assert [tile.above for tile in rows[1].tiles[1:]] == ["step 0", "step 1", "step 60"]
    assert [float(tile.pixels.max()) for tile in rows[1].tiles[1:]] == [0.0, 0.5, 0.8]


def test_the_difference_in_s12_is_of_scaled_maps_at_both_ends(whole, tiles):
    rows, caption = tiles("s12", whole)
    image_id = caption.split("`")[1]
    maps = Maps(whole.results / "maps" / "smoothgrad")
    small, large = (
        maps.read("googlenet", {"n_samples": n, "seed": 0})[maps.image_ids.index(image_id)]
        for n in (5, 50)
    )

    difference = rows[0].tiles[-1]

    expected = large / np.abs(large).max() - small / np.abs(small).max()
    assert np.allclose(difference.pixels, expected)
    assert difference.below == f"L1 {np.abs(expected).mean():.3f}"


def test_s15_shows_the_lowest_hog_and_s17_the_lowest_ssim(whole, tiles):
    images = readings.headline_draws(read_table(whole.reports / "tables" / "images.csv"))
    hog = images[images["sweep"].eq("SP-L") & images["metric"].eq("hog_pearson")]
    hog = hog[hog["model"] == "googlenet"].sort_values("mean")

    caption = tiles("s15", whole)[1]

    assert [part for part in caption.split("`")[1:6:2]] == list(hog["image_id"][:3])
    scores = read_table(whole.results / "scores.parquet").query(
        "metric == 'ssim' and convention == 'common' and model == 'googlenet' and sweep == 'SP-L'"
    )
    worst = scores.sort_values("score").iloc[0]
    squares = [tile for row in tiles("s17", whole)[0] for tile in row.tiles]
    start = next(i for i, tile in enumerate(squares) if tile.above == "SP-L")
    assert squares[start].below == worst["image_id"]
    assert squares[start + 2].above == worst["value"]
    assert squares[start + 2].below == f"{worst['score']:.2f}"


def test_random_images_are_drawn_by_a_seed(whole):
    first = paper_figures._random_images(whole, "s16", 2)

    assert first == paper_figures._random_images(whole, "s16", 2)
    assert len(set(first)) == 2
    assert set(first) <= set(whole.table("evaluation_set")["image_id"])


def test_fig7_takes_the_mean_over_models_and_one_convention(drawn, whole):
    table = read_table(whole.reports / "tables" / "global_std.csv").query("model == 'mean'")
    insertion = drawn["fig7"].figure.axes[-1]
    rows = table[table["metric"].eq("insertion") & table["convention"].eq("auc_over_max")]

    ends = sorted(bar.get_x() + bar.get_width() for bar in insertion.patches)

    wanted = rows[["std", "std_scaled"]].to_numpy().ravel()
    assert np.allclose(ends, sorted(value for value in wanted if value > 0))


def test_bars_of_a_sweep_are_the_sensitivity_table_s(drawn, whole):
    table = readings.headline_draws(whole.table("sensitivity"))
    rows = table[table["sweep"].eq("MP-blur") & table["convention"].isin(["sam", "signed"])]

    axis = drawn["s8"].figure.axes[0]

    heights = [bar.get_height() for bar in axis.patches]
    for metric in ("ssim", "spearman"):
        for mean in rows.loc[rows["metric"] == metric, "mean"]:
            assert any(np.isclose(height, mean) for height in heights)
    words = [item.get_text() for item in drawn["s8"].figure.findobj(mpl.text.Text)]
    assert any("n = 5 images" in word for word in words)


def test_scores_are_printed_without_a_negative_zero():
    assert figures_maps.score_text(-0.001) == "0.00"
    assert figures_maps.score_text(float("nan")) == "no score"
    assert figures_maps.score_text(None) == ""


def test_s13_has_a_panel_per_variance(drawn):
    titles = [axis.get_title(loc="left") for axis in drawn["s13"].figure.axes]

    assert titles == ["noise variance 0.1", "noise variance 0.01"]


def test_towards_needs_a_comparison_that_names_a_sweep_of_the_study(whole):
    params = {"comparisons": {"denoising": [{"towards": "gradient", "sweep": "SG-M"}]}}
    study = StudyFiles(whole.reports, whole.results, "toy", params)

    found = {one.name: one for one in paper_figures.draw(study)}

    assert found["fig2"].reason == "the study has no sweep SG-M"
    assert found["s3"].figure is not None
    assert pd.notna(found["s3"].caption)
