"""Jobs that workers import: what does well, what fails, what ends its worker."""

import os
import time
from pathlib import Path

from steadymap.params.methods import HyperparameterError
from steadymap.store.atomic import StorageError


def double(number):
    return 2 * number


def double_or_die(number):
    """7 is what a fault in compiled code would be."""
    if number == 7:
        os._exit(1)
    time.sleep(0.01)
    return 2 * number


def double_or_refuse(number):
    if number % 5 == 3:
        raise HyperparameterError("number", number, "choose another")
    return 2 * number


def double_at_the_second_try(job):
    number, folder = job
    tried = Path(folder) / str(number)
    if not tried.exists():
        tried.touch()
        raise OSError("this machine's disk is broken")
    return 2 * number


def nap(number):
    time.sleep(0.05)
    return 2 * number


def refuse_and_count(job):
    """Every job fails, and says that it was tried."""
    number, log = job
    with Path(log).open("a") as file:
        file.write(f"{number}\n")
    time.sleep(0.02)
    raise HyperparameterError("number", number, "choose another")


def fill_the_disk(job):
    """From the third job on, as a worker's cache would."""
    number, log = job
    with Path(log).open("a") as file:
        file.write(f"{number}\n")
    time.sleep(0.02)
    if number >= 3:
        raise StorageError(f"{number}.npz: No space left on device; free some space")
    return number


def exhaust_memory(job):
    """In a function of one's own, whose errors are wrapped."""
    number, log = job
    with Path(log).open("a") as file:
        file.write(f"{number}\n")
    time.sleep(0.02)
    raise HyperparameterError("number", number, "choose another") from MemoryError("too large")


def mistake(number):
    """What a fault in a method's code raises."""
    if number == 2:
        raise TypeError("unsupported operand")
    if number == 4:
        raise KeyError("sigma")
    return 2 * number
