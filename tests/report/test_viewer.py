"""The viewer shows the maps that were computed, with their scores, in a browser without network."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from steadymap.report import document, viewer
from steadymap.report.figures import maps as figures_maps
from steadymap.report.study import Study as StudyFiles
from steadymap.store.atomic import read_json, write_json
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table, write_table
from synthetic_study import SWEEPS, Study, write_study

SMALL = Study(n_images=5, size=16, sweeps=(SWEEPS[0], SWEEPS[2]))
CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the path: the viewer's script is not run"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small study with maps of two sweeps and of a method without a hyperparameter."""
    reports, results = write_study(tmp_path_factory.mktemp("study"), SMALL)
    folder = results / "evaluation_set"
    ids = read_table(folder / "evaluation_set.csv")["image_id"]
    targets = [
        pd.DataFrame({"image_id": ids, "model": model, "prediction": prediction, "target": 0})
        for model, prediction in (("googlenet", 1), ("googlenet-r", 3))
    ]
    write_table(pd.concat(targets), folder / "targets.csv")
    return StudyFiles(reports, results, "toy", {})


@pytest.fixture(scope="module")
def shown(study):
    return viewer.view(study)


def _data(live) -> dict:
    text = re.search(r'id="viewer-data">(.*?)</script>', live.markup, re.DOTALL)[1]
    return json.loads(text)


def _sheet(live, name) -> np.ndarray:
    source = re.search(rf'id="{name}">data:image/png;base64,([^<]+)<', live.markup)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))


def test_sheets_hold_the_maps_to_half_a_level(study, shown):
    data = _data(shown)
    sheet = _sheet(shown, "viewer-SP-L-googlenet-r")
    (sweep,) = [one for one in data["sweeps"] if one["name"] == "SP-L"]
    maps = Maps(study.results / "maps" / "sliding_patch")
    side = data["side"]

    assert sheet.shape == (5 * side, 5 * side)
    for column, value in enumerate(sweep["values"]):
        setting = next(s for s in maps.settings if str(s["patch_size"]) == value)
        for line, about in enumerate(data["images"]):
            found = sheet[line * side : (line + 1) * side, column * side : (column + 1) * side]
            heatmap = maps.read("googlenet-r", setting)[maps.image_ids.index(about["id"])]
            largest = np.abs(heatmap).max()
            assert np.abs((found - 128.0) / 127 - heatmap / largest).max() <= 0.5 / 127 + 1e-6
            amplitude = sweep["models"]["googlenet-r"]["amplitude"][column][line]
            assert amplitude == pytest.approx(largest, rel=1e-3)


def test_scores_and_rankings_are_the_tables_own(study, shown):
    data = _data(shown)
    scores = read_table(study.results / "scores.parquet")
    scores = scores[(scores["metric"] == "ssim") & (scores["convention"] == "common")]
    own = scores[(scores["sweep"] == "SP-L") & (scores["model"] == "googlenet")]
    (sweep,) = [one for one in data["sweeps"] if one["name"] == "SP-L"]
    made, ids = sweep["models"]["googlenet"], [about["id"] for about in data["images"]]

    for row in own.itertuples():
        at = sweep["values"].index(row.value), ids.index(row.image_id)
        assert made["scores"]["ssim"][at[0]][at[1]] == pytest.approx(row.score, abs=5e-5)
    assert made["scores"]["ssim"][sweep["reference"]] == [None] * 5
    means = own.groupby("image_id")["score"].mean()
    assert [ids[place] for place in made["ranking"]] == list(means.sort_values().index)
    assert data["first"][1] == study.headline["sweep"].iloc[0]
    assert [one["name"] for one in data["sweeps"]][-1] == "gradient"


def test_predictions_are_named_and_inverted_pairs_marked(study, shown, tmp_path):
    data = _data(shown)
    turned = replace(SMALL, inverted=("SP-L",))
    marked = _data(viewer.view(StudyFiles(*write_study(tmp_path, turned), "toy", {})))

    assert data["predicted"] == {"googlenet": ["ring"] * 5, "googlenet-r": ["heart"] * 5}
    for one, flags in ((data, 0), (marked, 1)):
        (sweep,) = [found for found in one["sweeps"] if found["name"] == "SP-L"]
        expected = [[flags] * 5 for _ in sweep["values"]]
        # The reference is no pair.
        expected[sweep["reference"]] = [0] * 5
        assert sweep["models"]["googlenet"]["inverted"] == expected
    assert marked["predicted"] == {}


def test_levels_have_white_at_zero_and_a_place_for_what_is_not_finite():
    stack = np.array([[[0.0, -2.0], [2.0, np.nan]], [[0.0, 0.0], [0.0, 0.0]]])

    levels, largest = viewer._levels(stack)

    assert levels.tolist() == [[[128, 1], [255, 0]], [[128, 128], [128, 128]]]
    assert largest.tolist() == [2.0, 0.0]
    colors = viewer._colors()
    assert colors[128].tolist() == [255, 255, 255]
    assert colors[[1, 255]].tolist() == figures_maps.heat(np.array([[-1.0, 1.0]]))[0].tolist()


def test_large_maps_are_averaged_down():
    stack = np.arange(225.0 * 225).reshape(1, 1, 225, 225)

    small = viewer._smaller(stack)

    assert small.shape == (1, 1, 75, 75)
    assert small[0, 0, 3, 5] == pytest.approx(stack[0, 0, 9:12, 15:18].mean())
    assert viewer._smaller(stack[..., :100, :100]) is not None
    assert viewer._smaller(stack[..., :100, :100]).shape[-1] == 100
    # A short edge repeats what is there.
    assert viewer._smaller(np.ones((113, 113))).min() == 1


def test_without_room_images_are_left_out_evenly_and_named(study, shown):
    whole = sum(len(uri) for uri in re.findall(r"data:image/png[^<]+", shown.markup))

    live = viewer.view(study, max_bytes=whole // 2)

    data = _data(live)
    ranking = list(viewer._ranking(study))
    kept = [about["id"] for about in data["images"]]
    assert 1 < len(kept) < 5
    assert (kept[0], kept[-1]) == (ranking[0], ranking[-1])
    assert sum(len(uri) for uri in re.findall(r"data:image/png[^<]+", live.markup)) <= whole // 2
    left_out = ", ".join(name for name in ranking if name not in kept)
    assert f"left out: {left_out}." in live.markup
    assert "left out" not in shown.markup


def test_maps_of_the_embedded_study_fit_its_page(tmp_path):
    # 47 settings of 16 images at 64 px on two models; heavy tails, as maps of gradients have.
    noise = np.random.default_rng(0).standard_t(3, size=(47, 16, 64, 64)).astype(np.float32)
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "net.npy", noise)
    index = {"method": "smoothgrad", "models": ["net"], "image_ids": [str(n) for n in range(16)]}
    settings = [{"hyperparameters": {"n": n}, "task_ids": {}} for n in range(47)]
    write_json(index | {"settings": settings}, tmp_path / "maps" / "index.json")
    values = [str(n) for n in range(47)]
    tasks = {("net", str(n)): {"hyperparameters": json.dumps({"n": n})} for n in range(47)}
    about = ("N", "N", "smoothgrad", "n", values, None)
    sweep = viewer._Sweep(*about, tasks, Maps(tmp_path / "maps"), ["net"])
    blank = StudyFiles(tmp_path, tmp_path, "toy", {})
    blank.__dict__["shows_photos"] = False

    sheets = viewer._sheets(blank, [sweep], index["image_ids"])

    assert 2 * sum(map(len, sheets.values())) <= viewer.MAX_BYTES < 15_000_000 / 2


@pytest.mark.parametrize(
    ("kind", "classes", "may"),
    [
        ("embedded", ("disc", "ring"), True),
        ("imagefolder", ("cat", "n02"), True),
        ("imagefolder", ("n01440764", "n02102040"), False),
        ("scraped", ("disc", "ring"), False),
    ],
    ids=["generated", "own-folder", "imagenet", "unknown"],
)
def test_photographs_are_shown_where_they_may_be(kind, classes, may, tmp_path):
    tiny = replace(SMALL, sweeps=(SWEEPS[2],), classes=classes, models=("net",), n_images=2)
    reports, results = write_study(tmp_path, tiny)
    path = results / "data" / "dataset.json"
    write_json(read_json(path) | {"kind": kind}, path)
    study = StudyFiles(reports, results, "toy", {})

    live = viewer.view(study)

    assert bool(study.pixels) is may
    assert ('id="viewer-photos"' in live.markup) is may
    assert ("not ours to publish" in live.markup) is not may
    assert (_data(live)["photos"] is None) is not may


def test_without_maps_there_is_no_viewer(tmp_path):
    reports, results = write_study(tmp_path, replace(SMALL, maps=False))

    assert viewer.view(StudyFiles(reports, results, "toy", {})) is None


def test_names_cannot_end_the_script_that_holds_them(tmp_path):
    evil = "</script><b>"
    reports, results = write_study(tmp_path, replace(SMALL, sweeps=(SWEEPS[2],), classes=(evil,)))

    live = viewer.view(StudyFiles(reports, results, "toy", {}))

    assert evil not in live.markup
    assert _data(live)["images"][0]["class"] == evil


def test_fragments_quote_what_a_name_may_hold():
    assert viewer.fragment("net", "SP-L", "a/b c") == "viewer=net/SP-L/a%2Fb%20c"


def _dom(page, folder, fragment, *, script="", until="") -> str:
    """The page's elements after its scripts have run.

    Its clock runs on while pictures are decoded, so on a busy machine it may end too early: the
    page is opened again where `until` is not there.
    """
    if script:
        # The page itself would refuse another script.
        page = re.sub(r"; script-src '[^\"]+", "; script-src 'unsafe-inline'", page)
        page = page.replace("</body>", f"<script>{script}</script></body>")
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    for _ in range(5):
        found = subprocess.run(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
                *("--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}"),
                f"{path.as_uri()}#{fragment}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        if until in found.stdout:
            break
    return found.stdout


def _tiles(dom) -> list[str]:
    grid = dom[dom.index('<div class="maps">') :]
    return re.findall(r"<figure class=\"tile.*?</figure>", grid[: grid.index('<p class="note">')])


@needs_browser
def test_a_fragment_opens_its_maps_with_their_scores_worst_first(study, shown, tmp_path):
    page = document.html("t", [document.Section("maps", "Maps", [shown])])
    data = _data(shown)
    (sweep,) = [one for one in data["sweeps"] if one["name"] == "SP-L"]
    made = sweep["models"]["googlenet-r"]
    place = made["ranking"][1]

    image_id = data["images"][place]["id"]
    drawn = f'data-drawn="#viewer=googlenet-r/SP-L/{image_id}"'
    dom = _dom(page, tmp_path, "viewer=googlenet-r/SP-L/2", until=drawn)

    assert drawn in dom
    photo, *maps = _tiles(dom)
    assert image_id in photo
    ssim = {value: made["scores"]["ssim"][at][place] for at, value in enumerate(sweep["values"])}
    order = sorted((v for v in ssim if ssim[v] is not None), key=lambda value: ssim[value])
    assert [re.search(r'data-value="([^"]+)"', tile)[1] for tile in maps] == ["9", *order]
    assert "reference" in maps[0]
    for tile, value in zip(maps[1:], order, strict=True):
        words = html.unescape(re.sub(r"<[^>]+>", " ", tile))
        assert f"SSIM {ssim[value]:.3f}" in " ".join(words.split()).replace("−", "-")
    assert "The viewer needs JavaScript" not in dom


_WALK = """
const root = document.getElementById("viewer");
const states = [];
const press = (key, shiftKey = false) => {
  root.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true }));
  states.push(location.hash);
};
setTimeout(() => {
  const canvas = root.querySelector(".reference canvas");
  const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  root.dataset.pixels = Array.from(data).join(" ");
  for (const key of ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "m", "o", "s"]) press(key);
  press("ArrowLeft", true);
  root.dataset.states = states.join(" ");
}, 1000);
"""


@needs_browser
def test_keys_walk_and_pixels_have_the_palette_s_colors(study, shown, tmp_path):
    page = document.html("t", [document.Section("maps", "Maps", [shown])])
    data = _data(shown)
    names = [one["name"] for one in data["sweeps"]]
    ids = [data["images"][at]["id"] for at in data["sweeps"][0]["models"]["googlenet"]["ranking"]]
    first, after = names[0], names[1]

    dom = _dom(page, tmp_path, f"viewer=googlenet/{first}/1", script=_WALK, until="data-states=")

    states = re.search(r'data-states="([^"]+)"', dom)[1].split()
    base = f"#viewer=googlenet/{first}"
    assert states == [
        f"{base}/{ids[1]}",
        f"{base}/{ids[0]}",
        f"#viewer=googlenet/{after}/{ids[0]}",
        f"{base}/{ids[0]}",
        f"#viewer=googlenet-r/{first}/{ids[0]}",
        f"#viewer=googlenet-r/{first}/{ids[0]}/grid",
        f"#viewer=googlenet-r/{first}/{ids[0]}/grid/shared",
        f"{base}/{ids[0]}/grid/shared",
    ]
    side, sweep = data["side"], data["sweeps"][0]
    line = [about["id"] for about in data["images"]].index(ids[0])
    column = sweep["reference"]
    levels = _sheet(shown, f"viewer-{first}-googlenet")
    levels = levels[line * side : (line + 1) * side, column * side : (column + 1) * side]
    pixels = np.array(re.search(r'data-pixels="([^"]+)"', dom)[1].split(), int)
    assert np.array_equal(pixels.reshape(side, side, 4)[..., :3], viewer._colors()[levels])


_VIEWS = """
const root = document.getElementById("viewer");
const pixels = (tile) => {
  const canvas = tile.querySelector("canvas");
  const side = canvas.width;
  return Array.from(canvas.getContext("2d").getImageData(0, 0, side, side).data).join(" ");
};
const wait = () => new Promise((done) => setTimeout(done, 300));
// Nothing was clicked: the page's body has the keys.
const press = async (key) => {
  document.activeElement.blur();
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  await wait();
};
setTimeout(async () => {
  root.scrollIntoView();
  await press("v");
  root.dataset.overlay = pixels(root.querySelectorAll(".tile")[1]);
  root.dataset.opacity = root.querySelector('[name="opacity"]').closest("label").hidden;
  await press("v");
  root.dataset.difference = pixels(root.querySelectorAll(".tile")[2]);
  root.dataset.value = root.querySelectorAll(".tile")[2].dataset.value;
  await press("b");
  await press("ArrowDown");
  await press("j");
  root.dataset.wide = root.scrollWidth > root.clientWidth;
  root.dataset.end = location.hash;
}, 1000);
"""


@needs_browser
def test_views_of_a_map_and_models_side_by_side(study, shown, tmp_path):
    page = document.html("t", [document.Section("maps", "Maps", [shown])])
    data = _data(shown)
    sweep = data["sweeps"][0]
    made = sweep["models"]["googlenet"]
    place = made["ranking"][0]
    about, side = data["images"][place], data["side"]

    start = f"viewer=googlenet/{sweep['name']}/{about['id']}"
    dom = _dom(page, tmp_path, start, script=_VIEWS, until="data-end=")

    def drawn(name):
        found = re.search(rf'data-{name}="([^"]+)"', dom)[1].split()
        return np.array(found, int).reshape(side, side, 4)[..., :3]

    def levels(column):
        sheet = _sheet(shown, f"viewer-{sweep['name']}-googlenet").astype(float)
        rows = sheet[place * side : (place + 1) * side]
        return rows[:, column * side : (column + 1) * side] - 128

    reference = levels(sweep["reference"])
    value = re.search(r'data-value="([^"]+)" data-wide', dom)[1]
    other = levels(sweep["values"].index(value))
    expected = 128 + np.clip(other - reference, -127, 127).astype(int)
    assert np.array_equal(drawn("difference"), viewer._colors()[expected])
    gray = study.pixels[about["id"]] @ [0.299, 0.587, 0.114]
    share = 0.8 * np.sqrt(np.abs(reference) / 127)
    colors = viewer._colors()[np.where(reference < 0, 40, 216)]
    blended = share[..., None] * colors + (1 - share[..., None]) * gray[..., None]
    assert np.abs(drawn("overlay") - blended).max() <= 1
    assert 'data-opacity="false"' in dom
    # ArrowDown is the page's, unless the viewer has the focus.
    after = data["sweeps"][1]["name"]
    assert f'data-end="#viewer=googlenet/{after}/{about["id"]}/difference/all"' in dom
    assert 'data-wide="false"' in dom
    words = re.sub(r"<[^>]+>", " ", "".join(_tiles(dom)))
    assert re.findall(r"predicted: (\w+)", words) == ["ring", "heart"]
    assert len(_tiles(dom)) == 2 * (1 + len(data["sweeps"][1]["values"]))
    assert re.findall(r"<h4>([\w-]+)</h4>", dom) == ["googlenet", "googlenet-r"]
