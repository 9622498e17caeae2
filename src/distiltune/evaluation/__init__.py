"""Evaluation on the test split: metrics, plots, predictions."""

from distiltune.evaluation.run import run_evaluation

__all__ = ["run_evaluation"]
