"""Makes this process one of those that train together."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import distributed

from distiltune import InputError
from distiltune.replicas import ALONE, LostProcessError, Replicas, lost_others
from distiltune.training.launching import LOST_STATUS, STORE_VARIABLE, is_started


@contextlib.contextmanager
def joined(num: int, device: str) -> Iterator[Replicas]:
    """Be one of the processes of a training, within; the others than the first print nothing.

    Args:
        num: how many processes the params ask for.
        device: `auto`, `cuda` or `cpu`; each process on a machine has a GPU of its own.

    Raises:
        InputError: what started this process has started another number of them, or the
            machine has too few GPUs.
        SystemExit: another process has ended, with `LOST_STATUS`.
    """
    if not is_started():
        yield ALONE
        return
    rank, started = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if started != num:
        raise InputError(
            f"train.processes: {num}, but {started} processes were started; "
            f"set -S train.processes={started}"
        )
    if num == 1:
        yield ALONE
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
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
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    store = os.environ.get(STORE_VARIABLE)
    where = Path(store).as_uri() if store else None
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 (no path)
        output = contextlib.redirect_stdout(nowhere) if rank else contextlib.nullcontext()
        try:
            with output, lost_others():
                distributed.init_process_group(backend, where, rank=rank, world_size=num)
            replicas = Replicas(rank, num, num_here, os.getppid() if store else None)
            with output:
                yield replicas
            replicas.finish()
        except LostProcessError as error:
            print(
                f"error: another process of the training has ended ({error}); the same command "
                "goes on from the last saved state",
                file=sys.stderr,
            )
            sys.exit(LOST_STATUS)
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
