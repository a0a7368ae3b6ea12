"""The processes that train one network together, as `torchrun` starts them, or one alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed


@dataclass(frozen=True)
class Processes:
    """A process among those that train together.

    Attributes
    ----------
    rank : int
        Its number, from 0.
    n : int
        How many there are.
    local_rank : int
        Its number on its machine: that of its GPU.
    """

    rank: int = 0
    n: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Which of a batch's images are this process's: every n-th.

        Batches are sorted, by class in most data sets, so that a half of one would be no sample.
        """
        return slice(self.rank, None, self.n)

    def total(self, *values: float) -> list[float]:
        """Sum of each value over all processes."""
        if self.n == 1:
            return list(values)
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        summed = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(summed)
        return summed.tolist()

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.n > 1:
            torch.distributed.barrier()


ALONE = Processes()


def started_first() -> bool:
    """Whether this process is the first of those that `torchrun` started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def together(device: str) -> Iterator[Processes]:
    """Place of this process among those that `torchrun` started, for as long as they train.

    Parameters
    ----------
    device : str
        `cuda`, where they speak through NCCL, or another, where they do through gloo.

    Raises
    ------
    ValueError
        Where there are more processes on a machine than GPUs.
    """
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n == 1:
        yield ALONE
        return
    here = Processes(int(os.environ["RANK"]), n, int(os.environ["LOCAL_RANK"]))
    if device == "cuda":
        if here.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {here.local_rank} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}; start torchrun with --nproc-per-node "
                f"{torch.cuda.device_count()}"
            )
        torch.cuda.set_device(here.local_rank)
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield here
    finally:
        torch.distributed.destroy_process_group()
