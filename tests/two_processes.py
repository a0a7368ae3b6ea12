"""Single steps of a tiny network under torchrun, for test_distributed.py.

Their gradients are written to FOLDER/train.pt and FOLDER/eval.pt.

Usage: torchrun --nproc-per-node 2 tests/two_processes.py FOLDER
"""

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from conftest import Tiny, perturb
from steadymap.params.schema import Recipe
from steadymap.training.distributed import SINGLE_PROCESS, process_group
from steadymap.training.loop import loss_of

N = 11


def gradients(mode, group=SINGLE_PROCESS, share=slice(None), n=N):
    """Gradients of every parameter, from this process's share of a batch of 11."""
    torch.manual_seed(0)
    network = perturb(Tiny())
    images = torch.rand((N, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(N) % 5
    learner = DistributedDataParallel(network) if group.size > 1 else network
    learner.train(mode == "train")
    loss, _ = loss_of(learner(images[share]), labels[share], Recipe(), n_batch=n, group=group)
    loss.backward()
    return {name: value.grad for name, value in network.named_parameters()}


if __name__ == "__main__":
    with process_group("cpu") as group:
        for mode in ("train", "eval"):
            found = gradients(mode, group, group.share)
            if group.is_first:
                torch.save(found, Path(sys.argv[1]) / f"{mode}.pt")
        assert group.total(group.rank, 1) == [1, 2]
