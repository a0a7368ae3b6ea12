"""Processes that train one network together, as `torchrun` starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed


@dataclass(frozen=True)
class ProcessGroup:
    """Place of a process among those that train together.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        Number of processes.
    local_rank : int
        Number of this process on its machine, which is the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and reports."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Images of a batch that are this process's: every `size`-th.

        Batches are sorted, by class in most data sets, so that their halves would be no samples.
        """
        return slice(self.rank, None, self.size)

    def total(self, *values: float) -> list[float]:
        """Sum each value over all processes."""
        if self.size == 1:
            return list(values)
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        totals = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(totals)
        return totals.tolist()

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            torch.distributed.barrier()


SINGLE_PROCESS = ProcessGroup()


def is_first_process() -> bool:
    """Whether this process is the first of those that `torchrun` started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Connect the processes that `torchrun` started, for as long as they train.

    Parameters
    ----------
    device : str
        `cuda` connects them through NCCL, any other through gloo.

    Yields
    ------
    ProcessGroup
        This process's place among them.

    Raises
    ------
    ValueError
        Where a machine runs more processes than it has GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_PROCESS
        return
    group = ProcessGroup(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    if device == "cuda":
        if group.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {group.local_rank} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}; start torchrun with --nproc-per-node "
                f"{torch.cuda.device_count()}"
            )
        torch.cuda.set_device(group.local_rank)
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield group
    finally:
        torch.distributed.destroy_process_group()
