"""What a training costs beside its result: the optimizer's time and memory, energy."""

import resource
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch


class OptimizerClock:
    """Seconds of optimizer steps, without waiting for the device in between.

    Every step counts, because some do more than others (SOAP renews its basis at each
    tenth). On CUDA it is the time between two events on the stream (kernels, and what they
    wait for), which is read when the device has passed the second one.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self._started: Any = None
        self._steps: list[tuple[Any, Any]] = []

    def start(self) -> None:
        self._started = self._mark()

    def stop(self) -> None:
        self._steps.append((self._started, self._mark()))

    def mean_seconds(self) -> float | None:
        """Of a step since the call before; waits for the last one."""
        steps, self._steps = self._steps, []
        if not steps:
            return None
        if not self.on_cuda:
            return float(statistics.mean(last - first for first, last in steps))
        steps[-1][1].synchronize()
        return float(statistics.mean(first.elapsed_time(last) for first, last in steps)) / 1e3

    def _mark(self) -> Any:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What an optimizer remembers of the steps before: moments, bases, averages."""
    parts = getattr(optimizer, "parts", [optimizer])
    tensors = {
        tensor.data_ptr(): tensor.numel() * tensor.element_size()
        for part in parts
        for state in part.state.values()
        for tensor in _tensors(state.values())
    }
    return sum(tensors.values())


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was held: of the GPU's memory, or by this process in all.

    On CUDA it is what PyTorch has reserved, because the private memory of CUDA graphs
    does not count as allocated between replays.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class EnergyMeter:
    """The energy that the GPU takes from here on, where its driver counts it."""

    def __init__(self, device: torch.device) -> None:
        self._handle: Any = None
        if device.type == "cuda":
            import pynvml

            try:
                pynvml.nvmlInit()
                uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                self._started = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            except pynvml.NVMLError:
                self._handle = None  # older than Volta, or a part of a GPU: it does not say
            self._was_shared = self._handle is not None and self._is_shared()

    def joules(self) -> float | None:
        """So far, validations included.

        `None` where the device does not tell, or worked for another process too: it counts
        for all together.
        """
        if self._handle is None or self._was_shared or self._is_shared():
            return None
        import pynvml

        now = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return float(now - self._started) / 1e3

    def _is_shared(self) -> bool:
        import pynvml

        try:
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except pynvml.NVMLError:
            return False
        return len(processes) > 1
