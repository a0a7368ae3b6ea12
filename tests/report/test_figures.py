"""Figures say what the tables say, and are the same bytes every time."""

import colorsys
import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from steadymap.analysis import readings
from steadymap.analysis.plane import plane_verdicts
from steadymap.report.figures import budgets as figures_budgets
from steadymap.report.figures import maps, paper, parameters, sweeps, theme, training
from steadymap.report.figures import plane as figures_plane
from steadymap.store.tables import read_table
from synthetic_study import SWEEPS, Study, write_study


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    study = Study(n_images=4, sweeps=SWEEPS[:2], maps=False, data=False)
    reports, _ = write_study(tmp_path_factory.mktemp("study"), study)
    return {path.stem: read_table(path) for path in (reports / "tables").glob("*.csv")}


def _text(figure: Figure) -> str:
    return " | ".join(item.get_text() for item in figure.findobj(mpl.text.Text))


def _tall(
    values, *, sweep="A", hyperparameter="n_samples", reference="4", model="net", metric="ssim"
):
    """Settings rows with the mean falling from value to value."""
    rows = [
        {
            "sweep": sweep,
            "method": "m",
            "hyperparameter": hyperparameter,
            "model": model,
            "value": value,
        }
        | {"is_reference": value == reference, "metric": metric, "convention": "common"}
        | {
            "draws": "none",
            "n_images": 3,
            "mean": 0.9 - 0.1 * place,
            "ci_low": 0.3,
            "ci_high": 0.95,
        }
        | {"std": 0.1, "n_degenerate": 0, "n_inverted": 0}
        for place, value in enumerate(values)
    ]
    own = [row for row in rows if row["is_reference"]]
    raw = [row | {"metric": "dynamic_range", "convention": "raw"} for row in own]
    return pd.DataFrame([row for row in rows if not row["is_reference"]] + raw)


DRAWN = {
    "curves": lambda t: sweeps.sensitivity_curves(t["settings"]),
    "bars": lambda t: sweeps.hyperparameters_by_effect(t["sensitivity"], images=t["images"]),
    "heatmap": lambda t: sweeps.measures_heatmap(t["sensitivity"]),
    "measures": lambda t: sweeps.metric_agreement(t["settings"], sweep="SG-N"),
    "draws": lambda t: sweeps.draws_comparison(t["settings"], sweep="SG-N"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figure_states_n_and_models_and_leaves_no_global_state(name, tables):
    before = dict(mpl.rcParams)

    figure = DRAWN[name](tables)

    assert "n = 4 images" in _text(figure)
    assert {"googlenet", "googlenet-r"} <= set(_text(figure).replace("  ", " | ").split(" | "))
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_to_draw_is_said(name, tables):
    undefined = {
        key: frame.assign(mean=np.nan, ci_low=np.nan)
        for key, frame in tables.items()
        if "mean" in frame
    }
    empty = {key: frame.head(0) for key, frame in tables.items()}

    for inputs in (undefined, empty):
        assert "nothing to draw" in _text(DRAWN[name](inputs))


def test_saving_twice_gives_the_same_small_file_without_metadata(tmp_path, tables):
    for name in ("first", "second"):
        theme.save(DRAWN["curves"](tables), tmp_path / "new" / f"{name}.png")

    first, second = (tmp_path / "new" / f"{name}.png" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 300_000
    assert not any(chunk in first.read_bytes() for chunk in (b"tEXt", b"tIME", b"iTXt"))
    assert sorted(path.name for path in first.parent.iterdir()) == ["first.png", "second.png"]


def test_a_user_s_matplotlibrc_changes_nothing(tmp_path, tables):
    theme.save(DRAWN["curves"](tables), tmp_path / "plain.png")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20}):
        theme.save(DRAWN["curves"](tables), tmp_path / "odd.png")

    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "odd.png").read_bytes()


def test_large_pictures_are_reduced_below_the_limit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 96, 96, 3), np.uint8)
    smooth = noise // 16 * 16

    theme.save(maps.contact_sheet(list(smooth), [""] * 24), tmp_path / "sheet.png")

    with Image.open(tmp_path / "sheet.png") as image:
        assert image.mode == "P"


def test_robust_twin_has_the_hue_of_its_regular_model_but_lighter_and_dashed():
    styles = theme.model_styles(["net", "net-r", "other", "other-r"])

    for family in ("net", "other"):
        dark, light = (
            colorsys.rgb_to_hls(*to_rgb(styles[n].color)) for n in (family, f"{family}-r")
        )
        assert abs(dark[0] - light[0]) < 0.05
        assert light[1] > dark[1] + 0.2
        assert styles[family].linestyle != styles[f"{family}-r"].linestyle
    assert styles["net"].marker != styles["other"].marker


def test_colors_do_not_depend_on_which_models_a_figure_shows():
    models = ["net", "net-r", "other", "other-r"]
    alone = sweeps.sensitivity_curves(_tall(["2", "4"], model="other-r"), look=theme.Look(models))

    color = alone.axes[0].containers[0].lines[0].get_color()

    assert color == theme.model_styles(models)["other-r"].color


@pytest.mark.parametrize(
    ("values", "positions"),
    [
        (["2", "4", "6"], [2, 6]),
        (["1", "4", "100"], [0, 2]),
        (["black", "4", "gray"], [0, 1]),
    ],
    ids=["numbers", "logarithms", "words"],
)
def test_values_are_placed_as_numbers_their_logarithms_or_words(values, positions):
    axis = sweeps.sensitivity_curves(_tall(values)).axes[0]

    assert list(axis.containers[0].lines[0].get_xdata()) == positions
    assert "4" in [label.get_text() for label in axis.get_xticklabels()]


def test_words_and_seeds_are_not_joined_by_a_line():
    for rows in (_tall(["a", "4", "b"]), _tall(["1", "4", "7"], hyperparameter="seed")):
        axis = sweeps.sensitivity_curves(rows).axes[0]

        assert all(len(line.get_xdata()) <= 2 for line in axis.lines)


def test_many_values_keep_the_reference_among_the_labels():
    axis = sweeps.sensitivity_curves(_tall([str(n) for n in range(1, 40)])).axes[0]

    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert "4" in labels
    assert len(labels) <= 9


def test_hyperparameters_show_one_minus_the_mean_with_its_interval_worst_first(tables):
    rows = readings.headline_draws(tables["sensitivity"])
    rows = rows[(rows["metric"] == "ssim") & (rows["convention"] == "common")]

    axis = sweeps.hyperparameters_by_effect(tables["sensitivity"]).axes[0]

    order = [label.get_text().split("  ·  ")[1] for label in axis.get_yticklabels()]
    assert order == list(rows.groupby("sweep")["mean"].min().sort_values().index)
    drawn = [line.get_xdata() for line in axis.lines]
    for row in rows.itertuples():
        assert any(len(xs) == 1 and np.isclose(xs[0], 1 - row.mean) for xs in drawn)
        ends = [1 - row.ci_high, 1 - row.ci_low]
        assert any(len(xs) == 2 and np.allclose(sorted(xs), ends) for xs in drawn)


def test_an_inverted_sweep_is_worst_however_alike_ssim_calls_it(tmp_path):
    """SSIM of .98 beside Spearman of -.9: another map, first, with the hollow mark far right."""
    sweep = SWEEPS[1][0]
    study = Study(n_images=4, sweeps=SWEEPS[:2], maps=False, data=False, inverted=(sweep,))
    reports, _ = write_study(tmp_path, study)

    table = read_table(reports / "tables" / "sensitivity.csv")
    table.loc[table["sweep"] != sweep, "mean"] = 0.7
    figure = sweeps.hyperparameters_by_effect(table)

    axis = figure.axes[0]
    assert axis.get_yticklabels()[0].get_text().endswith(sweep)
    drawn = {round(float(line.get_xdata()[0]), 3) for line in axis.lines}
    assert {0.02, 1.9} <= drawn
    assert axis.get_xlim()[1] >= 1.9
    assert "another map" in _text(figure)
    assert readings.degree(0.02, 1.9) == 3 > readings.degree(0.02, float("nan")) == 0


def test_degrees_are_named_on_the_axis_where_it_reaches_them(tables):
    far = tables["sensitivity"].assign(mean=0.3, ci_low=0.2, ci_high=0.4)
    near = tables["sensitivity"].assign(mean=0.99, ci_low=0.98, ci_high=1.0)

    assert [readings.degree(moved) for moved in (-0.01, 0, 0.05, 0.19, 0.5, 1.4)] == [
        *(0, 0, 1, 1, 3, 3)
    ]
    assert "another map" in _text(sweeps.hyperparameters_by_effect(far))
    assert "another map" not in _text(sweeps.hyperparameters_by_effect(near))


def test_retraining_is_a_band_of_its_sweep_and_model_with_a_legend(tables):
    retraining = pd.DataFrame(
        [{"sweep": "SG-N", "model": "googlenet", "low": 0.2, "high": 0.35, "n_trainings": 4}]
    )

    figure = sweeps.hyperparameters_by_effect(tables["sensitivity"], retraining=retraining)

    bands = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert [(band.get_x(), band.get_width()) for band in bands] == [(0.2, pytest.approx(0.15))]
    assert "(4 trainings)" in _text(figure)
    assert "trainings" not in _text(sweeps.hyperparameters_by_effect(tables["sensitivity"]))


def _budget_curves():
    rows = []
    for sweep, counts in (("SG-N", (5, 20, 100)), ("LIME-N", (200, 400))):
        for model in ("net", "net-r"):
            for tau in (0.95, 0.99):
                for place, count in enumerate(counts):
                    share = 0.5 * place if (sweep, tau) == ("SG-N", 0.95) else 0.0
                    row = {"method": f"of {sweep}", "sweep": sweep, "model": model, "tau": tau}
                    row |= {"value": str(count), "share": share, "n_images": 8}
                    row |= {"low": share / 2, "high": (1 + share) / 2, "ssim": 0.3 + 0.1 * place}
                    rows.append(row)
    budgets = [
        {"sweep": "SG-N", "model": "net", "tau": 0.95, "budget": 100.0, "reached": True},
        {"sweep": "SG-N", "model": "net", "tau": 0.99, "budget": np.nan, "reached": False},
    ]
    return pd.DataFrame(rows), pd.DataFrame(budgets).assign(method="of SG-N")


def test_budget_has_a_panel_where_the_share_changes_and_words_where_it_does_not():
    curves, budgets = _budget_curves()

    figure = figures_budgets.stability_budget(curves, budgets)

    (axis,) = figure.axes
    assert axis.get_title(loc="left") == "of SG-N (SG-N)\nSSIM ≥ 0.95"
    assert [90, 90] in [list(line.get_ydata()) for line in axis.lines]
    assert len(axis.containers) == 2, "a line per model, reached or not"
    dots = axis.containers[0].lines[0]
    assert list(dots.get_ydata()) == [0, 50, 100]
    assert np.allclose(dots.get_xdata(), [5, 20, 100], rtol=0.05)
    (bars,) = axis.containers[0].lines[2]
    assert [list(end[:, 1]) for end in bars.get_segments()] == [[0, 50], [25, 75], [50, 100]]
    rings = [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axis.lines
        if line.get_markerfacecolor() == "none"
    ]
    assert rings == [(100, 100)]
    text = _text(figure)
    assert "Enough samples in 1 of 2 cases: 100 for of SG-N on net" in text.replace("\n", " ")
    assert "of SG-N (SG-N): no image reaches SSIM 0.99 by 100; the mean there is 0.50." in text
    assert "LIME-N): no image reaches SSIM 0.95 or 0.99 by 400; the mean there is 0.40." in text
    assert "n = 8 images" in text
    assert "No stability budget" in _text(figures_budgets.stability_budget(curves.head(0), budgets))


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "no image reaches SSIM 0.95 or 0.99 by 100"), (1.0, "SSIM 0.95 or 0.99 from 5 on")],
)
def test_budgets_that_are_all_flat_are_words_alone(share, words):
    curves, budgets = _budget_curves()
    flat = curves[curves["sweep"] == "SG-N"].assign(share=share)

    figure = figures_budgets.stability_budget(flat, budgets.assign(reached=False))

    assert not figure.axes
    assert words in _text(figure)
    assert "No count is enough: 2 of 2 cases" in _text(figure)


@pytest.mark.parametrize(
    ("rule", "draws"),
    [(readings.headline_draws, "independent"), (readings.nested_draws, "nested")],
)
def test_headlines_take_independent_draws_and_the_papers_claims_nested_ones(rule, draws):
    frame = pd.DataFrame(
        {
            "sweep": ["N", "N", "seed", "patch"],
            "draws": ["nested", "independent", "independent", "none"],
            "metric": "ssim",
        }
    )

    kept = rule(frame)

    assert list(zip(kept["sweep"], kept["draws"], strict=True)) == [
        ("N", draws),
        ("seed", "independent"),
        ("patch", "none"),
    ]


def test_a_map_by_itself_is_scored_once_whatever_its_sweep_s_draws():
    frame = pd.DataFrame(
        {
            "sweep": "N",
            "value": ["2", "4", "2", "4"],
            "draws": ["nested", "nested", "independent", "independent"],
            "metric": ["dynamic_range", "iou", "dynamic_range", "ssim"],
        }
    )

    assert readings.headline_draws(frame).index.tolist() == [0, 1, 3]


def test_other_metrics_of_the_table_are_drawn_behind_the_known_ones():
    custom = _tall(["2", "4"], metric="mine").replace({"convention": {"common": "own"}})
    rows = pd.concat([custom, _tall(["2", "4"])])

    titles = [axis.get_title(loc="left") for axis in sweeps.metric_agreement(rows, sweep="A").axes]

    assert titles == ["SSIM (common)", "mine"]


def test_heat_is_white_at_zero_scaled_by_the_largest_absolute_value_and_gray_where_undefined():
    colors = maps.heat(np.array([[-2.0, 0.0], [4.0, np.nan]]))

    assert tuple(colors[0, 1]) == (255, 255, 255)
    assert np.array_equal(colors[1, 0], np.round(255 * np.array(theme.HEAT(1.0)[:3])))
    assert colors[0, 0, 2] > colors[0, 0, 0]
    assert tuple(colors[1, 1]) == (185, 189, 194)
    assert np.all(maps.heat(np.zeros((2, 2))) == 255)


def test_picture_rows_frame_the_reference_and_mark_the_lowest_and_degenerate_maps():
    heatmap = np.eye(8)
    scores = {
        "5": maps.Scored(0.71),
        "9": maps.Scored(),
        "13": maps.Scored(0.42, degenerate=True),
        "17": maps.Scored(float("nan")),
    }
    image = maps.Tile(np.zeros((8, 8, 3), np.uint8), box=(2, 2, 6, 6))
    rows = [
        maps.scored_row(name, above, dict.fromkeys(scores, heatmap), scores, "9")
        for name, above in (("net", image), ("net-r", None))
    ]

    figure = maps.picture_rows(rows, hyperparameter="patch_size", title="T", note="the rule")

    texts = {item.get_text(): item for item in figure.findobj(mpl.text.Text)}
    assert {"patch_size =", "0.71", "reference", "0.42 †", "no score", "net-r", "T"} <= set(texts)
    assert "† degenerate map" in _text(figure)
    assert "the rule" in texts
    assert texts["0.42 †"].get_weight() == "bold"
    assert texts["0.71"].get_weight() == "normal"
    widths = [p.get_linewidth() for p in figure.findobj(Rectangle) if not p.get_fill()]
    # Two rows, each with one framed reference and three others; an image; a box, in two strokes.
    assert sorted(widths).count(2.2) == 2
    assert len(widths) == 2 * 4 + 1 + 2


@pytest.mark.parametrize("box", [None, (-1, -1, -1, -1), (3, 3, 3, 3)])
def test_unknown_boxes_are_not_outlined(box):
    image = np.zeros((8, 8, 3), np.uint8)
    tiles = [maps.Tile(image, box=box), maps.Tile(np.eye(8), "5", "0.50")]

    figure = maps.picture_rows([maps.TileRow("net", tiles)])

    assert len([p for p in figure.findobj(Rectangle) if not p.get_fill()]) == 2
    assert maps.thumbnail(image, box=box) == maps.thumbnail(image)


def test_training_curves_leave_out_what_was_not_measured():
    curve = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "val_accuracy": [0.5, 0.8]})

    figure = training.training_curves({"net": curve.assign(val_robust_accuracy=np.nan)})

    assert len(figure.axes) == 2
    assert "%" in figure.axes[1].get_title(loc="left")
    assert list(figure.axes[1].lines[0].get_ydata()) == [50, 80]
    assert "not trained here" in _text(training.training_curves({}))


def test_contact_sheet_labels_its_images():
    images = np.zeros((3, 8, 8, 3), np.uint8)

    figure = maps.contact_sheet(images, ["disc", "", "ring"], boxes=[(1, 1, 4, 4), None, None])

    assert {"disc", "ring"} <= set(_text(figure).split(" | "))
    assert len(figure.findobj(mpl.image.AxesImage)) == 3
    assert "nothing to draw" in _text(maps.contact_sheet([], []))


def test_thumbnail_is_small_outlined_and_never_enlarged():
    image = np.zeros((200, 100, 3), np.uint8)
    with Image.open(io.BytesIO(maps.thumbnail(image, box=(20, 20, 80, 80), size=50))) as shown:
        assert shown.size == (25, 50)
        assert np.asarray(shown).max() > 100
    with Image.open(io.BytesIO(maps.thumbnail(image[:20, :20]))) as shown:
        assert shown.size == (20, 20)


def test_accuracy_is_no_measure_of_similarity():
    rows = pd.concat([_tall(["2", "4"], metric="insertion"), _tall(["2", "4"])])

    titles = [axis.get_title(loc="left") for axis in sweeps.metric_agreement(rows, sweep="A").axes]

    assert titles == ["SSIM (common)"]
    alone = pd.DataFrame({"sweep": ["A"], "draws": ["none"], "metric": ["iou"]})
    seeds = pd.DataFrame({"sweep": ["A"], "draws": ["independent"], "metric": ["ssim"]})
    assert len(readings.headline_draws(pd.concat([alone, seeds]))) == 2


def test_coarse_colors_keep_white_at_zero_and_the_ends():
    values = np.linspace(-1, 1, 1001)[None]

    colors = maps.heat(values, step=theme.COARSE)[0]

    assert len(np.unique(colors, axis=0)) <= 65
    assert tuple(colors[500]) == (255, 255, 255)
    assert np.array_equal(colors[[0, -1]], maps.heat(values)[0][[0, -1]])
    halved = maps.heat(np.array([[0.5, 0.0]]), 1.0)
    assert np.array_equal(halved[0, 0], maps.heat(np.array([[0.5, 1.0]]))[0, 0])


def test_tiles_carry_their_words_frames_and_scales():
    tile = maps.Tile(np.full((4, 4), 0.5), "above", "below", scale=1.0, framed=True)
    image = maps.Tile(np.zeros((4, 4, 3), np.uint8), box=(1, 1, 3, 3))

    figure = maps.tile_rows(
        [maps.TileRow("net", [image, tile]), maps.TileRow("net-r", [None, tile])],
        title="T",
        notes=["first", "second"],
        key="low, high",
    )

    words = _text(figure).split(" | ")
    assert {"net", "net-r", "T", "first", "second", "low", "high", "above", "below"} <= set(words)
    frames = [p.get_linewidth() for p in figure.findobj(Rectangle) if not p.get_fill()]
    assert sorted(frames).count(2.2) == 2
    drawn = [np.asarray(i.get_array()) for i in figure.findobj(mpl.image.AxesImage)]
    half = maps.heat(np.array([[0.5]]), 1.0, step=theme.COARSE)[0, 0]
    assert sum(a.shape == (4, 4, 3) and np.all(a == half) for a in drawn) == 2
    assert "nothing to draw" in _text(maps.tile_rows([maps.TileRow("net", [])]))


def _means(model, metric, mean, **more):
    row = {"model": model, "metric": metric, "convention": "common", "n_images": 3}
    return row | {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1} | more


def test_similarity_bars_are_as_high_as_the_means():
    rows = pd.DataFrame(
        [
            _means(model, metric, 0.2 + 0.1 * place + 0.3 * (model == "net-r"))
            for place, metric in enumerate(("spearman", "hog_pearson", "ssim"))
            for model in ("net", "net-r")
        ]
    )

    figure = maps.similarity_bars({"panel": rows, "empty": rows.assign(mean=np.nan)})

    (axis,) = figure.axes
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["Spearman", "HOG-Pearson", "SSIM\n(common)"]
    heights = sorted(bar.get_height() for bar in axis.patches)
    assert np.allclose(heights, sorted(rows["mean"]))
    ends = [list(line.get_ydata()) for line in axis.lines if line.get_linewidth() == 1.6]
    assert np.allclose(sorted(ends), sorted(rows[["ci_low", "ci_high"]].to_numpy().tolist()))
    assert "n = 3 images" in _text(figure)
    assert "nothing to draw" in _text(maps.similarity_bars({}))


def test_towards_curves_run_through_the_means_with_guided_backprop_behind():
    def line(pairing, start):
        named = {"other": "net-r", "role": "twin", "pairing": pairing}
        values = [("gradient", "0"), ("smoothgrad", "5"), ("smoothgrad", "100")]
        swept = [
            _means("net", "ssim", start + 0.1 * i, method=method, value=value, **named)
            for i, (method, value) in enumerate(values)
        ]
        backprop = _means("net", "ssim", start, method="guided_backprop", value="", **named)
        return [*swept, backprop]

    # Out of order, as words sort.
    rows = pd.DataFrame(line("same", 0.4) + line("mismatched", 0.1)).iloc[::-1]

    figure = paper.towards_curves(rows)

    (axis,) = figure.axes
    drawn = [(list(c.lines[0].get_xdata()), list(c.lines[0].get_ydata())) for c in axis.containers]
    assert ([0, 1, 2], pytest.approx([0.4, 0.5, 0.6])) in drawn
    assert ([0, 1, 2], pytest.approx([0.1, 0.2, 0.3])) in drawn
    assert ([3.0], pytest.approx([0.4])) in drawn
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "5", "100", "GB"]
    assert "its twin's map of another image" in _text(figure)
    assert "the other robust model's map" not in _text(figure)
    assert "nothing to draw" in _text(paper.towards_curves(rows.assign(mean=np.nan)))


def test_level_and_spread_draws_table_s1():
    rows = pd.DataFrame(
        [
            {"row": row, "model": model, "metric": metric, "n_images": 4}
            | {"mean": 0.3 + 0.1 * i + 0.05 * j, "std_rms": 0.02 + 0.01 * i + 0.005 * j}
            | {"mean_low": 0.1, "mean_high": 0.9, "rms_low": 0.001, "rms_high": 0.2}
            for metric in ("ssim", "deletion")
            for i, row in enumerate(("SG", "SP-S"))
            for j, model in enumerate(("net", "net-r"))
        ]
    )

    similarity, deletion = paper.level_and_spread(rows).axes

    own = rows[rows["metric"] == "ssim"]
    assert np.allclose(sorted(bar.get_width() for bar in similarity.patches), sorted(own["mean"]))
    assert np.allclose(sorted(b.get_width() for b in deletion.patches), sorted(own["std_rms"]))
    rings = np.concatenate([a.get_xdata() for a in deletion.lines if a.get_marker() == "o"])
    assert np.allclose(sorted(rings), sorted(own["mean"]))
    assert [label.get_text() for label in similarity.get_yticklabels()] == ["SG", "SP-S"]
    assert "lower is better" in deletion.get_title(loc="left")
    assert "nothing to draw" in _text(paper.level_and_spread(rows.head(0)))


def _spreads(*, seed_low=0.0002):
    return pd.DataFrame(
        [
            {
                "sweep": sweep,
                "method": method,
                "hyperparameter": hyperparameter,
                "metric": "insertion",
            }
            | {"std": std, "std_low": std / 2, "std_high": std * 2, "n_images": 4}
            | {"std_scaled": scaled, "scaled_high": scaled * 2}
            | {"scaled_low": seed_low if hyperparameter == "seed" else scaled / 2}
            for sweep, method, hyperparameter, std, scaled in (
                ("MP-seed", "mp", "seed", 0.01, 0.0005),
                ("MP-blur", "mp", "blur_radius", 0.02, 0.019),
                ("SP-S", "sp", "patch_size", 0.0, 0.0),
            )
        ]
    )


def test_global_spread_has_a_bar_at_both_numbers_of_images_and_the_ratio_that_is_judged():
    figure = paper.global_spread(_spreads())

    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    ends = [bar.get_x() + bar.get_width() for bar in axis.patches]
    assert np.allclose(sorted(ends), [0.0005, 0.01, 0.019, 0.02])
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert "sp: patch_size  ·  SP-S" in labels
    ratios = [text for text in axis.texts if "→" in text.get_text()]
    assert [text.get_text() for text in ratios] == ["2 → 38"]
    assert labels[round(ratios[0].xy[1])].endswith("MP-blur")
    text = _text(figure).replace("\n", " ")
    assert "blur_radius of mp moves insertion 38 times as much as MP-seed" in text
    assert "MP-blur ÷ MP-seed" in text
    empty = _spreads().assign(std=0.0, std_scaled=0.0)
    assert "nothing to draw" in _text(paper.global_spread(empty))


def test_a_ratio_over_a_spread_that_may_be_0_is_not_formed():
    figure = paper.global_spread(_spreads(seed_low=0.0))

    assert "2 → –" in [text.get_text() for text in figure.axes[0].texts]
    assert "No ratio of two spreads can be formed" in _text(figure)


def test_loss_curves_draw_each_term_and_mark_convergence():
    terms = {"total": np.array([3.0, 2.0, 1.0]), "L1": np.array([1.0, 0.5, 0.2])}

    figure = training.loss_curves(
        {"net": terms, "net-r": terms}, converged={"net": 1.0, "net-r": np.nan}
    )

    first, second = figure.axes
    assert list(first.lines[0].get_ydata()) == [3, 2, 1]
    assert list(first.lines[1].get_ydata()) == [1, 0.5, 0.2]
    assert (len(first.lines), len(second.lines)) == (3, 2)
    assert {"total", "L1"} <= set(_text(figure).split(" | "))
    assert "nothing to draw" in _text(training.loss_curves({}))


def test_a_tighter_limit_is_kept_by_fewer_colors(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
    figure = maps.contact_sheet(list(noise), [""] * 6)

    theme.save(figure, tmp_path / "free.png")
    theme.save(figure, tmp_path / "tight.png", max_bytes=10_000)

    sizes = [(tmp_path / f"{name}.png").stat().st_size for name in ("free", "tight")]
    assert sizes[1] < sizes[0]
    with Image.open(tmp_path / "tight.png") as image:
        assert len(image.getcolors()) <= 64


@pytest.fixture(scope="module")
def randomized(tmp_path_factory):
    study = Study(
        n_images=4, sweeps=SWEEPS, without_sweeps=(), maps=False, data=False, randomization=True
    )
    reports, _ = write_study(tmp_path_factory.mktemp("randomized"), study)
    return {path.stem: read_table(path) for path in (reports / "tables").glob("*.csv")}


def _common(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["metric"] == "ssim") & (frame["convention"] == "common")]


IPR_DRAWN = {
    "bars": lambda t: parameters.parameter_bars(_common(t["ipr"])),
    "curves": lambda t: parameters.unit_curves(_common(t["ipr_units"])),
    "scatter": lambda t: parameters.function_scatter(_common(t["ipr_units"])),
    "plane": lambda t: figures_plane.sensitivity_plane(t["plane"]),
}


@pytest.mark.parametrize("name", IPR_DRAWN)
def test_ipr_figures_state_n_and_models_or_that_there_is_nothing(name, randomized):
    before = dict(mpl.rcParams)

    text = _text(IPR_DRAWN[name](randomized))

    assert "n = 4 images" in text
    assert name == "plane" or "5 units, 2 weight draws" in text
    assert {"googlenet", "googlenet-r"} <= set(text.replace(": ", " | ").split(" | "))
    assert dict(mpl.rcParams) == before
    empty = {key: frame.head(0) for key, frame in randomized.items()}
    undefined = {
        key: frame.assign(**dict.fromkeys({"S_same", "y"} & set(frame), np.nan))
        for key, frame in randomized.items()
    }
    for inputs in (empty, undefined):
        assert "nothing to draw" in _text(IPR_DRAWN[name](inputs))


def test_parameter_bars_have_the_table_s_bars_intervals_floors_and_threshold(randomized):
    rows = _common(randomized["ipr"])

    left, right = parameters.parameter_bars(rows).axes

    for axis, column, ends in (
        (left, "S_same", ["same_low", "same_high"]),
        (right, "excess", ["excess_low", "excess_high"]),
    ):
        widths = [bar.get_width() for bar in axis.patches]
        assert np.allclose(sorted(widths), sorted(rows[column]))
        spans = [tuple(line.get_xdata()) for line in axis.lines if line.get_linewidth() == 1.6]
        assert np.allclose(sorted(spans), sorted(rows[ends].itertuples(index=False, name=None)))
        assert [0.01, 0.01] in [list(line.get_xdata()) for line in axis.lines]
    floors = np.concatenate([a.get_xdata() for a in left.lines if a.get_marker() == "D"])
    assert np.allclose(sorted(floors), sorted(rows["floor"]))
    means = rows.groupby("method")["S_same"].mean().sort_values(ascending=False)
    assert [label.get_text() for label in left.get_yticklabels()] == list(means.index)


def test_what_rests_on_blank_maps_is_hollow_in_bars_and_crossed_in_the_plane(randomized):
    rows, plane = _common(randomized["ipr"]), randomized["plane"]

    bars = parameters.parameter_bars(rows.assign(blank=rows["method"] == "lime"))
    marked = figures_plane.sensitivity_plane(plane.assign(blank=plane["method"] == "lime"))

    lime = rows[rows["method"] == "lime"]["S_same"]
    hollow = [bar for bar in bars.axes[0].patches if bar.get_facecolor()[:3] == (1, 1, 1)]
    assert np.allclose(sorted(bar.get_width() for bar in hollow), sorted(lime))
    assert "mostly blank maps" in _legend_text(bars)
    places = [(model, metric) for model in ("googlenet", "googlenet-r") for metric in _PLANES]
    for axis, (model, metric) in zip(marked.axes, places, strict=True):
        own = plane[(plane["method"] == "lime") & (plane["metric"] == metric)]
        own = own[own["model"] == model]
        crosses = [line.get_ydata()[0] for line in axis.lines if line.get_marker() == "x"]
        assert np.allclose(sorted(crosses), sorted(own["y"]))
    assert "mostly blank maps" in _legend_text(marked)
    for figure in (parameters.parameter_bars(rows), figures_plane.sensitivity_plane(plane)):
        assert "blank" not in _legend_text(figure)


_PLANES = ("ssim", "spearman")


def _legend_text(figure) -> str:
    return " | ".join(text.get_text() for one in figure.legends for text in one.get_texts())


def test_an_unknown_excess_has_no_bar(randomized):
    rows = _common(randomized["ipr"])
    rows = rows.assign(excess=rows["excess"].where(rows["method"] != "lime"))

    left, right = parameters.parameter_bars(rows).axes

    assert len(left.patches) == len(rows)
    assert len(right.patches) == len(rows) - 2


def test_unit_curves_run_from_the_input_to_the_logits_with_their_intervals(randomized):
    rows = _common(randomized["ipr_units"])

    figure = parameters.unit_curves(rows.sample(frac=1, random_state=0))

    axes = figure.axes
    means = rows.groupby("method")["S_same"].mean().sort_values(ascending=False)
    assert [axis.get_ylabel() for axis in axes] == list(means.index)
    own = rows[(rows["method"] == "lime") & (rows["model"] == "googlenet")]
    own = own.sort_values("unit_index")
    panel = axes[list(means.index).index("lime")]
    assert np.allclose(panel.lines[0].get_ydata(), own["S_same"])
    assert list(panel.lines[0].get_xdata()) == [0, 1, 2, 3, 4]
    band = panel.collections[0].get_paths()[0].vertices
    for low, high, place in zip(own["low"], own["high"], range(5), strict=True):
        ends = band[band[:, 0] == place][:, 1]
        assert np.allclose([ends.min(), ends.max()], [low, high])
    assert [label.get_text() for label in axes[-1].get_xticklabels()] == list(own["unit"])


def test_networks_of_different_units_have_a_column_with_their_names(randomized):
    rows = _common(randomized["ipr_units"])
    other = rows["model"] == "googlenet-r"
    rows = rows.assign(unit=rows["unit"].where(~other, "layer" + rows["unit_index"].astype(str)))
    rows = rows[~other | (rows["unit_index"] < 3)]

    axes = parameters.unit_curves(rows).axes

    assert len(axes) == 2 * rows["method"].nunique()
    assert [axis.get_title(loc="left") for axis in axes[:2]] == ["googlenet", "googlenet-r"]
    names = [[label.get_text() for label in axis.get_xticklabels()] for axis in axes[-2:]]
    assert names[1] == ["layer0", "layer1", "layer2"]
    assert len(names[0]) == 5


@pytest.mark.parametrize(("sign", "words"), [(-1, "less"), (1, "more")])
def test_title_of_unit_curves_says_how_many_follow_the_depth(randomized, sign, words):
    rows = _common(randomized["ipr_units"])
    n = len(rows[["method", "model"]].drop_duplicates())

    figure = parameters.unit_curves(rows.assign(S_same=0.5 + sign * 0.05 * rows["unit_index"]))

    title = _text(figure).replace("\n", " ")
    assert f"Maps move {words}, the deeper the unit that the model loses: {n} of {n} pairs" in title


def test_function_scatter_sets_s_against_the_drop_of_the_target(randomized):
    rows = _common(randomized["ipr_units"])

    axes = parameters.function_scatter(rows).axes

    panels = {axis.get_title(loc="left"): axis for axis in axes}
    own = rows[(rows["method"] == "gradient") & (rows["model"] == "googlenet")]
    dots = panels["gradient"].lines[0].get_xydata()
    assert np.allclose(dots, np.column_stack([-own["target_change"], own["S_same"]]))
    unknown = parameters.function_scatter(rows.assign(target_change=np.nan))
    assert "No change of the model's output is known" in _text(unknown)


def _points(axis) -> list[tuple[float, float, str, float]]:
    """Place, face and size of each point of the plane."""
    return sorted(
        (
            *(float(line.get_xdata()[0]), float(line.get_ydata()[0])),
            *(line.get_markerfacecolor(), line.get_markersize()),
        )
        for line in axis.lines
        if len(line.get_xdata()) == 1 and line.get_marker() == "o"
    )


def test_plane_has_each_row_in_its_model_s_panel_the_worst_largest(randomized):
    table = randomized["plane"]
    models = ["googlenet", "googlenet-r"]
    styles = theme.model_styles(models)

    axes = figures_plane.sensitivity_plane(table).axes

    places = [(model, metric) for model in models for metric in _PLANES]
    for axis, (model, metric) in zip(axes, places, strict=True):
        label = {"ssim": "SSIM (common)", "spearman": "Spearman"}[metric]
        assert axis.get_title(loc="left") == f"{model}: {label}"
        rows = table[(table["metric"] == metric) & (table["model"] == model)]
        wanted = sorted(
            (row.x, row.y, styles[model].color if row.ranked else "white", row.filled)
            for row in rows.itertuples()
        )
        found = _points(axis)
        assert np.allclose([p[:2] for p in found], [p[:2] for p in wanted])
        assert [p[2] for p in found] == [p[2] for p in wanted]
        assert [p[3] > 6 for p in found] == [p[3] for p in wanted]
        # One scale, and the diagonal.
        assert axis.get_xlim() == axes[0].get_xlim()
        limit = axis.get_xlim()[1]
        assert axis.get_ylim()[1] == limit
        assert [0, limit] in [list(line.get_xdata()) for line in axis.lines]
        assert {text.get_text() for text in axis.texts} == {
            str(number) for number in range(1, table["method"].nunique() + 1)
        }
    key = [text.get_text().split(maxsplit=1)[1] for text in axes[0].figure.legends[1].get_texts()]
    heights = table.groupby("method")["y"].mean().sort_values(ascending=False)
    assert [words.split(" (")[0] for words in key] == list(heights.index)
    assert {"smoothgrad (SG-N)", "gradient"} <= set(key)


@pytest.mark.parametrize("n_models", [1, 6])
@pytest.mark.parametrize("n_methods", [1, 10, 16])
def test_every_method_of_a_crowded_plane_has_its_number_without_overlap(n_methods, n_models):
    random = np.random.default_rng(3)
    rows = [
        {"method": f"method-{method}", "sweep": f"S{method}" if method % 3 else ""}
        | {"model": f"net{model}", "metric": metric, "convention": "common", "n_images": 8}
        | {"n_variants": 3 * (method % 3 > 0), "x": (method % 3 > 0) * random.uniform(0, 1.5)}
        | {"y": random.uniform(0.60, 0.65)}
        | dict.fromkeys(("x_low", "x_high", "y_low", "y_high"), np.nan)
        | {"difference_low": 0.1, "difference_high": 0.2}
        | {"filled": method % 3 > 0, "ranked": method % 3 > 0}
        for method in range(n_methods)
        for model in range(n_models)
        for metric in _PLANES
    ]

    figure = figures_plane.sensitivity_plane(pd.DataFrame(rows))

    figure.draw_without_rendering()
    assert len(figure.axes) == 2 * n_models
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        assert len(boxes) == n_methods
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(figure.bbox.contains(*end) for box in boxes for end in (box.min, box.max))


def test_title_of_the_plane_counts_cases_whose_interval_excludes_0(randomized):
    table = randomized["plane"].assign(difference_low=-0.1, difference_high=0.1)
    known = table["filled"].astype(bool)
    n = int((known & (table["metric"] == "ssim")).sum())
    more = known & (table["method"] == "lime")
    table.loc[table["method"] == "lime", "difference_low"] = 0.05
    table.loc[table["method"] == "smoothgrad", "difference_high"] = -0.05
    table = table.assign(verdict=plane_verdicts(table))

    title = _text(figures_plane.sensitivity_plane(table)).replace("\n", " ")

    n_lime = int((more & (table["metric"] == "ssim")).sum())
    assert f"in {n_lime} of {n} cases by SSIM and {n_lime} of {n} cases by Spearman" in title
    assert "less by both for smoothgrad" in title
    assert "disagree" not in title


def test_a_plane_whose_measures_disagree_calls_no_method_more_sensitive(randomized):
    """Above the diagonal by SSIM, below it by rank correlation: undecided, and marked."""
    table = randomized["plane"].assign(difference_low=-0.2, difference_high=-0.1)
    turned = table["metric"] == "ssim"
    table.loc[turned, ["difference_low", "difference_high"]] = 0.1, 0.2
    table = table.assign(verdict=plane_verdicts(table))

    figure = figures_plane.sensitivity_plane(table)

    known = table["filled"].astype(bool)
    title = _text(figure).replace("\n", " ")
    assert "less by both" not in title
    assert f"undecided in {int((known & turned).sum())}, where the two disagree" in title
    squares = [line for a in figure.axes for line in a.lines if line.get_marker() == "s"]
    assert len(squares) == known.sum()
    assert "SSIM and Spearman disagree" in _legend_text(figure)


def test_fewer_levels_make_fewer_colors_and_smaller_files(tmp_path):
    heatmap = np.random.default_rng(0).normal(size=(64, 64))
    sizes = {}
    for levels in (8, 32):
        rows = [maps.TileRow("two\nlines", [maps.Tile(heatmap)])]
        theme.save(maps.tile_rows(rows, levels=levels), tmp_path / f"{levels}.png")
        sizes[levels] = (tmp_path / f"{levels}.png").stat().st_size

    assert sizes[8] < 0.8 * sizes[32]
    assert len(np.unique(maps.heat(heatmap, step=128 // 8).reshape(-1, 3), axis=0)) <= 17
