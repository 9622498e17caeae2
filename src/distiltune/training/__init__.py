"""Training: the project's own loop, the Hugging Face Trainer beside it, and their records."""

from distiltune.training.history import ConsoleReporter, History, Reporter, read_metrics
from distiltune.training.run import ENGINES, log_model, open_run, run_training

__all__ = [
    "ENGINES",
    "ConsoleReporter",
    "History",
    "Reporter",
    "log_model",
    "open_run",
    "read_metrics",
    "run_training",
]
