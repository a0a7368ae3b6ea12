"""One loop that trains a network, on clean images or on attacked ones.

`stages/train.py` calls `train` for each model of params; a robust twin differs from a regular one
by its recipe's `attack` alone. Under `torchrun`, processes share each batch:

    torchrun --nproc-per-node 4 stages/train.py googlenet-r

fills the training cache, from which `dvc repro` then takes the model.
"""

import copy
import hashlib
import json
import logging
import math
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import GoogLeNet, Inception3
from torchvision.models.googlenet import InceptionAux as GoogLeNetHead
from torchvision.models.inception import InceptionAux as InceptionHead

from steadymap.data.dataset import Dataset
from steadymap.data.originals import Originals
from steadymap.draws import derived_seed
from steadymap.models.registry import build, choose_device, load_state, read_state, source_sha256
from steadymap.params.methods import ROBUST
from steadymap.params.schema import Recipe, RobustAccuracy, architecture_of
from steadymap.store import fingerprint
from steadymap.store.atomic import atomic_file, atomic_folder, file_sha256, read_json, write_json
from steadymap.store.tables import write_table
from steadymap.training import checkpoints
from steadymap.training.attacks import pgd
from steadymap.training.augmentation import batches
from steadymap.training.distributed import ALONE, Processes, started_first, together
from steadymap.training.downloads import check_file, download

logger = logging.getLogger(__name__)

CURVES = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_accuracy",
    "val_robust_accuracy",
    "learning_rate",
)

# Robust accuracy after each epoch is a progress figure: fewer images and steps than the final one.
_CURVE_IMAGES, _CURVE_STEPS = 128, 7

_EVALUATION_BATCH = 200

# What a card says of its training's precision: which, and what `auto` chose by.
_PRECISION = ("precision", "step_seconds")


class _Normalized(nn.Module):
    """The network being trained, taking images in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        # In training, a network with auxiliary heads returns their logits too.
        return self.network((images - self.mean) / self.std)


def _batch(images: np.ndarray, device: torch.device) -> Tensor:
    batch = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
    return batch.to(torch.float32, memory_format=torch.channels_last) / 255


def accuracy(
    model: nn.Module,
    images: np.ndarray | Originals,
    labels: np.ndarray,
    *,
    attack: RobustAccuracy | None = None,
    steps: int | None = None,
    here: Processes = ALONE,
) -> float:
    """Share of images that a model classifies correctly, in float32.

    Parameters
    ----------
    model : nn.Module
        From [0, 1] images to logits; left in eval mode.
    images : ndarray or Originals
        Uint8 (n, height, width, 3).
    labels : ndarray
        Label indices (n,).
    attack : RobustAccuracy, optional
        Attack the images first.
    steps : int, optional
        Steps of the attack in place of its own.
    here : Processes
        Those among which the images are shared out, each image once.

    Returns
    -------
    float
        In [0, 1].
    """
    model.eval()
    device = next(model.parameters()).device
    correct = 0
    for start in range(0, len(images), _EVALUATION_BATCH)[here.share]:
        # A random start depends neither on what was drawn before nor on who draws.
        generator = torch.Generator().manual_seed(derived_seed("accuracy", start))
        batch = _batch(images[start : start + _EVALUATION_BATCH], device)
        truth = torch.as_tensor(labels[start : start + _EVALUATION_BATCH], device=device)
        if attack is not None:
            options = attack.model_dump(exclude={"n_images"})
            options["steps"] = steps or attack.steps
            batch = pgd(model, batch, truth, generator=generator, **options)
        with torch.no_grad():
            correct += int((model(batch).argmax(1) == truth).sum())
    (total,) = here.total(correct)
    return total / len(images)


def add_heads(network: nn.Module, *, n_classes: int, seed: int) -> None:
    """Give a GoogLeNet or InceptionV3 its auxiliary heads, to be trained along.

    Raises
    ------
    ValueError
        Where the architecture has none.
    """
    if not isinstance(network, (GoogLeNet, Inception3)):
        raise ValueError(
            f"auxiliary_weight: {type(network).__name__} has no auxiliary heads; leave it out, or "
            "train googlenet or inception_v3"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("heads", seed))
        if isinstance(network, GoogLeNet):
            network.aux1 = GoogLeNetHead(512, n_classes)
            network.aux2 = GoogLeNetHead(528, n_classes)
        else:
            network.AuxLogits = InceptionHead(768, n_classes)
    network.aux_logits = True


def drop_heads(network: nn.Module) -> None:
    """Take auxiliary heads away again: nothing but training uses them."""
    for name in ("aux1", "aux2", "AuxLogits"):
        if getattr(network, name, None) is not None:
            setattr(network, name, None)
    if isinstance(network, (GoogLeNet, Inception3)):
        network.aux_logits = False


def loss_of(
    outputs: Any, truth: Tensor, recipe: Recipe, *, n_batch: int, here: Processes = ALONE
) -> tuple[Tensor, Tensor]:
    """Loss of this process's share of a batch, and its logits.

    The mean over processes of what this gives is the loss of the whole batch, so that averaged
    gradients are the whole batch's even where shares differ in size.

    Parameters
    ----------
    outputs : Tensor or tuple of Tensor
        Logits (batch, classes); with auxiliary heads also theirs.
    truth : Tensor
        Labels of this process's share.
    recipe : Recipe
        `label_smoothing`, `auxiliary_weight`.
    n_batch : int
        Images in the whole batch.
    here : Processes
        Those that share it.
    """
    first, *others = (outputs,) if isinstance(outputs, Tensor) else outputs
    logits = first.float()
    smoothing = recipe.label_smoothing
    loss = F.cross_entropy(logits, truth, label_smoothing=smoothing)
    for other in others:
        extra = F.cross_entropy(other.float(), truth, label_smoothing=smoothing)
        loss = loss + (recipe.auxiliary_weight or 0.0) * extra
    return loss * (len(truth) * here.n / n_batch), logits


def _learning_rate(recipe: Recipe, progress: float) -> float:
    """Learning rate after `progress` epochs, batches counting as fractions."""
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if recipe.schedule == "step":
        return recipe.learning_rate * 0.1 ** (int(progress) // recipe.step_epochs)
    # One cycle: a linear rise over the first quarter, then half a cosine down to zero.
    rise = 0.25 * recipe.epochs
    if progress < rise:
        return recipe.learning_rate * (0.04 + 0.96 * progress / rise)
    fall = (progress - rise) / (recipe.epochs - rise)
    return recipe.learning_rate * max(0.5 * (1 + math.cos(math.pi * fall)), 1e-4)


def _step_seconds(step: Callable[[], None], device: torch.device) -> float:
    """Seconds that a step takes once it has run: the shorter of two."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found[1:])


def faster_precision(
    training: nn.Module, recipe: Recipe, card: dict[str, Any], here: Processes = ALONE
) -> tuple[str, dict[str, float]]:
    """Precision in which a training step takes less time here, and the seconds of each.

    A step is a forward and a backward pass of a copy of the network, of this process's share of a
    batch. Seconds are summed over processes, so that all take the same.
    """
    device = next(training.parameters()).device
    network = copy.deepcopy(training).train()
    # BatchNorm has nothing to normalize in a single image.
    n, side = max(2, recipe.batch_size // here.n), card["image_size"]
    batch = torch.rand((n, 3, side, side), device=device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    truth = torch.arange(n, device=device) % len(card["classes"])
    seconds = {}
    for precision in ("float32", "bf16"):

        def step(enabled: bool = precision == "bf16") -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                loss, _ = loss_of(network(batch), truth, recipe, n_batch=n)
            loss.backward()

        (seconds[precision],) = here.total(_step_seconds(step, device))
    return min(seconds, key=seconds.__getitem__), seconds


def recipe_digest(
    model: str, recipe: Recipe, dataset: Dataset, *, threat: RobustAccuracy, init_sha256: str | None
) -> str:
    """Hash of all that trained weights and their accuracies depend on."""
    parts = {
        "architecture": architecture_of(model, recipe),
        "own_source": source_sha256(architecture_of(model, recipe)),
        "recipe": recipe.model_dump(mode="json"),
        "threat": threat.model_dump(mode="json"),
        "data": dataset.description["digest"],
        "mean_std": [dataset.description["mean"], dataset.description["std"]],
        "classes": dataset.classes,
        "init": init_sha256,
        "torch": torch.__version__,
        "source": fingerprint.digest(
            __name__, "steadymap.models.registry", "steadymap.training.attacks"
        ),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def train(
    model: str,
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    *,
    cache: Path,
    threat: RobustAccuracy,
    init_folder: Path | None = None,
    device: str = "auto",
    on_epoch: Callable[[dict[str, Any], pd.DataFrame], None] | None = None,
) -> dict[str, Any]:
    """Train a model, or fetch it from the cache, into a folder of its own.

    After each epoch a checkpoint goes to the cache: a killed training goes on from there and ends
    in the same weights. It may go on with another number of processes, which is not part of what a
    training is called by; with the same number the weights are the same.

    Parameters
    ----------
    model : str
        Name, `-r` at its end for a robust twin.
    recipe : Recipe
        How to train; `weights`, `pretrained` or `checkpoint` name a finished model instead.
    dataset : Dataset
        With splits train and val.
    folder : Path
        Gets `weights.safetensors`, `card.json`, `curves.csv`.
    cache : Path
        Folder for checkpoints and finished trainings.
    threat : RobustAccuracy
        Attack that robust accuracy is measured under.
    init_folder : Path, optional
        Folder of the model to start from, where `recipe.init_from` names one.
    device : str
        `auto`, `cpu`, `cuda`, `mps`.
    on_epoch : callable, optional
        Called with the card so far and the curves so far.

    Returns
    -------
    dict
        The card.
    """
    architecture = architecture_of(model, recipe)
    if recipe.weights is not None and Path(recipe.weights).is_dir():
        return _adopt(model, recipe, dataset, folder, threat, device)
    if recipe.is_given:
        return _take(model, recipe, dataset, folder, cache, threat, device)
    init_card = read_json(init_folder / "card.json") if recipe.init_from and init_folder else None
    digest = recipe_digest(
        model,
        recipe,
        dataset,
        threat=threat,
        init_sha256=init_card["weights_sha256"] if init_card else None,
    )
    card: dict[str, Any] = {
        "model": model,
        "architecture": architecture,
        "source_sha256": source_sha256(architecture),
        "robust": recipe.attack is not None,
        "classes": list(dataset.classes),
        "mean": dataset.description["mean"],
        "std": dataset.description["std"],
        "image_size": dataset.description["image_size"],
        "recipe": recipe.model_dump(mode="json"),
        "recipe_digest": digest[:16],
        "init_sha256": init_card["weights_sha256"] if init_card else None,
        "data": {
            "kind": dataset.description["kind"],
            "digest": dataset.description["digest"],
            "n_train": len(dataset.images["train"]),
            "n_val": len(dataset.images["val"]),
        },
    }
    finished = cache / digest[:32]
    if not (finished / "card.json").is_file():
        checkpoint = cache / f"{digest[:32]}.checkpoint.pt"
        with together(choose_device(device).type) as here, torch.random.fork_rng():
            if not here.first:
                on_epoch = None
            network, curves = _fit(
                *(model, recipe, dataset, card, checkpoint, threat),
                *(init_folder, device, on_epoch, here),
            )
            measured = _Normalized(network, card["mean"], card["std"])
            measured = measured.to(next(network.parameters()).device)
            card["accuracies"] = _measure(measured, dataset, threat, here)
            if here.first:
                card["n_processes"] = here.n
                with atomic_folder(finished) as temporary:
                    _save(network, card, temporary)
                    write_table(curves, temporary / "curves.csv")
                checkpoint.unlink(missing_ok=True)
            here.wait()
            if not here.first:
                return card
    if not started_first():
        return read_json(finished / "card.json")
    with atomic_folder(folder) as temporary:
        shutil.copytree(finished, temporary, dirs_exist_ok=True)
    return read_json(folder / "card.json")


def _kept(checkpoint: Path, device: torch.device) -> dict[str, Any] | None:
    """State after the last epoch of a killed training, unless its file is damaged."""
    if not checkpoint.is_file():
        return None
    try:
        # torch reads changed bytes without a word; the archive's checksums tell.
        with zipfile.ZipFile(checkpoint) as archive:
            if changed := archive.testzip():
                raise zipfile.BadZipFile(f"{changed} has changed since it was written")
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location=device)
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error) as error:
        logger.warning("%s: damaged (%s); training begins anew", checkpoint, error)
        return None
    return state


def _precision(
    model: str, recipe: Recipe, training: nn.Module, card: dict[str, Any], here: Processes
) -> dict[str, Any]:
    """What the card says of the precision of a training that begins."""
    if recipe.precision == "auto":
        chosen, seconds = faster_precision(training, recipe, card, here)
        told = ", ".join(f"{value:.3g} s in {name}" for name, value in seconds.items())
        logger.info("%s: a step takes %s; training in %s", model, told, chosen)
        return {"precision": chosen, "step_seconds": seconds}
    on_cpu = next(training.parameters()).device.type == "cpu"
    if recipe.precision == "bf16" and on_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2":
        logger.warning(
            "training.%s.precision is bf16, which this processor has no instructions for: a step "
            "may take several times as long as in float32; set precision: auto",
            model,
        )
    return {"precision": recipe.precision}


def _fit(
    model: str,
    recipe: Recipe,
    dataset: Dataset,
    card: dict[str, Any],
    checkpoint: Path,
    threat: RobustAccuracy,
    init_folder: Path | None,
    device_name: str,
    on_epoch: Callable[[dict[str, Any], pd.DataFrame], None] | None,
    here: Processes = ALONE,
) -> tuple[nn.Module, pd.DataFrame]:
    device = choose_device(device_name)
    network = build(card["architecture"], len(dataset.classes), seed=recipe.seed)
    if recipe.init_from and init_folder:
        path = init_folder / "weights.safetensors"
        load_state(network, read_state(path), source=str(path))
    if recipe.auxiliary_weight is not None:
        add_heads(network, n_classes=len(dataset.classes), seed=recipe.seed)
    training = _Normalized(network, card["mean"], card["std"])
    training = training.to(device).to(memory_format=torch.channels_last)
    if recipe.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            training.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov and recipe.momentum > 0,
        )
    else:
        optimizer = torch.optim.AdamW(
            training.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    rows: list[dict[str, float]] = []
    best: dict[str, Any] | None = None
    if state := _kept(checkpoint, device):
        training.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rows, best = state["rows"], state["best"]
        card |= state["precision"]
        logger.info("%s: going on after epoch %d of %d", model, len(rows), recipe.epochs)
    else:
        card |= _precision(model, recipe, training, card, here)

    def keep() -> None:
        if here.first:
            state = {"model": training.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"precision": {key: card[key] for key in _PRECISION if key in card}}
            with atomic_file(checkpoint) as temporary:
                torch.save({**state, "rows": rows, "best": best}, temporary)
        here.wait()

    if recipe.precision == "auto" and not rows:
        # Timed anew after a kill in the first epoch, it might come out otherwise.
        keep()
    images, manifest = dataset.images["train"], dataset.rows("train")
    labels = manifest["label"].to_numpy(copy=True)
    val_images = dataset.images["val"]
    val_labels = dataset.rows("val")["label"].to_numpy(copy=True)
    learner: nn.Module = training
    if here.n > 1:
        learner = DistributedDataParallel(training)
    # A last batch of one image, in any process, would give BatchNorm nothing to normalize.
    starts = [s for s in range(0, len(images), recipe.batch_size) if len(images) - s >= 2 * here.n]
    some = slice(threat.n_images if recipe.keep == "best" else min(_CURVE_IMAGES, threat.n_images))
    steps = threat.steps if recipe.keep == "best" else min(_CURVE_STEPS, threat.steps)
    for epoch in range(len(rows), recipe.epochs):
        began = time.monotonic()
        # Everything random is keyed by (seed, epoch), so that a resumed run repeats it.
        rank = [here.rank] if here.rank else []
        rng = np.random.default_rng(derived_seed("epoch", model, recipe.seed, epoch))
        generator = torch.Generator().manual_seed(derived_seed("attack", recipe.seed, epoch, *rank))
        torch.manual_seed(derived_seed("dropout", model, recipe.seed, epoch, *rank))
        order = rng.permutation(len(images))
        drawn = [np.sort(order[start : start + recipe.batch_size]) for start in starts]
        prepared = None
        if recipe.augmentation == "imagenet":
            prepared = iter(
                batches(
                    images,
                    [chosen[here.share] for chosen in drawn],
                    image_size=card["image_size"],
                    seed=recipe.seed,
                    epoch=epoch,
                    n_processes=here.n,
                )
            )
        total_loss, total_correct = 0.0, 0.0
        for step, chosen in enumerate(drawn):
            rate = _learning_rate(recipe, epoch + step / len(starts))
            for group in optimizer.param_groups:
                group["lr"] = rate
            mine = chosen[here.share]
            if prepared is None:
                batch = _batch(images[mine], device)
            else:
                batch = next(prepared).to(device, memory_format=torch.channels_last)
            truth = torch.as_tensor(labels[mine], device=device)
            if recipe.flip:
                turned = (rng.random(len(chosen)) < 0.5)[here.share]
                flipped = torch.as_tensor(turned, device=device)
                batch = torch.where(flipped.reshape(-1, 1, 1, 1), batch.flip(3), batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=card["precision"] == "bf16"):
                if recipe.attack is not None:
                    training.eval()
                    options = recipe.attack.model_dump()
                    training.requires_grad_(False)
                    batch = pgd(training, batch, truth, generator=generator, **options)
                    training.requires_grad_(True)
                learner.train()
                outputs = learner(batch)
                loss, logits = loss_of(outputs, truth, recipe, n_batch=len(chosen), here=here)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total_loss += float(loss.detach()) * len(chosen) / here.n
            total_correct += int((logits.argmax(1) == truth).sum())
        total_loss, total_correct = here.total(total_loss, total_correct)
        if not math.isfinite(total_loss):
            raise FloatingPointError(
                f"training.{model}: the loss is {total_loss} in epoch {epoch + 1}; "
                f"lower learning_rate {recipe.learning_rate} or set precision: float32"
            )
        rows.append(
            {
                "epoch": epoch + 1,
                "train_loss": total_loss / len(images),
                "train_accuracy": total_correct / len(images),
                "val_accuracy": accuracy(training, val_images, val_labels, here=here),
                "val_robust_accuracy": accuracy(
                    training,
                    val_images[some],
                    val_labels[some],
                    attack=threat,
                    steps=steps,
                    here=here,
                ),
                "learning_rate": rate,
            }
        )
        if recipe.keep == "best":
            reached = rows[-1]["val_robust_accuracy"]
            if best is None or reached > best["val_robust_accuracy"]:
                weights = {name: value.clone() for name, value in training.state_dict().items()}
                best = {"epoch": epoch + 1, "val_robust_accuracy": reached, "model": weights}
        keep()
        if not here.first:
            continue
        left = (time.monotonic() - began) * (recipe.epochs - epoch - 1)
        logger.info(
            "%s epoch %d/%d: loss %.3f, validation %.1f %%, under attack %.1f %%, %.0f s left",
            model,
            epoch + 1,
            recipe.epochs,
            rows[-1]["train_loss"],
            100 * rows[-1]["val_accuracy"],
            100 * rows[-1]["val_robust_accuracy"],
            left,
        )
        if on_epoch is not None:
            on_epoch(copy.deepcopy(card), pd.DataFrame(rows, columns=list(CURVES)))
    if best is not None:
        training.load_state_dict(best["model"])
        card["best_epoch"] = best["epoch"]
    drop_heads(network)
    return network, pd.DataFrame(rows, columns=list(CURVES))


def _measure(
    model: nn.Module, dataset: Dataset, threat: RobustAccuracy, here: Processes = ALONE
) -> dict[str, Any]:
    images, labels = dataset.images["val"], dataset.rows("val")["label"].to_numpy(copy=True)
    some = slice(threat.n_images)
    model.requires_grad_(False)
    return {
        "clean": accuracy(model, images, labels, here=here),
        "n_clean": len(images),
        "robust": accuracy(model, images[some], labels[some], attack=threat, here=here),
        "n_robust": len(images[some]),
        "attack": threat.model_dump(mode="json", exclude={"n_images"}),
    }


def _measured(
    network: nn.Module, card: dict[str, Any], dataset: Dataset, threat: RobustAccuracy, device: str
) -> dict[str, Any]:
    model = _Normalized(network, card["mean"], card["std"])
    model = model.to(choose_device(device)).to(memory_format=torch.channels_last)
    return _measure(model, dataset, threat)


def _adopt(
    model: str,
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    threat: RobustAccuracy,
    device: str,
) -> dict[str, Any]:
    """Take a finished model's folder, and measure it on this data set."""
    given = Path(str(recipe.weights))
    card = read_json(given / "card.json")
    found = (card["architecture"], card["robust"])
    expected = (architecture_of(model, recipe), model.endswith(ROBUST))
    if found != expected:
        raise ValueError(
            f"training.{model}.weights: {given} holds {found[0]!r}, robust {found[1]}; "
            f"{model} needs {expected[0]!r}, robust {expected[1]}"
        )
    if file_sha256(given / "weights.safetensors") != card["weights_sha256"]:
        raise ValueError(
            f"{given}/weights.safetensors: not the weights of its card; take the folder again"
        )
    network = build(card["architecture"], len(card["classes"]))
    load_state(network, read_state(given / "weights.safetensors"), source=str(given))
    card |= {"model": model, "source_sha256": source_sha256(card["architecture"])}
    card["accuracies"] = _measured(network, card, dataset, threat, device)
    with atomic_folder(folder) as temporary:
        shutil.copyfile(given / "weights.safetensors", temporary / "weights.safetensors")
        shutil.copyfile(given / "curves.csv", temporary / "curves.csv")
        write_json(card, temporary / "card.json")
    return card


def _take(
    model: str,
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    cache: Path,
    threat: RobustAccuracy,
    device: str,
) -> dict[str, Any]:
    """Convert weights that were made elsewhere, and measure them on this data set."""
    architecture = architecture_of(model, recipe)
    # Converted beside the folder, for a failed measurement must leave none.
    with atomic_folder(folder) as temporary:
        converted = _converted(model, recipe, dataset, cache, temporary / "converted")
        given = converted["normalization"]
        card: dict[str, Any] = {
            "model": model,
            "architecture": architecture,
            "source_sha256": source_sha256(architecture),
            "robust": model.endswith(ROBUST),
            "classes": list(dataset.classes),
            "mean": converted["mean"],
            "std": converted["std"],
            "image_size": dataset.description["image_size"],
            "recipe": recipe.model_dump(mode="json"),
            "init_sha256": None,
            "checkpoint": {
                **{key: converted[key] for key in ("source", "sha256", "format")},
                **{key: converted[key] for key in ("within", "prefix")},
                "rules": converted["rules"],
                "n_dropped": len(converted["dropped"]),
                "n_filled": len(converted["filled"]),
                "normalization": given,
            },
            "data": {
                "kind": dataset.description["kind"],
                "digest": dataset.description["digest"],
                "n_train": 0,
                "n_val": len(dataset.images["val"]),
            },
        }
        network = build(architecture, len(dataset.classes))
        path = temporary / "converted" / "weights.safetensors"
        load_state(network, read_state(path), source=str(recipe.weights))
        card["accuracies"] = _measured(network, card, dataset, threat, device)
        _save(network, card, temporary)
        shutil.copyfile(path.with_name("card.json"), temporary / "conversion.json")
        shutil.rmtree(path.parent)
        write_table(pd.DataFrame(columns=list(CURVES)), temporary / "curves.csv")
    return card


def _converted(
    model: str, recipe: Recipe, dataset: Dataset, cache: Path, destination: Path
) -> dict[str, Any]:
    """Card of the conversion of a recipe's weights file, which is fetched if need be."""
    architecture = architecture_of(model, recipe)
    mean, std, transform_input = recipe.mean, recipe.std, recipe.transform_input
    if recipe.pretrained is not None:
        key, wanted = "pretrained", checkpoints.pretrained(architecture, recipe.pretrained)
        directory = Path(recipe.directory) if recipe.directory is not None else None
        path = checkpoints.pretrained_file(wanted, cache=cache, directory=directory)
        source, transform_input = wanted.url, wanted.transform_input
        mean, std = list(wanted.mean), list(wanted.std)
        if dataset.description["image_size"] != wanted.image_size:
            logger.warning(
                "%s: torchvision's weights are for images of %d px, these have %d",
                model,
                wanted.image_size,
                dataset.description["image_size"],
            )
    else:
        key = "weights" if recipe.weights is not None else "checkpoint"
        source = str(recipe.weights or recipe.checkpoint)
        path = _file(source, recipe.sha256, cache)
    try:
        converted = checkpoints.convert(
            path,
            architecture=architecture,
            n_classes=len(dataset.classes),
            destination=destination,
            within=recipe.checkpoint_key,
            prefix=recipe.checkpoint_prefix,
            mean=mean,
            std=std,
            transform_input=transform_input,
            source=source,
        )
    except ValueError as error:
        raise ValueError(f"training.{model}.{key}: {error}") from None
    if converted["mean"] is None:
        statistics = dataset.description["mean"], dataset.description["std"]
        transforms = converted["normalization"]["transform_input"]
        effective = checkpoints.normalization(*statistics, transform_input=transforms)
        converted["mean"], converted["std"] = effective
        converted["normalization"] |= {
            "mean": statistics[0],
            "std": statistics[1],
            "from": "data",
        }
    return converted


def _file(source: str, sha256: str | None, cache: Path) -> Path:
    """A weights file by its path or address, its sha256 checked where params name it."""
    if source.startswith(("http://", "https://")):
        assert sha256 is not None
        name = urlsplit(source).path.rsplit("/", 1)[-1] or "weights"
        # Two addresses may end in the same name.
        return download(source, cache / f"{sha256[:16]}-{name}", sha256=sha256)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; place the weights there (docs/checkpoints.md says which)"
        )
    return check_file(path, sha256=sha256) if sha256 is not None else path


def _save(network: nn.Module, card: dict[str, Any], folder: Path) -> None:
    path = folder / "weights.safetensors"
    state = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    safetensors.torch.save_file(state, path)
    card["n_parameters"] = sum(parameter.numel() for parameter in network.parameters())
    card["weights_sha256"] = file_sha256(path)
    card["torch"] = torch.__version__
    write_json(card, folder / "card.json")
