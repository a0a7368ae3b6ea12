"""steadymap beside its peers, in one run: ratios of seconds, and equality where they agree."""

import contextlib
import copy
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import yaml
from skimage import data
from skimage.transform import resize
from torch import Tensor, nn

import peers
from steadymap.attribution import explainer, incremental
from steadymap.attribution.model_runner import ModelRunner
from steadymap.attribution.sliding_patch import centered, stretched
from steadymap.engine import evaluation_set, runner, selection
from steadymap.engine.settings import Setting, points, unique_settings
from steadymap.engine.tasks import plan_settings
from steadymap.metrics import accuracy, similarity
from steadymap.models import registry
from steadymap.params.checks import validate
from steadymap.params.files import profile
from steadymap.params.schema import Attribution, Sweep
from steadymap.store.atomic import file_sha256, write_json
from steadymap.store.task_cache import TaskCache

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# What the paper's (224 px) and the embedded study's (64 px) grids are divided by; a stride grows.
FACTORS: dict[int, dict[str, dict[str, float]]] = {
    224: {
        "smoothgrad": {"n_samples": 5},
        "integrated_gradients": {"n_trials": 10, "n_steps": 5},
        "sliding_patch": {"stride": 1 / 5},
        "lime": {"n_samples": 10},
        "meaningful_perturbation": {"n_iterations": 15},
    },
    64: {
        "smoothgrad": {"n_samples": 5},
        "integrated_gradients": {"n_trials": 2, "n_steps": 2},
        "sliding_patch": {"stride": 1 / 2},
        "lime": {"n_samples": 10},
        "meaningful_perturbation": {"n_iterations": 10},
    },
}
PROFILES = {224: "imagenet", 64: "embedded"}
CANDIDATES = {224: (4, 8, 16), 64: (16, 32, 64)}
KINDS = {"fp32": torch.contiguous_format, "channels_last": torch.channels_last}
# Relative to the largest value: see definitions of tolerances in docs/protocol.md.
TOLERANCE = 1e-3
# Methods whose maps are held against their peers' in float64; ours are rounded to float32 at last.
_FLOAT64 = ("smoothgrad", "integrated_gradients", "meaningful_perturbation")
_FLOAT64_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A network at a size, with how many images and which sweeps.

    Attributes
    ----------
    architecture : str
        Name in the registry.
    side : int
        Of the images, px.
    n_images : int
        Explained together by steadymap, one after the other by peers.
    sweeps : mapping
        Per method, its scaled sweeps.
    n_classes : int
        Of the network.
    """

    architecture: str
    side: int
    n_images: int
    sweeps: Mapping[str, Mapping[str, Sweep]]
    n_classes: int = 1000

    @property
    def name(self) -> str:
        """Architecture and side."""
        return f"{self.architecture} {self.side} px"


def scaled(sweep: Sweep, factors: Mapping[str, float]) -> Sweep:
    """Sweep with smaller counts and a wider stride; settings that become equal are one."""

    def smaller(key: str | None, value: Any) -> Any:
        factor = factors.get(key or "")
        return value if factor is None else max(1, round(value / factor))

    values = list(dict.fromkeys(smaller(sweep.vary, value) for value in sweep.values))
    return sweep.model_copy(
        update={
            "values": values,
            "reference": smaller(sweep.vary, sweep.reference),
            "fixed": {key: smaller(key, value) for key, value in sweep.fixed.items()},
        }
    )


def case(architecture: str, side: int, *, n_images: int, n_classes: int = 1000) -> Case:
    """Network with the sweeps of its size's profile, scaled by `FACTORS`."""
    values = yaml.safe_load(profile(PROFILES[side], ROOT / "profiles"))
    sweeps = validate(values).sweeps
    chosen = {
        method: {name: scaled(sweep, factors) for name, sweep in sweeps[method].items()}
        for method, factors in FACTORS[side].items()
    }
    return Case(architecture, side, n_images, chosen, n_classes)


def photographs(side: int, n: int) -> np.ndarray:
    """Uint8 crops (n, side, side, 3) of scikit-image's own photographs."""
    sources = [data.astronaut(), data.chelsea(), data.coffee()]
    found = []
    for index in range(n):
        source = sources[index % 3]
        edge, shift = min(source.shape[:2]), 8 * (index // 3 % 20)
        square = source[: edge - shift, shift:edge]
        found.append(np.round(255 * resize(square, (side, side), anti_aliasing=True)))
    return np.stack(found).astype(np.uint8)


def calibrated(architecture: str, n_classes: int, side: int) -> nn.Module:
    """Network with Kaiming weights whose BatchNorm knows photographs: random, but well fed."""
    network = registry.build(architecture, n_classes)
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.normal_(module.weight, 1, 0.2, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    rows = evaluation_set.as_images(photographs(side, 6))
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        network.train()((rows - mean) / std)
        # A saturated softmax has no slope to compare.
        spread = network.eval()((rows - mean) / std).std()
        last.weight.div_(spread)
        last.bias.div_(spread)
    return network


@dataclass
class Clock:
    """Seconds spent inside model passes since it was started."""

    seconds: float = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, its seconds added."""

        def run(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - began

        return run


@contextlib.contextmanager
def watched() -> Iterator[Clock]:
    """Watch forward and backward passes of everything that steadymap runs."""
    clock = Clock()
    ahead, back = ModelRunner._run, torch.autograd.grad
    ModelRunner._run = clock.timed(ahead)  # type: ignore[method-assign]
    torch.autograd.grad = clock.timed(back)
    try:
        yield clock
    finally:
        ModelRunner._run, torch.autograd.grad = ahead, back  # type: ignore[method-assign]


def rate(call: Callable[[], Any], rows: int) -> float:
    """Rows per second of the best of three calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return rows / min(seconds)


class Bench:
    """One case, prepared: folders as a study has them, peers with their fastest batches.

    Parameters
    ----------
    made : Case
    folder : Path
        For models, images and caches.
    candidates : sequence of int
        Batch sizes to choose from, for steadymap and for peers alike; none: no peers.
    """

    def __init__(self, made: Case, folder: Path, *, candidates: Sequence[int]):
        self.case, self.folder = made, folder
        network = calibrated(made.architecture, made.n_classes, made.side)
        self.pixels = photographs(made.side, made.n_images)
        self.images = evaluation_set.as_images(self.pixels)
        self.names = [f"image{index}" for index in range(made.n_images)]
        # The engine's own copy, opened and fused before anything is timed, as the peers' are.
        self.adapted = self._write(network)
        with torch.no_grad():
            rows = [self.adapted(image[None]).argmax() for image in self.images]
        self.targets = [int(row) for row in rows]
        self._write_evaluation_set()
        self.peers: dict[str, peers.Peer] = {}
        self.batch_size = 0
        if candidates:
            self._choose_batches(candidates)

    def _choose_batches(self, candidates: Sequence[int]) -> None:
        made, target = self.case, self.targets[0]
        for kind, memory_format in KINDS.items():
            model = peers.Network(
                calibrated(made.architecture, made.n_classes, made.side), MEAN, STD, memory_format
            )
            ahead = self._fastest(model, candidates, target, with_gradients=False)
            back = self._fastest(model, candidates, target, with_gradients=True)
            # Meaningful Perturbation has a row per image and step: its batches are of images.
            together = [size for size in (1, 2, 4, 8) if size <= made.n_images]
            images = self._fastest(model, together, target, with_gradients=True)
            self.peers[kind] = peers.Peer(model, ahead, back, images)
        # One shape for all, as params have it: the best for a forward and a gradient pass together.
        costs = {}
        for size in candidates:
            costs[size] = self._cost(size)
        self.batch_size = min(costs, key=lambda size: costs[size])
        logger.info(
            "%s: batches of %d; peers %s",
            made.name,
            self.batch_size,
            {kind: (peer.forward, peer.backward, peer.images) for kind, peer in self.peers.items()},
        )

    def _cost(self, size: int) -> float:
        """Seconds of a forward and a gradient pass, per row."""
        rows = self.images[:1].repeat(size, 1, 1, 1)
        targets = torch.full((size,), self.targets[0])
        passes = ModelRunner(self.adapted, size, fast=runner.fused_copy(self.adapted))
        ahead = rate(lambda: passes.scores(rows, targets, output="logit"), size)
        back = rate(lambda: passes.gradients(rows, targets, output="logit"), size)
        return 1 / ahead + 1 / back

    def _write(self, network: nn.Module) -> registry.Explainable:
        folder = self.folder / "models" / "random"
        folder.mkdir(parents=True)
        path = folder / "weights.safetensors"
        safetensors.torch.save_file(network.state_dict(), path)
        write_json(
            {
                "model": "random",
                "architecture": self.case.architecture,
                "robust": False,
                "classes": [str(index) for index in range(self.case.n_classes)],
                "mean": MEAN,
                "std": STD,
                "weights_sha256": file_sha256(path),
            },
            folder / "card.json",
        )
        return runner._model(folder, "cpu")

    def _write_evaluation_set(self) -> None:
        n = self.case.n_images
        rows = pd.DataFrame(dict.fromkeys(selection.COLUMNS, 0), index=range(n)).assign(
            image_id=self.names, sha256=self.names, class_name="", photo=""
        )
        targets = pd.DataFrame(
            {
                "image_id": self.names,
                "model": "random",
                "prediction": self.targets,
                "target": self.targets,
            }
        )
        folder = self.folder / "evaluation_set"
        folder.mkdir()
        rows.to_csv(folder / "evaluation_set.csv", index=False)
        targets.to_csv(folder / "targets.csv", index=False)
        np.save(folder / "images.npy", self.pixels)
        self.rows, self.target_rows = rows, targets

    def _fastest(
        self,
        model: peers.Network,
        candidates: Sequence[int],
        target: int,
        *,
        with_gradients: bool,
    ) -> int:
        """Rows per pass at which most rows pass in a second."""

        def forward(rows: Tensor) -> None:
            with torch.no_grad():
                model(rows)

        def gradient(rows: Tensor) -> None:
            rows = rows.clone().requires_grad_()
            torch.autograd.grad(model(rows)[:, target].sum(), rows)

        call = gradient if with_gradients else forward
        rates = {}
        for size in candidates:
            rows = self.images[:1].repeat(size, 1, 1, 1)
            rates[size] = rate(partial(call, rows), size)
        return max(rates, key=lambda size: rates[size])

    @property
    def batches(self) -> dict[str, Any]:
        """Rows per pass, of steadymap and of each kind of peer, as they were found fastest."""
        return {"own": self.batch_size} | {
            kind: {"forward": peer.forward, "gradient": peer.backward, "images": peer.images}
            for kind, peer in self.peers.items()
        }

    def settings(self, method: str) -> list[Setting]:
        """Settings of a method's sweeps, each once."""
        return unique_settings(points(method, self.case.sweeps[method]))

    def occurrences(self, method: str) -> dict[Setting, int]:
        """How often each setting stands in the sweeps: what running sweep by sweep computes."""
        found: dict[Setting, int] = {}
        for point in points(method, self.case.sweeps[method]):
            found[point.setting] = found.get(point.setting, 0) + 1
        return found

    def own(self, method: str) -> tuple[float, float, dict[Setting, np.ndarray]]:
        """Seconds, seconds in passes, and maps of all settings, by the engine's own path."""
        attribution = Attribution(batch_size=self.batch_size, block_size=16, device="cpu")
        made = plan_settings(
            self.settings(method),
            weights={"random": "random"},
            rows=self.rows,
            targets=self.target_rows,
            preprocessing="bench",
            attribution=attribution,
        )
        run_context = runner.RunContext(
            self.folder / "models", self.folder / "evaluation_set", attribution
        )
        with tempfile.TemporaryDirectory(dir=self.folder) as cached, watched() as clock:
            cache = TaskCache(Path(cached))
            began = time.perf_counter()
            runner.run(
                made.tasks,
                cache=cache,
                run_context=run_context,
                title="bench",
            )
            seconds = time.perf_counter() - began
            maps = {
                setting: runner.collected(made.keys["random", setting], cache)[0]
                for setting in made.settings
            }
        return seconds, clock.seconds, maps

    def peer(
        self, method: str, kind: str
    ) -> tuple[dict[Setting, float], dict[Setting, np.ndarray]]:
        """Seconds without those of drawing, and maps, of each setting."""
        seconds: dict[Setting, float] = {}
        maps: dict[Setting, np.ndarray] = {}
        peer = self.peers[kind]
        for setting in self.settings(method):
            chosen, share = setting.hyperparameters, 1.0
            size = peers.together(method, peer, chosen)
            if method == "sliding_patch":
                share = peers.occlusion_share(self.images.shape[2:], chosen)
            seconds[setting], made = 0.0, []
            for start in range(0, len(self.images), size):
                part = slice(start, start + size)
                run = peers.PEERS[method](
                    peer, self.images[part], self.targets[part], self.names[part], chosen
                )
                began = time.perf_counter()
                found = run()
                seconds[setting] += (time.perf_counter() - began) * share
                made.append(found.numpy())
            maps[setting] = np.concatenate(made)
        return seconds, maps


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest absolute difference of two stacks of maps, relative to each second map's largest."""
    spans = np.abs(b).max(axis=(1, 2))
    return float((np.abs(a - b).max(axis=(1, 2)) / np.where(spans > 0, spans, 1)).max())


def compare(bench: Bench, *, repetitions: int) -> list[dict[str, Any]]:
    """A row per method: seconds of steadymap and of peers in turn, and how equal the maps are.

    `max_difference` holds the maps against those of the peer, channels_last; `peer_difference`
    holds the peer's two memory formats against each other: what rounding alone does to it.
    `equal` is judged in float64 for methods that follow gradients, by `max_difference` for others.
    `runs` are the seconds of each repetition, of which the others are medians.
    """
    found = []
    for method in bench.case.sweeps:
        own, inside = [], []
        theirs: dict[str, list[float]] = {kind: [] for kind in KINDS}
        distinct: dict[str, list[float]] = {kind: [] for kind in KINDS}
        maps: dict[str, dict[Setting, np.ndarray]] = {}
        counts = bench.occurrences(method)
        for _ in range(repetitions):
            seconds, passes, mine = bench.own(method)
            own.append(seconds)
            inside.append(passes)
            for kind in KINDS:
                per_setting, maps[kind] = bench.peer(method, kind)
                theirs[kind].append(sum(counts[s] * t for s, t in per_setting.items()))
                distinct[kind].append(sum(per_setting.values()))
        median = {kind: statistics.median(values) for kind, values in theirs.items()}
        once = {kind: statistics.median(values) for kind, values in distinct.items()}
        row: dict[str, Any] = {
            "case": bench.case.name,
            "method": method,
            "own_seconds": statistics.median(own),
            "passes_seconds": statistics.median(inside),
            "fp32_seconds": median["fp32"],
            "channels_last_seconds": median["channels_last"],
            "fp32_distinct_seconds": once["fp32"],
            "channels_last_distinct_seconds": once["channels_last"],
            "fp32_ratio": median["fp32"] / statistics.median(own),
            "channels_last_ratio": median["channels_last"] / statistics.median(own),
            "runs": {"own": own, **theirs},
        }
        if method == "sliding_patch":
            row |= _patch_check(bench, mine)
        else:
            settings = bench.settings(method)
            row["max_difference"] = max(
                difference(mine[s], maps["channels_last"][s]) for s in settings
            )
            row["peer_difference"] = max(
                difference(maps["fp32"][s], maps["channels_last"][s]) for s in settings
            )
        if method in _FLOAT64:
            row["float64_difference"] = float64_difference(bench, method)
            row["equal"] = row["float64_difference"] <= _FLOAT64_TOLERANCE
        else:
            row["equal"] = row["max_difference"] <= TOLERANCE
        found.append(row)
        logger.info(
            "%s %s: %.2f and %.2f times, maps differ by %.1e",
            bench.case.name,
            method,
            row["fp32_ratio"],
            row["channels_last_ratio"],
            row["max_difference"],
        )
    return found


def float64_difference(bench: Bench, method: str) -> float:
    """Our map against the peer's where rounding moves no ReLU: largest relative difference.

    Of the first image and the setting with the fewest passes, of ten iterations at least; nothing
    is fused there. In float32 a gradient jumps where an activation lies within rounding of a kink,
    and random networks have many: there the peer's own two memory formats differ as much
    (`peer_difference`).
    """
    made = min(
        bench.settings(method),
        key=lambda made: sum(explainer(method).cost(made.hyperparameters, bench.case.side)),
    )
    chosen = made.hyperparameters
    if "n_iterations" in chosen:
        # Adam's first step is the gradient's sign alone.
        chosen = {**chosen, "n_iterations": max(10, chosen["n_iterations"])}
    if "n_steps" in chosen:
        # Captum's places on the path are float32: quarters are exact there, fifths are not.
        chosen = {**chosen, "n_steps": 4}
    # Flat areas of a photograph tie in max-pooling, where the last bit of a sum decides.
    noise = torch.rand(bench.images[:1].shape, generator=torch.Generator().manual_seed(0))
    image = 0.98 * bench.images[:1].double() + 0.02 * noise.double()
    targets, names = bench.targets[:1], bench.names[:1]
    model = copy.deepcopy(bench.adapted).double()
    [(mine, _)] = explainer(method).explain(
        ModelRunner(model, 8), image, torch.tensor(targets), image_ids=names, settings=[chosen]
    )
    peer = replace(bench.peers["fp32"], model=copy.deepcopy(bench.peers["fp32"].model).double())
    theirs = peers.PEERS[method](peer, image, targets, names, chosen)()
    return difference(mine.numpy(), theirs.numpy())


def _patch_check(bench: Bench, mine: Mapping[Setting, np.ndarray]) -> dict[str, float]:
    """Sliding Patch against a plain loop over the same positions, enlarged in the same way."""
    apart, spread = [], []
    for setting in bench.settings("sliding_patch"):
        chosen = setting.hyperparameters
        shape = (bench.case.side, bench.case.side)
        large = {}
        for kind in KINDS:
            coarse = [
                peers.patch_loop(bench.peers[kind], image[None], target, chosen)
                for image, target in zip(bench.images, bench.targets, strict=True)
            ]
            drops = torch.stack(coarse)
            if chosen["upsampling"] == "stretched":
                large[kind] = stretched(drops, shape).numpy()
            else:
                large[kind] = centered(
                    drops, shape, size=chosen["patch_size"], stride=chosen["stride"]
                ).numpy()
        # Differences of probabilities: 1e-6 of them is rounding (D1.5).
        span = np.abs(large["channels_last"]).max() + 1e-3
        apart.append(float(np.abs(mine[setting] - large["channels_last"]).max() / span))
        spread.append(float(np.abs(large["fp32"] - large["channels_last"]).max() / span))
    return {"max_difference": max(apart), "peer_difference": max(spread)}


def compare_curves(bench: Bench, *, repetitions: int, step: int | None = None) -> dict[str, Any]:
    """Insertion and deletion of four maps per image against RISE's loop."""
    side = bench.case.side
    step = step or accuracy.default_step(side * side)
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn((4, len(bench.images), side, side), generator=generator)
    targets = torch.tensor(bench.targets)
    own: list[float] = []
    theirs: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repetitions):
        began = time.perf_counter()
        passes = ModelRunner(bench.adapted, bench.batch_size, fast=runner.fused_copy(bench.adapted))
        mine = accuracy.curves(passes, bench.images, maps, targets, step=step)
        own.append(time.perf_counter() - began)
        for kind, peer in bench.peers.items():
            began = time.perf_counter()
            found = [
                [
                    [
                        peers.curve(peer, image[None], one, target, step=step, kind=name)
                        for name in accuracy.KINDS
                    ]
                    for image, one, target in zip(bench.images, stack, bench.targets, strict=True)
                ]
                for stack in maps
            ]
            theirs[kind].append(time.perf_counter() - began)
    apart = float(np.abs(np.array(found) - mine.numpy()).max())
    seconds = statistics.median(own)
    return {
        "case": bench.case.name,
        "own_seconds": seconds,
        **{f"{kind}_seconds": statistics.median(values) for kind, values in theirs.items()},
        **{f"{kind}_ratio": statistics.median(values) / seconds for kind, values in theirs.items()},
        "max_difference": apart,
        "equal": apart <= TOLERANCE * float(mine.max()) + 1e-6,
    }


def compare_covered(bench: Bench, *, repetitions: int) -> list[dict[str, Any]]:
    """A row per patch size: Sliding Patch's passes in whole and in part, taking turns."""
    found = []
    passes = ModelRunner(bench.adapted, bench.batch_size, fast=runner.fused_copy(bench.adapted))
    sizes = {made.hyperparameters["patch_size"] for made in bench.settings("sliding_patch")}
    for size in sorted(sizes):
        # Eight places along an axis: enough for whole batches, the same for every size.
        starts = tuple(np.linspace(0, bench.case.side - size, 8).astype(int).tolist())
        color = torch.tensor(MEAN)[None, :, None, None]
        patches = incremental.Patches(starts, starts, size, color)
        whole, part = [], []
        for _ in range(repetitions + 1):
            began = time.perf_counter()
            expected = incremental._in_whole(passes, bench.images[:1], patches)
            between = time.perf_counter()
            got = incremental.covered(passes, bench.images[:1], patches)
            part.append(time.perf_counter() - between)
            whole.append(between - began)
        drops = (expected[:, :1] - expected[:, 1:]).abs().max()
        found.append(
            {
                "case": bench.case.name,
                "patch_size": size,
                "whole_seconds": min(whole),
                "part_seconds": min(part),
                "ratio": min(whole) / min(part),
                "max_difference": float((got - expected).abs().max() / drops),
            }
        )
    return found


def compare_similarity(
    *, side: int, n_pairs: int, hog_cell: int, repetitions: int
) -> dict[str, Any]:
    """All similarities of pairs of smooth maps against loops over scikit-image and scipy.

    On as many threads as torch has, and on one, as the loops run.
    """
    rng = np.random.default_rng(0)
    shape = (n_pairs, 1, max(4, side // 8), max(4, side // 8))
    a, b = (
        torch.nn.functional.interpolate(
            torch.from_numpy(rng.standard_normal(shape)), (side, side), mode="bicubic"
        )[:, 0]
        .float()
        .numpy()
        for _ in range(2)
    )
    b = 0.5 * a + 0.5 * b
    threads = torch.get_num_threads()
    own: list[float] = []
    single: list[float] = []
    theirs: list[float] = []
    # The first round is not counted: threads and memory of a first call are nobody's merit.
    for _ in range(repetitions + 1):
        for seconds, used in ((own, threads), (single, 1)):
            torch.set_num_threads(used)
            began = time.perf_counter()
            mine = similarity.similarities("gradient", a, b, hog_cell=hog_cell)
            seconds.append(time.perf_counter() - began)
        torch.set_num_threads(threads)
        began = time.perf_counter()
        found = peers.similarities(a, b, hog_cell=hog_cell)
        theirs.append(time.perf_counter() - began)
    ours, alone, peer = (statistics.median(seconds[1:]) for seconds in (own, single, theirs))
    apart = max(
        float(np.abs(mine[metric, convention].numpy() - found[f"{metric} {convention}"]).max())
        for metric, convention in (name.split() for name in found)
    )
    return {
        "case": f"{n_pairs} pairs of {side} px",
        "own_seconds": ours,
        "one_thread_seconds": alone,
        "peer_seconds": peer,
        "ratio": peer / ours,
        "one_thread_ratio": peer / alone,
        "max_difference": apart,
        "equal": apart <= 1e-6,
    }


def summary(rows: Sequence[Mapping[str, Any]], ratio: float) -> dict[str, dict[str, float]]:
    """Per case, all sweeps summed: what `bench.json` holds.

    `_distinct` counts a setting that stands in several sweeps once for the peers too; `_runs` are
    the ratios of each repetition.
    """
    table = pd.DataFrame(rows)
    found = {}
    for name, part in table.groupby("case", sort=False):
        own = part["own_seconds"].sum()
        ratios = {
            f"sweep_{kind}_ratio": float(part[f"{kind}_seconds"].sum() / own)
            for kind in ("fp32", "channels_last", "fp32_distinct", "channels_last_distinct")
        }
        runs = {
            kind: np.sum([np.array(run[kind]) for run in part["runs"]], axis=0)
            for kind in ("own", *KINDS)
        }
        found[str(name)] = {
            **ratios,
            **{f"sweep_{kind}_runs": (runs[kind] / runs["own"]).tolist() for kind in KINDS},
            "model_time_share": float(part["passes_seconds"].sum() / own),
            "similarity_ratio": ratio,
            "maps_equal": bool(part["equal"].all()),
        }
    return found
