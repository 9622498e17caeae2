"""Makes this process one of those that train together."""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed

from distiltune import InputError
from distiltune.replicas import ALONE, LostProcessError, Replicas
from distiltune.training.launching import (
    LOST_STATUS,
    PARENT_VARIABLE,
    STORE_VARIABLE,
    is_started,
)


@contextlib.contextmanager
def joined(num: int, device: str) -> Iterator[Replicas]:
    """Be one of the processes of a training, within; the others than the first print nothing.

    Who is within ends the exchange (`Replicas.close`) when the training is done.

    Args:
        num: how many processes the params ask for.
        device: `auto`, `cuda` or `cpu`; each process on a machine has a GPU of its own.

    Raises:
        InputError: what started this process has started another number of them, the
            machine has too few GPUs, or the processes do not find each other.
        SystemExit: the exchange with the others failed, with `LOST_STATUS`.
    """
    if not is_started():
        yield ALONE
        return
    rank, started = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if started != num:
        raise InputError(
            f"train.processes: {num}, but {started} processes were started; set it to {started} "
            "in params.yaml, or unset RANK and WORLD_SIZE"
        )
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 (no path)
        output = contextlib.redirect_stdout(nowhere) if rank else contextlib.nullcontext()
        try:
            with output:
                yield _join(rank, num, device)
        except LostProcessError as error:
            print(
                f"error: the exchange with the other processes of the training failed ({error}); "
                "if one has ended, the same command goes on from the last saved state",
                file=sys.stderr,
            )
            _leave_without_the_others(LOST_STATUS)
            sys.exit(LOST_STATUS)
        except KeyboardInterrupt:
            _leave_without_the_others(130)
            raise
        except SystemExit as end:
            _leave_without_the_others(int(end.code or 0))
            raise
        except BaseException:
            _leave_without_the_others(1)
            raise


def _join(rank: int, num: int, device: str) -> Replicas:
    num_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_here))
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        if num_here > torch.cuda.device_count():
            raise InputError(
                f"train.processes: {num_here} on this machine, which has "
                f"{torch.cuda.device_count()} CUDA devices; set it to that, or use -S device=cpu"
            )
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    file = os.environ.get(STORE_VARIABLE)
    try:
        store: Any = None
        if file:
            store = distributed.FileStore(file, num)  # type: ignore[attr-defined]  # it is public
        distributed.init_process_group(backend, store=store, rank=rank, world_size=num)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the processes of the training do not find each other: {reason}"
        ) from None
    parent = os.environ.get(PARENT_VARIABLE)
    return Replicas(rank, num, num_here, int(parent) if parent else None)


def _leave_without_the_others(status: int) -> None:
    """At this process's end, do not take down what NCCL shares with processes that are gone.

    It would wait for them. What is to be written was written by then.
    """

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)
