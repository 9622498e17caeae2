"""Metrics of a classifier on a split; each review counts once."""

from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn import metrics as sk

Labels = np.ndarray[Any, np.dtype[np.int64]]
Probabilities = np.ndarray[Any, np.dtype[np.float64]]

CONFIDENCE = 0.95
NUM_CALIBRATION_BINS = 15
LENGTH_EDGES = (64, 128, 256, 512)


def accuracy_with_interval(right: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, float]:
    """The share of right answers, with Wilson's 95 % interval (Wilson 1927)."""
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "accuracy": float(right.mean()),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
    }


def classification_metrics(
    labels: Labels, probabilities: Probabilities, label_names: tuple[str, ...]
) -> dict[str, Any]:
    """All the figures of one split.

    With two classes precision, recall, F1 and ROC AUC are those of the second class;
    with more they are the mean over the classes (AUC one against the rest). The Brier
    score is the mean squared error of the probability (Brier 1950; with two classes of
    one of them). What is not defined, such as an AUC with one class present, is None.

    Args:
        labels: (num_reviews,), class indices.
        probabilities: (num_reviews, num_classes).
        label_names: the classes.
    """
    predicted = probabilities.argmax(1)
    is_binary = len(label_names) == 2
    classes = list(range(len(label_names)))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels,
        predicted,
        labels=classes,
        average="binary" if is_binary else "macro",
        zero_division=0.0,
    )
    auc = None
    if set(labels.tolist()) == set(classes):
        scores = probabilities[:, 1] if is_binary else probabilities
        auc = float(sk.roc_auc_score(labels, scores, multi_class="ovr", labels=classes))
    brier_of = probabilities[:, 1] if is_binary else probabilities
    confusion = sk.confusion_matrix(labels, predicted, labels=classes)
    return {
        **accuracy_with_interval(predicted == labels),
        "loss": float(sk.log_loss(labels, probabilities, labels=classes)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "roc_auc": auc,
        "brier_score": float(sk.brier_score_loss(labels, brier_of, labels=classes)),
        "calibration_error": calibration_error(labels, probabilities),
        "num_reviews": len(labels),
        "confusion_matrix": [
            {"actual": name, "predicted": dict(zip(label_names, row, strict=True))}
            for name, row in zip(label_names, confusion.tolist(), strict=True)
        ],
    }


def calibration_bins(labels: Labels, probabilities: Probabilities) -> list[dict[str, float]]:
    """Reviews by the confidence of the answer, in 15 bins of equal width, empty ones left out.

    Each has `confidence` (mean), `accuracy` and `num_reviews`.
    """
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    number = np.minimum((confidence * NUM_CALIBRATION_BINS).astype(int), NUM_CALIBRATION_BINS - 1)
    return [
        {
            "confidence": float(confidence[number == i].mean()),
            "accuracy": float((predicted == labels)[number == i].mean()),
            "num_reviews": int((number == i).sum()),
        }
        for i in np.unique(number)
    ]


def calibration_error(labels: Labels, probabilities: Probabilities) -> float:
    """Expected calibration error (Guo et al. 2017): the bins' gaps, weighted by reviews."""
    bins = calibration_bins(labels, probabilities)
    gaps = [abs(b["confidence"] - b["accuracy"]) * b["num_reviews"] for b in bins]
    return float(sum(gaps) / len(labels))


def accuracy_by_length(
    labels: Labels, probabilities: Probabilities, num_tokens: Labels
) -> list[dict[str, Any]]:
    """Accuracy with its interval for reviews of up to 64, 128, 256, 512 tokens and more."""
    right = probabilities.argmax(1) == labels
    found = []
    low = 1
    for high in (*LENGTH_EDGES, None):
        chosen = num_tokens >= low
        if high is not None:
            chosen &= num_tokens <= high
        if chosen.any():
            part = accuracy_with_interval(right[chosen])
            name = f"{low}_to_{high}" if high else f"over_{low - 1}"
            found.append({"num_tokens": name, **part, "num_reviews": int(chosen.sum())})
        low = (high or 0) + 1
    return found
