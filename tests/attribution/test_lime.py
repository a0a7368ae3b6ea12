import logging
import warnings

import numpy as np
import pytest
import torch
from lime import lime_image
from lime.lime_base import LimeBase
from sklearn.linear_model import Lasso
from sklearn.metrics import pairwise_distances
from threadpoolctl import threadpool_limits

from conftest import Linear
from steadymap import attribute
from steadymap.attribution import lime
from steadymap.attribution.fusion import fused
from steadymap.attribution.model_runner import ModelRunner
from steadymap.params.methods import METHODS

IDS = list("abcdef")
TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
SLIC = {"n_superpixels": 16, "compactness": 30.0, "sigma": 3.0}
BATCH = 16


def quadrants(side=24):
    """Four regions numbered 0..3."""
    half = np.arange(side) >= side // 2
    return 2 * half[:, None] + half[None, :]


class Regions(torch.nn.Module):
    """Logit linear in the regions' mean brightness, over a constant."""

    weights = (3.0, -2.0, 0.5, 0.0)

    def forward(self, x):
        labels = torch.from_numpy(quadrants(x.shape[-1]))
        logit = 0.7 + sum(w * x[:, :, labels == k].mean((1, 2)) for k, w in enumerate(self.weights))
        return torch.stack([logit, torch.zeros_like(logit)], 1)


@pytest.fixture
def four_regions(monkeypatch):
    """Segmentation into quadrants, whatever the image."""
    monkeypatch.setattr(lime, "slic", lambda pixels, **options: quadrants(len(pixels)))


def coefficients_of(map_, segments):
    """Per superpixel, the one value that the map has there."""
    values = [np.unique(map_[segments == k]) for k in range(segments.max() + 1)]
    assert all(len(value) == 1 for value in values)
    return np.concatenate(values)


class TestSuperpixels:
    @pytest.mark.parametrize("wanted", [1, 4, 50, 150])
    def test_are_numbered_from_zero_without_gaps(self, embedded, wanted):
        """Whatever the photograph; a label without column would be noise (lime with skimage)."""
        pixels = embedded.images["val"][:8].transpose(0, 3, 1, 2).astype(np.float32) / 255

        for image in torch.from_numpy(pixels):
            segments = lime.superpixels(image, n_superpixels=wanted, compactness=30.0, sigma=1.0)

            assert segments.shape == image.shape[1:]
            assert sorted(set(segments.ravel())) == list(range(segments.max() + 1))
            assert wanted / 2 <= segments.max() + 1 <= 2 * wanted

    def test_labels_from_one_with_gaps_are_renumbered(self, images, monkeypatch):
        """As releases of scikit-image have given them."""
        monkeypatch.setattr(lime, "slic", lambda pixels, **options: 1 + 2 * quadrants(len(pixels)))

        assert np.array_equal(lime.superpixels(images[0], **SLIC), quadrants())

    def test_nothing_in_them_is_random(self, images):
        first = lime.superpixels(images[0], **SLIC)
        np.random.seed(1)

        assert np.array_equal(lime.superpixels(images[0], **SLIC), first)

    def test_follow_the_colors(self):
        """Two halves apart in color: no superpixel holds pixels of both."""
        image = torch.zeros(3, 24, 24)
        image[0, :, 11:] = 1.0

        segments = lime.superpixels(image, n_superpixels=8, compactness=1.0, sigma=0.0)

        assert not set(segments[:, :11].ravel()) & set(segments[:, 11:].ravel())

    def test_smoothing_and_compactness_matter(self, images):
        plain = lime.superpixels(images[0], **SLIC)

        assert not np.array_equal(lime.superpixels(images[0], **{**SLIC, "sigma": 0.0}), plain)
        assert not np.array_equal(
            lime.superpixels(images[0], **{**SLIC, "compactness": 1.0}), plain
        )

    def test_more_than_pixels_are_refused(self, tiny, images):
        with pytest.raises(ValueError, match="n_superpixels is 577, the image has 576 pixels; cho"):
            attribute("lime", tiny, images, 0, n_samples=4, n_superpixels=577)


class TestMasks:
    def test_the_first_shows_everything_and_the_others_half(self):
        shown = lime.masks(2000, 30, seed=0, image_id="a")

        assert shown[0].all()
        assert abs(shown[1:].mean() - 0.5) < 0.01
        assert (abs(shown[1:].mean(0) - 0.5) < 0.06).all()
        assert abs(np.corrcoef(shown[1:].T) - np.eye(30)).max() < 0.1
        assert len(np.unique(shown, axis=0)) == 2000

    def test_smaller_samples_are_the_beginning_of_larger_ones(self):
        few, many = (lime.masks(n, 30, seed=0, image_id="a") for n in (10, 40))

        assert np.array_equal(few, many[:10])

    def test_belong_to_seed_and_image(self):
        one = lime.masks(40, 30, seed=0, image_id="a")

        assert np.array_equal(one, lime.masks(40, 30, seed=0, image_id="a"))
        for other in ({"seed": 1, "image_id": "a"}, {"seed": 0, "image_id": "b"}):
            assert not np.array_equal(one, lime.masks(40, 30, **other))


def lime_kernel(distances):
    """The kernel that lime's image explainer hands to its regression."""
    return lime_image.LimeImageExplainer().base.kernel_fn(distances)


class TestRegression:
    @pytest.mark.parametrize("n_superpixels", [1, 7, 50])
    def test_weights_are_those_of_lime(self, n_superpixels):
        """Its kernel on the cosine distances that it takes from scikit-learn."""
        shown = np.random.default_rng(0).integers(0, 2, (200, n_superpixels)).astype(bool)
        shown[0], shown[1] = True, False
        distances = pairwise_distances(shown.astype(float), shown[:1].astype(float), "cosine")

        found = lime.proximities(shown)

        assert np.allclose(found, lime_kernel(distances.ravel()), rtol=1e-12)
        assert found[0] == 1
        assert found.min() > 0

    @pytest.mark.parametrize("surrogate", ["ridge", "lasso"])
    @pytest.mark.parametrize(("n_samples", "n_superpixels"), [(100, 7), (400, 50), (40, 60)])
    def test_coefficients_are_those_of_lime(self, rng, surrogate, n_samples, n_superpixels):
        """Its own regression on the same masks and scores."""
        shown = lime.masks(n_samples, n_superpixels, seed=0, image_id="a")
        scores = rng.uniform(size=n_samples) + shown @ rng.normal(size=n_superpixels)
        data = shown.astype(int)
        distances = pairwise_distances(data, data[:1], "cosine").ravel()
        model = Lasso(alpha=0.05, tol=1e-8, max_iter=100_000) if surrogate == "lasso" else None
        _, pairs, r2, _ = LimeBase(lime_kernel).explain_instance_with_data(
            data,
            scores[:, None],
            distances,
            0,
            num_features=100_000,
            feature_selection="none",
            model_regressor=model,
        )
        expected = np.array([value for _, value in sorted(pairs)])

        found, score = lime.regress(shown, scores, surrogate=surrogate, lasso_alpha=0.05)

        assert abs(found - expected).max() <= 1e-6 * abs(expected).max()
        assert score == pytest.approx(r2, abs=1e-9)

    def test_ridge_is_its_closed_form(self, rng):
        shown = lime.masks(60, 12, seed=0, image_id="a")
        scores = rng.uniform(size=60)
        weights = np.diag(lime.proximities(shown))
        features = np.column_stack([shown, np.ones(60)])
        penalty = np.diag([1.0] * 12 + [0.0])  # the intercept is free
        expected = np.linalg.solve(features.T @ weights @ features + penalty, features.T @ weights)

        found, _ = lime.regress(shown, scores, surrogate="ridge", lasso_alpha=1.0)

        assert np.allclose(found, (expected @ scores)[:12], atol=1e-12)

    def test_lasso_meets_its_optimality_conditions(self, rng):
        """Weighted mean correlations with the residual: at most alpha, and alpha where non-zero."""
        shown = lime.masks(300, 12, seed=0, image_id="a")
        scores = rng.normal(size=300) * 0.1 + shown @ np.linspace(-1, 1, 12)
        alpha, weights = 0.05, lime.proximities(shown)

        found, _ = lime.regress(shown, scores, surrogate="lasso", lasso_alpha=alpha)

        residual = scores - shown @ found
        residual -= np.average(residual, weights=weights)
        pull = shown.T @ (weights * residual) / weights.sum()
        assert 0 < (found == 0).sum() < 12
        assert (abs(pull) <= alpha + 1e-6).all()
        assert np.allclose(pull[found != 0], alpha * np.sign(found[found != 0]), atol=1e-6)

    @pytest.mark.parametrize("surrogate", ["ridge", "lasso"])
    def test_scores_that_do_not_differ_give_zeros(self, surrogate):
        """Not rounding noise, which every score would scale up."""
        shown = lime.masks(40, 12, seed=0, image_id="a")

        found, r2 = lime.regress(shown, np.full(40, 0.1), surrogate=surrogate, lasso_alpha=0.01)

        assert (found == 0).all()
        assert np.isnan(r2)

    def test_every_superpixel_has_weight(self, rng):
        """The last one and the first one too."""
        shown = lime.masks(400, 20, seed=0, image_id="a")
        for k in (0, 19):
            found, _ = lime.regress(
                shown, shown[:, k].astype(float), surrogate="ridge", lasso_alpha=1.0
            )

            assert found.argmax() == k
            assert found[k] > 0.9

    def test_the_lasso_converges(self, rng):
        shown = lime.masks(400, 150, seed=0, image_id="a")

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lime.regress(shown, 1e-6 * rng.uniform(size=400), surrogate="lasso", lasso_alpha=1e-9)


class TestAverage:
    """Shares of the score as the paper's supplement has them."""

    def test_closed_form_on_a_toy(self):
        """Three superpixels, four samples; distances 2 and 3 from squares 4 and 5."""
        shown = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=bool)
        scores = np.array([0.9, 0.6, 0.3, 0.4])
        change = np.array([4.0, 5.0, 4.0])

        found = lime.average(shown, scores, change)

        # Weights: none for the image itself, then 1/2, 1/3 and 1/2.
        shares = [0.6 / 2 / 2, 0.3 / 3, 0.4 / 2 / 2]
        expected = np.array([shares[1] + shares[2], shares[0] + shares[2], shares[0]])
        assert np.allclose(found, expected / (1 / 2 + 1 / 3 + 1 / 2), atol=1e-15)

    def test_all_masks_of_an_additive_model(self):
        """Equal changes, every mask once: the loop over all of them, each weighed by hand."""
        parts = np.array([3.0, -1.0, 0.5, 0.0])
        shown = np.array(list(np.ndindex(2, 2, 2, 2)), dtype=bool)[::-1]
        total, weight = np.zeros(4), 0.0
        for row in shown[1:]:
            hidden = 4 - row.sum()
            weight += 1 / np.sqrt(hidden * 0.25)
            for k in range(4):
                if row[k]:
                    total[k] += (row @ parts) / row.sum() / np.sqrt(hidden * 0.25)

        found = lime.average(shown, shown @ parts, np.full(4, 0.25))

        assert np.allclose(found, total / weight, atol=1e-14)
        assert list(np.argsort(-found)) == [0, 2, 3, 1]

    def test_shares_add_up_to_the_weighted_mean_score(self, rng):
        shown = lime.masks(200, 20, seed=0, image_id="a")
        scores, change = rng.uniform(size=200), rng.uniform(size=20)
        weights = 1 / np.sqrt((~shown[1:]) @ change)

        found = lime.average(shown, scores, change)

        assert shown.any(axis=1).all()
        assert found.sum() == pytest.approx(np.average(scores[1:], weights=weights), rel=1e-12)

    def test_the_unit_of_the_pixels_does_not_matter(self, rng):
        shown = lime.masks(50, 12, seed=0, image_id="a")
        scores, change = rng.uniform(size=50), rng.uniform(size=12)

        found = lime.average(shown, scores, 255.0**2 * change)

        assert np.allclose(found, lime.average(shown, scores, change), rtol=1e-12)

    def test_the_image_itself_has_no_weight(self, rng):
        """Neither the first sample nor one that hides only what looks as its fill."""
        shown = lime.masks(50, 12, seed=0, image_id="a")
        scores, change = rng.uniform(size=50), rng.uniform(size=12)
        change[3] = 0
        shown[7] = True
        shown[7, 3] = False
        other = scores.copy()
        other[[0, 7]] = 1e6

        assert np.array_equal(
            lime.average(shown, scores, change), lime.average(shown, other, change)
        )

    def test_a_sample_that_shows_nothing_counts_and_gives_nothing(self):
        shown = np.array([[1, 1], [1, 0], [0, 0]], dtype=bool)

        found = lime.average(shown, np.array([1.0, 0.8, 0.5]), np.array([4.0, 4.0]))

        assert np.allclose(found, [0.8 / 2 / (1 / 2 + 1 / 8**0.5), 0.0])

    def test_changes_are_distances_of_the_samples(self, images):
        """Summed over what is hidden: the squared distance of the picture that the model sees."""
        image, hidden = images[0], images[1]
        change = lime.changes(image, hidden, quadrants())
        kept = torch.from_numpy(np.isin(quadrants(), [1, 2]))

        sample = torch.where(kept, image, hidden)

        assert change.shape == (4,)
        expected = (sample.double() - image.double()).square().sum()
        assert change[0] + change[3] == pytest.approx(float(expected), rel=1e-12)

    def test_maps_are_the_formula_on_the_pictures_themselves(self, tiny, images):
        """Every sample drawn, passed and measured one by one."""
        n = 30
        options = {"n_samples": n, "fill": "gray", "surrogate": "average", **SLIC}
        maps, notes = attribute(
            "lime", tiny, images, TARGETS, image_ids=IDS, diagnostics=True, **options
        )

        for position, name in enumerate(IDS[:2]):
            image = images[position]
            segments = lime.superpixels(image, **SLIC)
            shown = lime.masks(n, segments.max() + 1, seed=0, image_id=name)
            total, weight = np.zeros(shown.shape[1]), 0.0
            for row in shown[1:]:
                visible = torch.from_numpy(row[segments])
                picture = torch.where(visible, image, torch.tensor(0.5))
                with torch.no_grad():
                    score = tiny(picture[None]).softmax(1)[0, TARGETS[position]]
                distance = float((picture.double() - image.double()).norm())
                total[row] += float(score) / row.sum() / distance
                weight += 1 / distance
            found = coefficients_of(maps[position].numpy(), segments)
            assert np.allclose(found, total / weight, rtol=1e-5)
        assert notes["surrogate_r2"].isnan().all()
        assert notes["all_zero"].tolist() == [0.0] * 6

    def test_finds_the_region_that_counts(self, four_regions, images):
        maps = attribute(
            "lime", Regions(), images, 0, output="logit", surrogate="average", n_samples=500
        )

        for found in maps.numpy():
            best, worst = (
                pick(coefficients_of(found, quadrants())) for pick in (np.argmax, np.argmin)
            )
            assert (best, worst) == (0, 1)

    def test_hiding_nothing_visible_gives_nothing(self, tiny):
        image = torch.full((1, 3, 24, 24), 0.5)

        maps, notes = attribute(
            "lime",
            tiny,
            image,
            0,
            fill="gray",
            surrogate="average",
            n_samples=20,
            n_superpixels=16,
            diagnostics=True,
        )

        assert (maps == 0).all()
        assert notes["all_zero"].tolist() == [1.0]


class Given:
    """Hands lime the masks in place of random numbers."""

    def __init__(self, shown):
        self.shown = shown.astype(int)

    def randint(self, low, high, size):
        assert (low, high, size) == (0, 2, self.shown.size)
        return self.shown.ravel()


class TestAgainstLime:
    """The whole of lime's image explainer, given our segments and masks."""

    @pytest.mark.parametrize(("fill", "color"), [("black", 0.0), ("gray", 0.5), ("mean", None)])
    def test_maps_are_its_explanations(self, tiny, images, fill, color):
        n = 60
        maps, notes = attribute(
            "lime",
            tiny,
            images,
            TARGETS,
            image_ids=IDS,
            batch_size=BATCH,
            n_samples=n,
            fill=fill,
            diagnostics=True,
            **SLIC,
        )

        # The kernels that ours ran: rounding of scores is not what is compared.
        probability = torch.nn.Sequential(fused(tiny), torch.nn.Softmax(1)).eval()

        def predict(pictures):
            rows = torch.from_numpy(pictures).float().permute(0, 3, 1, 2)
            return ModelRunner(probability, BATCH).logits(rows).double().numpy()

        for position, name in enumerate(IDS):
            segments = lime.superpixels(images[position], **SLIC)
            shown = lime.masks(n, segments.max() + 1, seed=0, image_id=name)

            theirs = lime_image.LimeImageExplainer()
            theirs.random_state = Given(shown)
            target = int(TARGETS[position])
            explained = theirs.explain_instance(
                images[position].permute(1, 2, 0).double().numpy(),
                predict,
                labels=(target,),
                top_labels=None,
                hide_color=color,
                num_samples=n,
                batch_size=BATCH,
                segmentation_fn=lambda image, segments=segments: segments,
                random_seed=0,
            )
            expected = np.array([value for _, value in sorted(explained.local_exp[target])])

            found = coefficients_of(maps[position].numpy(), segments)
            assert abs(found - expected).max() <= 1e-6 * abs(expected).max()
            assert float(notes["surrogate_r2"][position]) == pytest.approx(explained.score)
            assert int(notes["n_superpixels"][position]) == len(expected)


class TestLime:
    def test_recovers_a_model_linear_in_the_superpixels(self, four_regions, images):
        """Against black: a region's weight times its brightness, shrunk a little by the ridge."""
        labels = quadrants()
        brightness = np.stack([images.numpy()[:, :, labels == k].mean((1, 2)) for k in range(4)], 1)
        expected = brightness * np.array(Regions.weights)

        maps, notes = attribute(
            "lime", Regions(), images, 0, output="logit", n_samples=2000, diagnostics=True
        )

        for found, wanted in zip(maps.numpy(), expected, strict=True):
            assert np.allclose(coefficients_of(found, labels), wanted, rtol=0.01, atol=0.01)
        assert (notes["surrogate_r2"] > 0.999).all()

    def test_recovers_it_with_the_lasso(self, four_regions, images):
        """What counts for nothing gets nothing: exactly 0."""
        options = {"output": "logit", "n_samples": 1000, "surrogate": "lasso"}

        maps = attribute("lime", Regions(), images, 0, lasso_alpha=0.01, **options)

        assert (maps[:, 12:, 12:] == 0).all()
        assert (maps[:, :12, :12] > 1).all()
        assert (maps[:, :12, 12:] < -0.5).all()

    def test_hiding_nothing_visible_gives_nothing(self, tiny):
        """A constant image hidden in its own mean color never changes: no map, no R²."""
        image = torch.full((1, 3, 24, 24), 0.3)

        maps, notes = attribute(
            "lime", tiny, image, 0, fill="mean", n_samples=20, n_superpixels=16, diagnostics=True
        )

        assert (maps == 0).all()
        assert notes["all_zero"].tolist() == [1.0]
        assert notes["n_superpixels"].tolist() == [16.0]
        assert notes["surrogate_r2"].isnan().all()

    def test_constant_images_have_maps_where_the_fill_shows(self, tiny):
        image = torch.full((1, 3, 24, 24), 0.3)

        maps, notes = attribute(
            "lime", tiny, image, 0, n_samples=40, n_superpixels=16, diagnostics=True
        )

        assert maps.std() > 0
        assert notes["all_zero"].tolist() == [0.0]

    def test_one_superpixel_gives_one_value(self, tiny, images):
        maps, notes = attribute(
            "lime", tiny, images, TARGETS, n_samples=20, n_superpixels=1, diagnostics=True
        )

        assert notes["n_superpixels"].tolist() == [1.0] * 6
        assert (maps.flatten(1) == maps[:, 0, :1]).all()
        assert (maps != 0).all()

    def test_all_zero_maps_of_the_lasso_are_told(self, tiny, images):
        options = {"n_samples": 40, "surrogate": "lasso", "diagnostics": True, **SLIC}

        strong, told = attribute("lime", tiny, images, TARGETS, lasso_alpha=10.0, **options)
        weak, other = attribute("lime", tiny, images, TARGETS, lasso_alpha=1e-6, **options)

        assert (strong == 0).all()
        assert told["all_zero"].tolist() == [1.0] * 6
        assert torch.allclose(told["surrogate_r2"], torch.zeros(6, dtype=torch.float64), atol=1e-9)
        assert (weak.flatten(1) != 0).any(1).all()
        assert other["all_zero"].tolist() == [0.0] * 6

    def test_fills(self, tiny, images):
        maps = {
            fill: attribute("lime", tiny, images, TARGETS, n_samples=40, fill=fill, **SLIC)
            for fill in METHODS["lime"].hyperparameters["fill"].choices
        }

        assert list(maps) == ["black", "gray", "mean"]
        assert not torch.allclose(maps["black"], maps["gray"])
        assert not torch.allclose(maps["gray"], maps["mean"])

    def test_black_hides_more_of_what_is_bright(self, four_regions):
        """Hidden pixels take the fill's color in [0, 1], not in the normalized space."""
        image = torch.full((1, 3, 24, 24), 0.5)
        options = {"output": "logit", "n_samples": 400}

        gray = attribute("lime", Regions(), image, 0, fill="gray", **options)
        black = attribute("lime", Regions(), image, 0, fill="black", **options)

        assert (gray == 0).all()
        assert coefficients_of(black[0].numpy(), quadrants())[0] == pytest.approx(1.5, rel=0.03)

    def test_threads_do_not_change_a_bit(self, images, monkeypatch):
        """In float64, before maps are rounded: BLAS differs in its last bits."""
        fits = []
        real = lime.regress
        monkeypatch.setattr(lime, "regress", lambda *a, **o: fits.append(real(*a, **o)) or fits[-1])

        for n_threads in (1, 2):
            with threadpool_limits(n_threads, user_api="blas"):
                attribute("lime", Linear(24), images[:1], 0, n_samples=1000, n_superpixels=144)

        (one, _), (two, _) = fits
        assert np.array_equal(one, two)

    def test_models_share_the_masks(self, images, monkeypatch):
        """What a sample shows depends on image and seed, not on the model."""
        seen = []

        class Spy(Linear):
            def forward(self, x):
                if len(x) > 2:  # Two rows are what a model is checked with.
                    seen.append(x.clone())
                return super().forward(x)

        for seed in (0, 1):
            attribute("lime", Spy(24, seed=seed), images, 0, image_ids=IDS, n_samples=10, **SLIC)

        assert len(seen) == 2
        assert torch.equal(*seen)

    def test_more_samples_bring_seeds_together(self, tiny, images):
        def apart(n):
            a, b = (
                attribute("lime", tiny, images, TARGETS, n_samples=n, seed=seed, **SLIC)
                for seed in (0, 1)
            )
            return ((a - b).norm() / a.norm()).item()

        assert apart(1600) < 0.5 * apart(100)

    def test_gray_images_of_one_channel(self):
        class Bright(torch.nn.Module):
            def forward(self, x):
                return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)

        image = torch.rand((1, 1, 24, 24), generator=torch.Generator().manual_seed(0))

        maps = attribute("lime", Bright(), image, 0, n_samples=40, n_superpixels=9, fill="mean")

        assert torch.isfinite(maps).all()

    def test_nothing_is_printed(self, tiny, images, capfd, caplog):
        with caplog.at_level(logging.DEBUG):
            attribute("lime", tiny, images, TARGETS, n_samples=10, **SLIC)

        assert capfd.readouterr() == ("", "")
        assert not caplog.records

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"n_samples": 1}, r"n_samples is 1; choose at least 2"),
            ({"n_superpixels": 0}, r"n_superpixels is 0; choose at least 1"),
            ({"fill": "blur"}, r"fill is 'blur'; choose one of black, gray, mean"),
            ({"surrogate": "ols"}, r"surrogate is 'ols'; choose one of ridge, lasso, average"),
            ({"lasso_alpha": 0}, r"lasso_alpha is 0; choose more than 0"),
            ({"compactness": 0.0}, r"compactness is 0.0; choose more than 0"),
            ({"sigma": -1}, r"sigma is -1; choose at least 0"),
            ({"hide_color": 0}, r"hide_color is 0; lime has no such hyperparameter; known are n_s"),
        ],
    )
    def test_wrong_values_are_told(self, tiny, images, option, message):
        with pytest.raises(ValueError, match=message):
            attribute("lime", tiny, images, 0, **option)
