"""The metrics on cases with known answers, and the evaluate stage's files."""

import numpy as np
import pytest

from distiltune.artifacts import DatasetInfo
from distiltune.evaluation.metrics import (
    accuracy_by_length,
    accuracy_with_interval,
    calibration_bins,
    calibration_error,
    classification_metrics,
)
from distiltune.evaluation.story import table_of_mistakes, worst_mistakes

LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 0])
POSITIVE = np.array([0.1, 0.4, 0.6, 0.9, 0.8, 0.3, 0.7, 0.2])
BINARY = np.stack([1 - POSITIVE, POSITIVE], axis=1)


def test_binary_metrics_by_hand() -> None:
    found = classification_metrics(LABELS, BINARY, ("negative", "positive"))
    assert found["accuracy"] == 6 / 8
    assert found["precision"] == found["recall"] == found["f1"] == 3 / 4
    # 14 of the 16 pairs are in the right order.
    assert found["roc_auc"] == pytest.approx(14 / 16)
    assert found["brier_score"] == pytest.approx(np.mean((POSITIVE - LABELS) ** 2))
    right = np.where(LABELS == 1, POSITIVE, 1 - POSITIVE)
    assert found["loss"] == pytest.approx(-np.log(right).mean())
    assert found["confusion_matrix"] == [
        {"actual": "negative", "predicted": {"negative": 3, "positive": 1}},
        {"actual": "positive", "predicted": {"negative": 1, "positive": 3}},
    ]
    assert found["num_reviews"] == 8


def test_wilsons_interval() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263.
    found = accuracy_with_interval(np.array([True] * 81 + [False] * 182))
    assert found["accuracy_low"] == pytest.approx(0.2553, abs=5e-5)
    assert found["accuracy_high"] == pytest.approx(0.3662, abs=5e-5)


def test_more_classes_are_averaged() -> None:
    labels = np.array([0, 1, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])
    found = classification_metrics(labels, probabilities, ("a", "b", "c"))
    assert found["accuracy"] == 0.75
    assert found["recall"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["precision"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert found["roc_auc"] == pytest.approx(1.0)
    truth = np.eye(3)[labels]
    assert found["brier_score"] == pytest.approx(((probabilities - truth) ** 2).sum(1).mean())


def test_what_is_not_defined_is_none() -> None:
    assert classification_metrics(LABELS[:3], BINARY[:3], ("no", "yes"))["roc_auc"] is None


def test_calibration() -> None:
    labels = np.array([0] * 10)
    confidence = np.array([[0.75, 0.25]] * 8 + [[0.25, 0.75]] * 2)
    assert calibration_bins(labels, confidence) == [
        {"confidence": 0.75, "accuracy": 0.8, "num_reviews": 10}
    ]
    assert calibration_error(labels, confidence) == pytest.approx(0.05)
    assert calibration_error(labels, np.array([[1.0, 0.0]] * 10)) == 0.0


def test_accuracy_by_length_covers_each_review_once() -> None:
    lengths = np.array([1, 64, 65, 128, 256, 257, 512, 900])
    found = accuracy_by_length(LABELS, BINARY, lengths)
    assert [(part["num_tokens"], part["num_reviews"], part["accuracy"]) for part in found] == [
        ("1_to_64", 2, 1.0),
        ("65_to_128", 2, 0.5),
        ("129_to_256", 1, 1.0),
        ("257_to_512", 2, 0.5),
        ("over_512", 1, 1.0),
    ]


def test_the_surest_mistakes_come_first_and_long_reviews_are_cut() -> None:
    # Wrong are the third with 0.6 and the sixth with 0.7.
    rows = worst_mistakes(LABELS, BINARY)
    assert rows.tolist() == [5, 2]
    info = DatasetInfo(dataset="x", label_names=("negative", "positive"))
    texts = ["short", "a" * 5000 + "b" * 5000]
    table = table_of_mistakes(rows, texts, LABELS, BINARY, info)
    assert table["data"] == [
        ["short", "positive", "negative", 0.7],
        ["a" * 1000 + " [...] " + "b" * 1000, "negative", "positive", 0.6],
    ]
    assert worst_mistakes(np.zeros(60, int), np.tile([0.2, 0.8], (60, 1))).tolist() == [*range(50)]
    right = worst_mistakes(np.array([0, 1]), np.eye(2))
    assert table_of_mistakes(right, [], np.array([0, 1]), np.eye(2), info)["data"] == []
