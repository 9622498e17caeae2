"""Samples CPU, memory, disk, network and GPU while a model is trained."""

import threading
import time
from collections.abc import Callable, Mapping

from distiltune.location import import_mlflow
from distiltune.runtime import warn

LEAST_SECONDS, SAMPLES_AT_LEAST = 1.0, 20
Log = Callable[[Mapping[str, float | None], int], None]


class SystemMonitor(threading.Thread):
    """Logs what MLflow's own monitors see of CPU, memory, disk, network and GPU.

    The step is the number of seconds since the training began. MLflow's own thread would
    end with the first request that fails.
    """

    def __init__(self, log: Log, began: float) -> None:
        """Begin with `start`, end with `stop`.

        Args:
            log: takes metrics by name, and their step.
            began: when the training did, in seconds since 1970.
        """
        super().__init__(name="system metrics", daemon=True)
        self._log = log
        self._began = began
        self._stopped = threading.Event()

    def run(self) -> None:
        import_mlflow()
        from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
        from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors: list[BaseMetricsMonitor] = []
        has_warned = False
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            try:
                monitors.append(kind())
            # A container without a network, say, has the others all the same.
            except Exception as error:
                has_no_gpu = kind is GPUMonitor and isinstance(error, ImportError | RuntimeError)
                if not has_no_gpu:
                    warn(f"system metrics: {kind.__name__}: {error}")
        interval = float(MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get())
        while not self._stopped.wait(self._pause(interval)):
            values: dict[str, float | None] = {}
            for monitor in monitors:
                try:
                    monitor.collect_metrics()
                    values |= monitor.aggregate_metrics()
                    monitor.clear_metrics()
                # A device that fails to answer once will do so the next time, or it will not.
                except Exception as error:
                    if not has_warned:
                        warn(f"system metrics: {error}")
                    has_warned = True
            named = {f"system/{name}": value for name, value in values.items()}
            self._log(named, round(time.time() - self._began))

    def _pause(self, interval: float) -> float:
        """Seconds to the next sample: a run of 20 seconds is to have more than four."""
        return min(interval, max(LEAST_SECONDS, (time.time() - self._began) / SAMPLES_AT_LEAST))

    def stop(self) -> None:
        """End it, after what it is at."""
        self._stopped.set()
        self.join()
