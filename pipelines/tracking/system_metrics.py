"""Records the load of a machine as metrics: measured by MLflow, and queued instead of sent to the server.

MLflow's own monitor calls the server before each sample, and stops if that does not answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping


class LoadMonitor:
    """Measures the load in a separate thread until it is closed. Names and units are MLflow's (``system/...``).

    Args:
        put: receives the values of one step.
        started_ms: start of the run; steps count intervals since then, so that they continue after a restart.
    """

    def __init__(self, put: Callable[[Mapping[str, float], int], None], started_ms: int) -> None:
        from mlflow import environment_variables as environment
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
        from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

        self._monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        for of_gpu in (GPUMonitor, ROCMMonitor):
            try:
                self._monitors.append(of_gpu())
                break
            except Exception:
                continue  # no GPU of this make, or its library is not installed
        self._put, self._started_ms = put, started_ms
        self._interval_s = float(environment.MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or 10)
        self._samples = int(environment.MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING.get() or 1)
        self._last = -1
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load-monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            for _ in range(self._samples):
                for monitor in self._monitors:
                    monitor.collect_metrics()
                if self._closed.wait(self._interval_s):
                    return
            metrics: dict[str, float] = {}
            for monitor in self._monitors:
                metrics |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            passed_s = time.time() - self._started_ms / 1000
            self._last = max(self._last + 1, int(passed_s / (self._interval_s * self._samples)))
            self._put(metrics, self._last)
