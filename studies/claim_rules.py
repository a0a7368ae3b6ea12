"""How often each claim is called when there is nothing to call.

Usage: python studies/claim_rules.py [--studies N]

Studies are simulated in which no setting, model, network or method differs from another, with
images that do, several of them on one photograph, and images on which models and settings act each
in their own way. Where the truth lies at the bound of a claim, it should hold, and fail, in 2.5 %
of them at most; where it lies on one side, it should be put on the other in 2.5 % at most.
Writes `reports/claim-rules/claim_rules.csv` and README.md.
"""

import argparse
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from steadymap.analysis.claims import ipr, sam
from steadymap.analysis.claims.verdict import NOT_MEASURABLE, claim_table, read_claims
from steadymap.params.schema import Statistics
from steadymap.statistics.pairing import mismatched

OUTPUT = Path(__file__).resolve().parents[1] / "reports" / "claim-rules"
OPTIONS = Statistics(confidence=0.95)
SIDE = 0.025

PAIRS = (("googlenet", "googlenet-r"), ("resnet18", "resnet18-r"))
MODELS = tuple(model for pair in PAIRS for model in pair)
N_IMAGES, N_PHOTOS, N_SETTINGS = 24, 12, 3
SWEEPS = {
    "SG-N": ("smoothgrad", "n_samples"),
    "SG-sigma": ("smoothgrad", "sigma"),
    "SP-S": ("sliding_patch", "patch_size"),
    "SP-L": ("sliding_patch", "patch_size"),
    "LIME-seed": ("lime", "seed"),
    "LIME-seed-150": ("lime", "seed"),
    "LIME-N": ("lime", "n_samples"),
    "LIME-S": ("lime", "n_superpixels"),
    "MP-seed": ("meaningful_perturbation", "seed"),
    "MP-N": ("meaningful_perturbation", "n_iterations"),
    "MP-blur": ("meaningful_perturbation", "blur_radius"),
}
METRICS = (
    *(("ssim", "sam"), ("ssim", "common"), ("spearman", "signed"), ("hog_pearson", "cells4")),
    *(("insertion", "auc_over_max"), ("deletion", "auc_over_max")),
    ("localization_error", "alpha0.25"),
)

# Level of all similarities: the bound of claim 4.
LEVEL = 0.9

# Share of images that are localized wrongly, as a quantile of a normal latent score.
WRONG = 0.3

# Claims whose truth lies on one side, and the side: all other truths lie at the bound.
SIDES = {
    # Similarity is .9, the claim is above .95.
    "11": "off",
    # The spread over SP-S of a 0/1 error exceeds .05.
    **{"3": "on", "3b": "on"},
    # A hyperparameter that moves nothing moves less than a seed.
    **{"16": "off", "17": "off", "17b": "off", "D22": "off", "D23": "off"},
    # Two seeds matter alike; two methods' S differ by less than .1.
    **{"18": "off", "19": "on", "19b": "on", "I7": "on"},
    # Settings that move no mean move single images more.
    "D27": "on",
}

ARCHITECTURES = (
    *("inception_v3", "vgg16", "mobilenet_v2", "resnet18", "resnet50"),
    *("googlenet", "densenet121"),
)
METHODS = (
    *("guided_backprop", "guided_gradcam", "deeplift", "input_x_gradient"),
    *("integrated_gradients", "gradient", "lime"),
)
N_TESTED = 8


def rows(n_images: int = N_IMAGES, n_photos: int = N_PHOTOS) -> pd.DataFrame:
    """The evaluation set: images in turn on photographs."""
    places = np.arange(n_images)
    names: dict[str, Any] = {"image_id": [f"i{place:02d}" for place in places]}
    names["class_name"] = "disc"
    # Of 100 px: every third box covers half of the image and more.
    side = np.where(places % 3 == 0, 80, 20)
    boxes: dict[str, Any] = {"x0": 0, "y0": 0, "x1": side, "y1": side}
    names["photo"] = [f"p{place % n_photos}" for place in places]
    return pd.DataFrame(names | boxes)


def per_image(rng: np.random.Generator, n_images: int = N_IMAGES) -> np.ndarray:
    """What images differ by, half of the variance between photographs; standard deviation 1."""
    photos = rng.normal(size=min(N_PHOTOS, n_images))
    own = rng.normal(size=n_images)
    return (photos[np.arange(n_images) % len(photos)] + own) / np.sqrt(2)


def latent(rng: np.random.Generator, image: np.ndarray, *, own: float, noise: float) -> np.ndarray:
    """Images by settings: what images differ by, what the model makes of each, settings' noise.

    Parameters
    ----------
    rng : Generator
    image : ndarray
        What images differ by, shared by all models.
    own : float
        Standard deviation between images of what is a model's own.
    noise : float
        That of what is a setting's own.
    """
    mine = own * rng.normal(size=(len(image), 1))
    # Settings act on single images alone, some more than others.
    scale = rng.gamma(4, 0.25, size=(len(image), 1))
    return image[:, None] + mine + noise * scale * rng.normal(size=(len(image), N_SETTINGS))


def wrong(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Localization errors, 0 or 1."""
    score = latent(rng, image, own=0.5, noise=0.15)
    return (score < stats.norm.ppf(WRONG, scale=np.sqrt(1.25))).astype(float)


@cache
def area_noise() -> float:
    """Noise of insertion and deletion by which they vary as much, beside their mean, as errors."""
    rng = np.random.default_rng(0)
    errors = wrong(rng, rng.normal(size=200_000))
    relative = np.sqrt(errors.var(axis=1).mean()) / errors.mean()
    # Gamma(4, 1/4) has a mean square of 1.25.
    return float(0.5 * relative / np.sqrt((1 - 1 / N_SETTINGS) * 1.25))


@cache
def template() -> pd.DataFrame:
    """Score rows of a study but for the scores."""
    blocks = []
    ids = rows()["image_id"].to_numpy()
    for sweep, (method, hyperparameter) in SWEEPS.items():
        measured = [*METRICS, *([("dynamic_range", "raw")] if sweep == "SP-L" else [])]
        for metric, convention in measured:
            for model in MODELS:
                draws = "independent" if hyperparameter == "seed" else "nested"
                named = {"sweep": sweep, "method": method, "hyperparameter": hyperparameter}
                named |= {"model": model, "metric": metric, "convention": convention}
                frame: dict[str, Any] = {"value": np.tile(["1", "2", "3"], N_IMAGES)}
                frame |= {"image_id": np.repeat(ids, N_SETTINGS), "draws": draws}
                blocks.append(pd.DataFrame(named | frame))
    return pd.concat(blocks, ignore_index=True).assign(degenerate=False, inverted=False)


def scores(rng: np.random.Generator) -> pd.DataFrame:
    """Scores without any difference between settings or models."""
    cells = []
    for sweep in SWEEPS:
        similarity = per_image(rng)
        for metric, _ in [*METRICS, *([("dynamic_range", "raw")] if sweep == "SP-L" else [])]:
            image = per_image(rng) if metric not in ("ssim", "spearman") else similarity
            for _ in MODELS:
                if metric == "localization_error":
                    cells.append(wrong(rng, image))
                elif metric in ("insertion", "deletion"):
                    area = 0.5 + 0.1 * latent(rng, image, own=0.5, noise=0)
                    more = latent(rng, 0 * image, own=0, noise=area_noise())
                    cells.append(area + more)
                elif metric == "dynamic_range":
                    cells.append(np.exp(latent(rng, image, own=0.3, noise=0.3)))
                else:
                    # Skewed towards low similarity, as at the end of a range.
                    drop = np.exp(0.4 * latent(rng, image, own=0.5, noise=0.5))
                    cells.append(1 - (1 - LEVEL) * drop / np.exp(0.08 * (1.25 + 0.25 * 1.25)))
    return template().assign(score=np.concatenate([cell.ravel() for cell in cells]))


def comparisons(rng: np.random.Generator) -> pd.DataFrame:
    """Noise, de-noising and distance without any difference between models, values or images."""
    frames = []

    def add(name: str, model: str, metric: str, image: np.ndarray, **names: Any) -> None:
        score = 0.4 + 0.1 * image + 0.05 * rng.normal(size=N_IMAGES)
        convention = {"ssim": "sam", "spearman": "signed", "l1": "max_abs"}.get(metric, "cells4")
        frame = {"comparison": name, "model": model, "other": "", "role": "self", "method": "m"}
        frame |= {"value": "", "pairing": "same", "metric": metric, "convention": convention}
        frames.append(
            pd.DataFrame(frame | names | {"image_id": rows()["image_id"], "score": score}).assign(
                degenerate=False
            )
        )

    for metric in ("ssim", "spearman", "hog_pearson"):
        for variance in ("0.1", "0.01"):
            image = per_image(rng)
            for model in MODELS:
                add("gradient-noise", model, metric, image, value=variance)
        for towards in ("gradient", "input_x_gradient"):
            for pairing in ("same", "mismatched"):
                image = per_image(rng)
                for regular, _ in PAIRS:
                    for _, other in PAIRS:
                        role = "twin" if other == f"{regular}-r" else "control"
                        names = {"other": other, "role": role, "pairing": pairing}
                        for value in ("0", "5", "80", ""):
                            method = "m" if value else "guided_backprop"
                            about = names | {"value": value, "method": method}
                            add(f"denoising-{towards}", regular, metric, image, **about)
    image = per_image(rng)
    for model in MODELS:
        add("distance", model, "l1", image, value="50-800")
    return pd.concat(frames, ignore_index=True)


def other_evidence(rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Scatter, convergence and objects without any difference, objects at the claims' bounds."""
    ids, scatters, steps, objects = rows()["image_id"], [], [], []
    image = per_image(rng)
    for model in MODELS:
        for value in ("5", "30"):
            made = np.exp(0.3 * image + 0.2 * rng.normal(size=N_IMAGES))
            frame: dict[str, Any] = {"model": model, "value": value, "image_id": ids}
            frame["scatter"] = made
            scatters.append(pd.DataFrame(frame))
        made = np.ceil(20 * np.exp(0.4 * image + 0.3 * rng.normal(size=N_IMAGES)))
        frame = {"model": model, "image_id": ids, "converged_step": made, "n_iterations": 300}
        steps.append(pd.DataFrame(frame))
    n = 8
    image = rng.normal(size=n)
    for size in (6, 24):
        for patch in (3, 5, 9, 15):
            noise = rng.normal(size=n)
            area = size**2 * np.exp(0.3 * image + 0.2 * noise - 0.5 * (0.09 + 0.04))
            score = 0.9 + 0.02 * rng.normal(size=n)
            frame = {"model": MODELS[0], "object_size": size}
            frame["image_id"] = [f"o{place}" for place in range(n)]
            frame |= {"patch_size": patch, "object_area": size**2}
            frame |= {"area_above_half": area, "peak": 0.09 + 0.01 * noise, "score": score}
            objects.append(pd.DataFrame(frame))
    changes, structures = [], []
    partners = ids.to_numpy()[mismatched(rows())]
    for model in MODELS:
        made = np.exp(0.3 * per_image(rng) + 0.2 * rng.normal(size=N_IMAGES))
        changes.append(pd.DataFrame({"model": model, "image_id": ids, "fluctuation": made}))
        for metric in ("edge_correlation", "autocorrelation", "mass_inside"):
            for pairing, others in (("same", ids), ("mismatched", partners)):
                about = {"sweep": "default", "method": "gradient", "model": model, "value": ""}
                frame = about | {
                    "image_id": ids,
                    "other": others,
                    "metric": metric,
                    "pairing": pairing,
                }
                score = 0.2 + 0.05 * rng.normal(size=N_IMAGES)
                structures.append(pd.DataFrame(frame | {"score": score, "degenerate": False}))
    frames = {"scatter": scatters, "convergence": steps, "object_size": objects}
    frames |= {"fluctuation": changes, "structure": structures}
    return {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}


def randomized(rng: np.random.Generator, level: float) -> pd.DataFrame:
    """S of the same level for all methods and networks; three draws of each of two units."""
    frames = []
    images = np.arange(N_TESTED)
    for architecture in ARCHITECTURES:
        for method in METHODS:
            image = np.exp(0.3 * per_image(rng, N_TESTED))
            kinds = {"same": 1.0} | ({"fresh": 1.0, "floor": 0.0} if method == "lime" else {})
            for kind, share in kinds.items():
                for unit in range(2):
                    draw = np.exp(0.2 * rng.normal(size=(3, 1)))
                    noise = np.exp(0.3 * rng.normal(size=(3, N_TESTED)))
                    moved = share * level * image * draw * noise / np.exp(0.5 * 0.22)
                    frame: dict[str, Any] = {"model": architecture, "method": method}
                    frame["kind"] = kind
                    frame |= {"unit": f"u{unit}", "unit_index": unit}
                    frame |= {"draw": np.repeat(range(3), N_TESTED)}
                    frame |= {"image_id": [f"i{place:02d}" for place in np.tile(images, 3)]}
                    frames.append(pd.DataFrame(frame | {"score": 1 - moved.ravel()}))
    return pd.concat(frames, ignore_index=True).assign(
        order="independent",
        metric="ssim",
        convention="common",
        degenerate=False,
        inverted=False,
        randomizer="init",
        preset="paper",
    )


def verdicts(seed: int) -> dict[str, str]:
    """Verdict on each claim in one simulated study."""
    rng = np.random.default_rng([18, seed])
    accuracies = rng.binomial(800, 0.9, size=len(MODELS)) / 800
    models = pd.DataFrame({"model": MODELS, "n_val": 800, "clean_accuracy": accuracies})
    evidence: dict[str, Any] = {"comparisons": comparisons(rng), **other_evidence(rng)}
    evidence["image_size"] = 100
    tables = [sam.claims(scores(rng), rows(), models, OPTIONS, **evidence)]
    architectures = {name: name for name in ARCHITECTURES}
    for level, passing in ((0.3, False), (0.01, True)):
        tested = ipr.Evidence(
            randomized(rng, level),
            rows(N_TESTED, N_TESTED),
            OPTIONS,
            architectures=architectures,
            stochastic=["lime"],
        )
        every = read_claims("ipr.yaml")
        wanted = [claim for claim in every if (claim.claim in ("I1", "I1b")) == passing]
        tables.append(claim_table(wanted, ipr.recipe, tested, confidence=OPTIONS.confidence))
    found = pd.concat(tables)
    return dict(zip(found["claim"], found["direction"], strict=True))


def rates(n_studies: int, first: int = 0) -> pd.DataFrame:
    """How often each claim holds and fails, with the interval that the number of studies leaves.

    Returns
    -------
    DataFrame
        Columns claim, group, truth (`bound`, the side of the claim that it is on, `on` or `off`, or
        `none` of a check),
        n_studies, inconclusive, not_resolved, and holds, fails with `_low` and `_high` (exact,
        95 %). `exceeds` names the wrong verdicts that occur in more than 2.5 %, the error of 5 %
        shared among all rates.
    """
    found = pd.DataFrame([verdicts(first + place) for place in range(n_studies)])
    records = []
    every = (*read_claims("sam.yaml"), *read_claims("ipr.yaml"))
    # Among as many rates, some exceed 2.5 % by the chance of the simulation.
    n_rates = 2 * len(every)
    for claim in every:
        seen = found[claim.claim]
        if (seen == NOT_MEASURABLE).all():
            continue
        truth = SIDES.get(claim.claim, "bound") if claim.kind == "claim" else "none"
        record: dict[str, Any] = {"claim": claim.claim, "group": claim.group, "truth": truth}
        record |= {"kind": claim.kind, "n_studies": n_studies}
        for name in ("inconclusive", "not resolved"):
            record[name.replace(" ", "_")] = int((seen == name).sum())
        exceeding = []
        for name, right in (("holds", "on"), ("fails", "off")):
            n = int((seen == name).sum())
            ends = stats.binomtest(n, n_studies).proportion_ci()
            record |= {name: n / n_studies, f"{name}_low": ends.low, f"{name}_high": ends.high}
            above = stats.binomtest(n, n_studies, SIDE, alternative="greater").pvalue
            if truth not in (right, "none") and above < 0.05 / n_rates:
                exceeding.append(name)
        records.append(record | {"exceeds": " ".join(exceeding)})
    return pd.DataFrame(records)


def page(table: pd.DataFrame) -> Iterator[str]:
    """Lines of the README."""
    n = int(table["n_studies"].iloc[0])
    claims = table[table["kind"] == "claim"]
    surely = claims[claims["exceeds"] != ""]
    alone = sum(
        int(((claims["truth"] != right) & (claims[f"{name}_low"] > SIDE)).sum())
        for name, right in (("holds", "on"), ("fails", "off"))
    )
    yield "# Claims where nothing differs\n"
    yield f"{n} simulated studies without any difference between settings, models, networks or"
    yield f"methods ({N_IMAGES} images on {N_PHOTOS} photographs, two pairs of models), judged as a"
    yield "study is. Truth: at the bound of the claim, or on (off) the claimed side. Nominal: 2.5 %"
    yield "for each wrong verdict; in brackets, the interval that the number of studies leaves.\n"
    listed = ", ".join(f"{row.claim} ({row.exceeds})" for row in surely.itertuples())
    yield "Above 2.5 % beyond the chance of the simulation, with the error of 5 % shared among all"
    yield f"rates: {listed or 'none'}. By themselves, the intervals of {alone} of {2 * len(claims)}"
    yield "rates lie above it.\n"
    yield "| claim | truth | holds | fails | inconclusive | not resolved |"
    yield "|---|---|---|---|---|---|"
    for row in table.to_dict("records"):
        cells = [str(row["claim"]), row["truth"], _rate(row, "holds"), _rate(row, "fails")]
        cells += [str(row["inconclusive"]), str(row["not_resolved"])]
        yield f"| {' | '.join(cells)} |"
    yield "\n```sh"
    yield f"python studies/claim_rules.py --studies {n}"
    yield "```"


def _rate(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    table = rates(parser.parse_args().studies)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    table.to_csv(OUTPUT / "claim_rules.csv", index=False, float_format="%.6g")
    (OUTPUT / "README.md").write_text("\n".join(page(table)) + "\n")
    wrong_too_often = table[(table["exceeds"] != "") & (table["kind"] == "claim")]
    print(wrong_too_often.to_string() if len(wrong_too_often) else "no claim exceeds 2.5 %")


if __name__ == "__main__":
    main()
