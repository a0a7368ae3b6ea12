"""Training of a network, on clean images or on attacked ones.

`stages/train.py` trains each model of params; a robust twin differs from a regular model by its
recipe's `attack` alone. Under `torchrun`, processes share each batch:

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from steadymap.models.registry import (
    Normalized,
    build,
    choose_device,
    load_state,
    read_state,
    source_sha256,
)
from steadymap.params.schema import Recipe, RobustAccuracy, architecture_of
from steadymap.store import fingerprint
from steadymap.store.atomic import atomic_file, atomic_folder, file_sha256, read_json, write_json
from steadymap.store.tables import write_table
from steadymap.training import checkpoints
from steadymap.training.attacks import pgd
from steadymap.training.augmentation import augmented_batches
from steadymap.training.distributed import (
    SINGLE_PROCESS,
    ProcessGroup,
    is_first_process,
    process_group,
)

logger = logging.getLogger(__name__)

CURVES = (
    *("epoch", "train_loss", "train_accuracy", "val_accuracy", "val_robust_accuracy"),
    "learning_rate",
)

# Robust accuracy after each epoch shows progress; it takes fewer images and steps than the final
# one.
_CURVE_IMAGES, _CURVE_STEPS = 128, 7

_EVALUATION_BATCH = 200

# Keys of a card that tell the precision of its training, and what `auto` measured.
_PRECISION = ("precision", "step_seconds")

# Called after each epoch with the card and the curves so far.
OnEpoch = Callable[[dict[str, Any], pd.DataFrame], None]


@dataclass(frozen=True)
class TrainingSpec:
    """Everything that the weights and accuracies of a model depend on.

    Attributes
    ----------
    model : str
        Name of the model, with `-r` at its end for a robust twin.
    recipe : Recipe
        How to train; `weights`, `pretrained` or `checkpoint` name finished weights instead.
    dataset : Dataset
        With splits train and val.
    threat : RobustAccuracy
        Attack that robust accuracy is measured under.
    init_folder : Path, optional
        Folder of the model to start from, where `recipe.init_from` names one.
    """

    model: str
    recipe: Recipe
    dataset: Dataset
    threat: RobustAccuracy
    init_folder: Path | None = None

    @property
    def init_sha256(self) -> str | None:
        """Hash of the weights that training starts from; None where it starts at random."""
        if not self.recipe.init_from or not self.init_folder:
            return None
        return read_json(self.init_folder / "card.json")["weights_sha256"]

    @property
    def digest(self) -> str:
        """Name of the training in the cache, a hash."""
        return recipe_digest(
            self.model,
            self.recipe,
            self.dataset,
            threat=self.threat,
            init_sha256=self.init_sha256,
        )

    def split(self, name: str) -> tuple[np.ndarray | Originals, np.ndarray]:
        """Images and label indices of a split."""
        labels = self.dataset.rows(name)["label"].to_numpy(copy=True)
        return self.dataset.images[name], labels


def recipe_digest(
    model: str, recipe: Recipe, dataset: Dataset, *, threat: RobustAccuracy, init_sha256: str | None
) -> str:
    """Hash of everything that trained weights and their accuracies depend on.

    Parameters
    ----------
    model, recipe, dataset, threat
        As in `TrainingSpec`.
    init_sha256 : str or None
        Hash of the weights that training starts from.
    """
    inputs = {
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
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _batch(images: np.ndarray, device: torch.device) -> Tensor:
    batch = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
    return batch.to(torch.float32, memory_format=torch.channels_last) / 255


def accuracy(
    model: nn.Module,
    images: np.ndarray | Originals,
    labels: np.ndarray,
    *,
    attack: RobustAccuracy | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
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
        Attack on the images before they are classified.
    group : ProcessGroup
        Processes among which the images are divided.

    Returns
    -------
    float
        In [0, 1].
    """
    model.eval()
    device = next(model.parameters()).device
    n_correct = 0
    for start in range(0, len(images), _EVALUATION_BATCH)[group.share]:
        # A random start depends neither on earlier draws nor on the process.
        generator = torch.Generator().manual_seed(derived_seed("accuracy", start))
        batch = _batch(images[start : start + _EVALUATION_BATCH], device)
        truth = torch.as_tensor(labels[start : start + _EVALUATION_BATCH], device=device)
        if attack is not None:
            batch = pgd(model, batch, truth, attack, generator=generator)
        with torch.no_grad():
            n_correct += int((model(batch).argmax(1) == truth).sum())
    (total,) = group.total(n_correct)
    return total / len(images)


def _accuracies(
    module: nn.Module, spec: TrainingSpec, attack: RobustAccuracy, group: ProcessGroup
) -> tuple[float, float]:
    """Accuracy on all validation images, and under an attack on the first of them."""
    images, labels = spec.split("val")
    few = slice(attack.n_images)
    robust = accuracy(module, images[few], labels[few], attack=attack, group=group)
    return accuracy(module, images, labels, group=group), robust


def add_heads(network: nn.Module, *, n_classes: int, seed: int) -> None:
    """Add auxiliary heads to a GoogLeNet or InceptionV3, to be trained with it.

    Parameters
    ----------
    network
        Network to change in place.
    n_classes
        Classes of the heads.
    seed
        Seed of their weights.

    Raises
    ------
    ValueError
        Where the architecture has no auxiliary heads.
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
    """Remove the auxiliary heads of a network, which only training uses."""
    for name in ("aux1", "aux2", "AuxLogits"):
        if getattr(network, name, None) is not None:
            setattr(network, name, None)
    if isinstance(network, (GoogLeNet, Inception3)):
        network.aux_logits = False


def loss_of(
    outputs: Any,
    truth: Tensor,
    recipe: Recipe,
    *,
    n_batch: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor]:
    """Loss of this process's share of a batch, and its logits.

    The mean of the result over processes is the loss of the whole batch, so that averaged gradients
    are those of the whole batch even where shares differ in size.

    Parameters
    ----------
    outputs : Tensor or tuple of Tensor
        Logits (share, classes); with auxiliary heads also theirs.
    truth : Tensor
        Labels of this process's share.
    recipe : Recipe
        Gives `label_smoothing` and `auxiliary_weight`.
    n_batch : int
        Images in the whole batch.
    group : ProcessGroup
        Processes that share the batch.

    Returns
    -------
    loss : Tensor
        Scalar.
    logits : Tensor
        Float32 (share, classes).
    """
    main, *auxiliary = (outputs,) if isinstance(outputs, Tensor) else outputs
    logits = main.float()
    smoothing = recipe.label_smoothing
    loss = F.cross_entropy(logits, truth, label_smoothing=smoothing)
    for head in auxiliary:
        head_loss = F.cross_entropy(head.float(), truth, label_smoothing=smoothing)
        loss = loss + (recipe.auxiliary_weight or 0.0) * head_loss
    return loss * (len(truth) * group.size / n_batch), logits


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
    """Seconds of a step after a first one to warm up: the shorter of two."""
    durations = []
    for _ in range(3):
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - began)
    return min(durations[1:])


def faster_precision(
    module: nn.Module, recipe: Recipe, card: dict[str, Any], group: ProcessGroup = SINGLE_PROCESS
) -> tuple[str, dict[str, float]]:
    """Precision in which a training step takes less time on this machine.

    A step is a forward and a backward pass of a copy of the network over this process's share of a
    batch. Seconds are summed over processes, so that all choose the same precision.

    Parameters
    ----------
    module : nn.Module
        Network in training, from [0, 1] images to logits.
    recipe : Recipe
        Gives the batch size and the loss.
    card : dict
        Gives `image_size`, px, and `classes`.
    group : ProcessGroup
        Processes that train together.

    Returns
    -------
    precision : str
        `float32` or `bf16`.
    seconds : dict of str to float
        Seconds of a step in each precision.
    """
    device = next(module.parameters()).device
    network = copy.deepcopy(module).train()
    # BatchNorm has nothing to normalize in a single image.
    n, side = max(2, recipe.batch_size // group.size), card["image_size"]
    batch = torch.rand((n, 3, side, side), device=device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    truth = torch.arange(n, device=device) % len(card["classes"])
    seconds = {}
    for precision in ("float32", "bf16"):

        def step(enabled: bool = precision == "bf16") -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                loss, _ = loss_of(network(batch), truth, recipe, n_batch=n)
            loss.backward()

        (seconds[precision],) = group.total(_step_seconds(step, device))
    return min(seconds, key=seconds.__getitem__), seconds


def _choose_precision(
    model: str, recipe: Recipe, module: nn.Module, card: dict[str, Any], group: ProcessGroup
) -> dict[str, Any]:
    """Entries of the card about the precision of a training that begins."""
    if recipe.precision == "auto":
        precision, seconds = faster_precision(module, recipe, card, group)
        shown = ", ".join(f"{value:.3g} s in {name}" for name, value in seconds.items())
        logger.info("%s: a step takes %s; training in %s", model, shown, precision)
        return {"precision": precision, "step_seconds": seconds}
    on_cpu = next(module.parameters()).device.type == "cpu"
    if recipe.precision == "bf16" and on_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2":
        logger.warning(
            "training.%s.precision is bf16, which this processor has no instructions for: a step "
            "may take several times as long as in float32; set precision: auto",
            model,
        )
    return {"precision": recipe.precision}


def _read_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """State after the last epoch of a killed training; None if there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        # torch does not notice changed bytes; the checksums of the archive do.
        with zipfile.ZipFile(path) as archive:
            if changed := archive.testzip():
                raise zipfile.BadZipFile(f"{changed} has changed since it was written")
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error) as error:
        logger.warning("%s: damaged (%s); training begins anew", path, error)
        return None
    return state


def _initial_network(spec: TrainingSpec, architecture: str) -> nn.Module:
    """Network before training: random, or with the weights of another model."""
    recipe, n_classes = spec.recipe, len(spec.dataset.classes)
    network = build(architecture, n_classes, seed=recipe.seed)
    if recipe.init_from and spec.init_folder:
        weights = spec.init_folder / "weights.safetensors"
        load_state(network, read_state(weights), source=str(weights))
    if recipe.auxiliary_weight is not None:
        add_heads(network, n_classes=n_classes, seed=recipe.seed)
    return network


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    return torch.optim.SGD(
        module.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0,
    )


class _Trainer:
    """A network in training, with its optimizer, its curves and its best epoch.

    The randomness of an epoch is keyed by seed and epoch, so that a resumed training repeats it.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        card: dict[str, Any],
        checkpoint: Path,
        device: torch.device,
        group: ProcessGroup,
    ):
        self.spec, self.recipe, self.card, self.group = spec, spec.recipe, card, group
        self.checkpoint, self.device = checkpoint, device
        self.network = _initial_network(spec, card["architecture"])
        module = Normalized(self.network, card["mean"], card["std"])
        self.module = module.to(device).to(memory_format=torch.channels_last)
        self.optimizer = _optimizer(self.module, self.recipe)
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        self._resume()
        # The module that gradients go through; it averages them over processes.
        self.learner: nn.Module = self.module
        if group.size > 1:
            self.learner = DistributedDataParallel(self.module)
        self.images, self.labels = spec.split("train")
        self.curve_attack = spec.threat
        if self.recipe.keep == "last":
            limits = {
                "n_images": min(_CURVE_IMAGES, spec.threat.n_images),
                "steps": min(_CURVE_STEPS, spec.threat.steps),
            }
            self.curve_attack = spec.threat.model_copy(update=limits)

    def _resume(self) -> None:
        """Go on from the checkpoint of a killed training, or decide how to train."""
        state = _read_checkpoint(self.checkpoint, self.device)
        if state is not None:
            self.module.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.rows, self.best = state["rows"], state["best"]
            self.card |= state["precision"]
            n_epochs = self.recipe.epochs
            logger.info(
                "%s: going on after epoch %d of %d", self.spec.model, len(self.rows), n_epochs
            )
            return
        self.card |= _choose_precision(
            self.spec.model, self.recipe, self.module, self.card, self.group
        )
        if self.recipe.precision == "auto":
            # Timed again after a kill in the first epoch, another precision might win.
            self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Write what a later process needs to go on from here."""
        if self.group.is_first:
            state = {
                "model": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "precision": {key: self.card[key] for key in _PRECISION if key in self.card},
                "rows": self.rows,
                "best": self.best,
            }
            with atomic_file(self.checkpoint) as temporary:
                torch.save(state, temporary)
        self.group.wait()

    @property
    def curves(self) -> pd.DataFrame:
        """A row for each epoch so far."""
        return pd.DataFrame(self.rows, columns=list(CURVES))

    def _share_images(self, batches: list[np.ndarray], epoch: int) -> Iterator[Tensor]:
        """Images of this process's share of each batch, augmented as the recipe says."""
        shares = [positions[self.group.share] for positions in batches]
        if self.recipe.augmentation == "none":
            for positions in shares:
                yield _batch(self.images[positions], self.device)
            return
        for images in augmented_batches(
            self.images,
            shares,
            image_size=self.card["image_size"],
            seed=self.recipe.seed,
            epoch=epoch,
            n_processes=self.group.size,
        ):
            yield images.to(self.device, memory_format=torch.channels_last)

    def _step(
        self, images: Tensor, truth: Tensor, n_batch: int, generator: torch.Generator
    ) -> tuple[float, int]:
        """Train on one batch; the loss, and how many of this process's share are right."""
        bf16 = self.card["precision"] == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            if self.recipe.attack is not None:
                self.module.eval()
                self.module.requires_grad_(False)
                images = pgd(self.module, images, truth, self.recipe.attack, generator=generator)
                self.module.requires_grad_(True)
            self.learner.train()
            outputs = self.learner(images)
            loss, logits = loss_of(outputs, truth, self.recipe, n_batch=n_batch, group=self.group)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach()), int((logits.argmax(1) == truth).sum())

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Train for one epoch, and return its row of the curves but for the validation."""
        recipe, model, share = self.recipe, self.spec.model, self.group.share
        rank = [self.group.rank] if self.group.rank else []
        rng = np.random.default_rng(derived_seed("epoch", model, recipe.seed, epoch))
        generator = torch.Generator().manual_seed(derived_seed("attack", recipe.seed, epoch, *rank))
        torch.manual_seed(derived_seed("dropout", model, recipe.seed, epoch, *rank))
        n, size = len(self.images), recipe.batch_size
        order = rng.permutation(n)
        # A last batch of one image, in any process, would give BatchNorm nothing to normalize.
        starts = [start for start in range(0, n, size) if n - start >= 2 * self.group.size]
        batches = [np.sort(order[start : start + size]) for start in starts]
        total_loss, n_correct, rate = 0.0, 0.0, 0.0
        shares = self._share_images(batches, epoch)
        for step, (positions, images) in enumerate(zip(batches, shares, strict=True)):
            rate = _learning_rate(recipe, epoch + step / len(batches))
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = rate
            truth = torch.as_tensor(self.labels[positions[share]], device=self.device)
            if recipe.flip:
                is_flipped = (rng.random(len(positions)) < 0.5)[share]
                mask = torch.as_tensor(is_flipped, device=self.device).reshape(-1, 1, 1, 1)
                images = torch.where(mask, images.flip(3), images)
            loss, correct = self._step(images, truth, len(positions), generator)
            total_loss += loss * len(positions) / self.group.size
            n_correct += correct
        total_loss, n_correct = self.group.total(total_loss, n_correct)
        if not math.isfinite(total_loss):
            raise FloatingPointError(
                f"training.{model}: the loss is {total_loss} in epoch {epoch + 1}; "
                f"lower learning_rate {recipe.learning_rate} or set precision: float32"
            )
        return {
            "epoch": epoch + 1,
            "train_loss": total_loss / n,
            "train_accuracy": n_correct / n,
            "learning_rate": rate,
        }

    def validate(self) -> dict[str, float]:
        """Accuracies after an epoch, the robust one on few images."""
        clean, robust = _accuracies(self.module, self.spec, self.curve_attack, self.group)
        return {"val_accuracy": clean, "val_robust_accuracy": robust}

    def keep_best(self) -> None:
        """Keep the last epoch's weights if its robust accuracy is the highest so far."""
        row = self.rows[-1]
        reached = row["val_robust_accuracy"]
        if self.best is None or reached > self.best["val_robust_accuracy"]:
            weights = {name: value.clone() for name, value in self.module.state_dict().items()}
            self.best = {"epoch": row["epoch"], "val_robust_accuracy": reached, "model": weights}

    def log_epoch(self, seconds: float) -> None:
        """Log the last epoch, which took so many seconds, and the time that is left."""
        row, n_epochs = self.rows[-1], self.recipe.epochs
        logger.info(
            "%s epoch %d/%d: loss %.3f, validation %.1f %%, under attack %.1f %%, %.0f s left",
            self.spec.model,
            row["epoch"],
            n_epochs,
            row["train_loss"],
            100 * row["val_accuracy"],
            100 * row["val_robust_accuracy"],
            seconds * (n_epochs - row["epoch"]),
        )

    def finish(self) -> nn.Module:
        """The trained network, of the best epoch if the recipe keeps that."""
        if self.best is not None:
            self.module.load_state_dict(self.best["model"])
            self.card["best_epoch"] = self.best["epoch"]
        drop_heads(self.network)
        return self.network


def _fit(
    spec: TrainingSpec,
    card: dict[str, Any],
    checkpoint: Path,
    device: torch.device,
    group: ProcessGroup,
    on_epoch: OnEpoch | None,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train a network to the end, from a checkpoint if there is one; its curves with it."""
    trainer = _Trainer(spec, card, checkpoint, device, group)
    for epoch in range(len(trainer.rows), spec.recipe.epochs):
        began = time.monotonic()
        trained = trainer.train_epoch(epoch)
        trainer.rows.append(trained | trainer.validate())
        if spec.recipe.keep == "best":
            trainer.keep_best()
        trainer.save_checkpoint()
        if group.is_first:
            trainer.log_epoch(time.monotonic() - began)
            if on_epoch is not None:
                on_epoch(copy.deepcopy(card), trainer.curves)
    return trainer.finish(), trainer.curves


def _measure(
    network: nn.Module,
    card: dict[str, Any],
    spec: TrainingSpec,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Accuracies for the card: clean on all validation images, robust on the threat's."""
    module = Normalized(network, card["mean"], card["std"])
    module = module.to(device).to(memory_format=torch.channels_last).requires_grad_(False)
    n_images = len(spec.dataset.images["val"])
    clean, robust = _accuracies(module, spec, spec.threat, group)
    return {
        "clean": clean,
        "n_clean": n_images,
        "robust": robust,
        "n_robust": min(n_images, spec.threat.n_images),
        "attack": spec.threat.model_dump(mode="json", exclude={"n_images"}),
    }


def _save(network: nn.Module, card: dict[str, Any], folder: Path) -> None:
    """Write weights and card of a model."""
    path = folder / "weights.safetensors"
    state = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    safetensors.torch.save_file(state, path)
    card["n_parameters"] = sum(parameter.numel() for parameter in network.parameters())
    card["weights_sha256"] = file_sha256(path)
    card["torch"] = torch.__version__
    write_json(card, folder / "card.json")


def _take_weights(spec: TrainingSpec, folder: Path, cache: Path, device: str) -> dict[str, Any]:
    """Take finished weights, and measure them on this data set."""
    recipe = spec.recipe
    # A failed measurement leaves no folder.
    with atomic_folder(folder) as temporary:
        if recipe.weights is not None and Path(recipe.weights).is_dir():
            network, card = checkpoints.copy_model(spec.model, recipe, temporary)
            card["accuracies"] = _measure(network, card, spec, choose_device(device))
            write_json(card, temporary / "card.json")
        else:
            network, card = checkpoints.convert_recipe(
                spec.model, recipe, spec.dataset, temporary, cache=cache
            )
            card["accuracies"] = _measure(network, card, spec, choose_device(device))
            _save(network, card, temporary)
            write_table(pd.DataFrame(columns=list(CURVES)), temporary / "curves.csv")
    return card


def _train(
    spec: TrainingSpec, finished: Path, checkpoint: Path, device: str, on_epoch: OnEpoch | None
) -> dict[str, Any]:
    """Train a model into the cache, together with the other processes of `torchrun`."""
    description = spec.dataset.description
    card = checkpoints.model_card(
        spec.model,
        spec.recipe,
        spec.dataset,
        robust=spec.recipe.attack is not None,
        mean=description["mean"],
        std=description["std"],
        origin={"recipe_digest": spec.digest[:16], "init_sha256": spec.init_sha256},
    )
    target = choose_device(device)
    with process_group(target.type) as group, torch.random.fork_rng():
        on_epoch = on_epoch if group.is_first else None
        network, curves = _fit(spec, card, checkpoint, target, group, on_epoch)
        card["accuracies"] = _measure(network, card, spec, target, group)
        if group.is_first:
            card["n_processes"] = group.size
            with atomic_folder(finished) as temporary:
                _save(network, card, temporary)
                write_table(curves, temporary / "curves.csv")
            checkpoint.unlink(missing_ok=True)
        group.wait()
    return card


def train(
    spec: TrainingSpec,
    folder: Path,
    *,
    cache: Path,
    device: str = "auto",
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Train a model into a folder, or take it from the cache.

    After each epoch a checkpoint goes to the cache: a killed training goes on from there and ends
    in the same weights. The number of processes is not part of a training's name in the cache, so
    that another number may go on with it; the weights are the same only for the same number.

    Parameters
    ----------
    spec : TrainingSpec
        Model, recipe, data and threat.
    folder : Path
        Gets `weights.safetensors`, `card.json`, `curves.csv`.
    cache : Path
        Folder for checkpoints and finished trainings.
    device : str
        `auto`, `cpu`, `cuda`, `mps`.
    on_epoch : callable, optional
        Called after each epoch with the card and the curves so far.

    Returns
    -------
    dict
        The card.
    """
    if spec.recipe.is_given:
        return _take_weights(spec, folder, cache, device)
    name = spec.digest[:32]
    finished = cache / name
    if not (finished / "card.json").is_file():
        card = _train(spec, finished, cache / f"{name}.checkpoint.pt", device, on_epoch)
        if not is_first_process():
            return card
    if not is_first_process():
        return read_json(finished / "card.json")
    with atomic_folder(folder) as temporary:
        shutil.copytree(finished, temporary, dirs_exist_ok=True)
    return read_json(folder / "card.json")
