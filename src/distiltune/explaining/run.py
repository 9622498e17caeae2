"""What each word of a text adds to a verdict."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from distiltune import InputError
from distiltune.explaining.gradients import MAX_STEPS, Attribution, integrate_gradients
from distiltune.explaining.model import ExplainableModel
from distiltune.explaining.words import Word, read_text
from distiltune.models import compute_logits, embedding_of

# Of a pass, which keeps what its gradients need: two reviews of 512 tokens on the CPU.
MAX_TOKENS_PER_PASS = {"cpu": 1024, "cuda": 16_384}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What each word of a text adds to the log-odds of a class."""

    text: str
    label_name: str  # the class
    predicted: str
    words: tuple[Word, ...]
    values: tuple[float, ...]  # of the words, in log-odds
    unread: tuple[int, int] | None  # the characters that the model did not read
    num_tokens: int
    baseline_token: str
    attribution: Attribution
    model: str  # what was explained: where it is, its kind

    @property
    def probability(self) -> float:
        return _probability(self.attribution.output)

    @property
    def baseline_probability(self) -> float:
        return _probability(self.attribution.baseline_output)

    @property
    def strengths(self) -> tuple[float, ...]:
        """Of the words, from -1 to 1: relative to the strongest."""
        strongest = max(map(abs, self.values), default=0.0)
        return tuple(value / strongest if strongest else 0.0 for value in self.values)

    @property
    def strongest(self) -> list[tuple[Word, float]]:
        """Words and values, the largest first, whichever way they point."""
        pairs = zip(self.words, self.values, strict=True)
        return sorted(pairs, key=lambda pair: -abs(pair[1]))

    def pieces(self) -> Iterator[tuple[str, int | None, bool]]:
        """The whole text in order: a piece, the number of its word if it is one, and if unread."""
        spans = [(word.start, word.end, i, False) for i, word in enumerate(self.words)]
        if self.unread:
            spans = sorted([*spans, (*self.unread, -1, True)])
        done = 0
        for start, end, number, is_unread in spans:
            start = max(start, done)
            if start > done:
                yield self.text[done:start], None, False
            if end > start:
                yield self.text[start:end], None if is_unread else number, is_unread
            done = max(done, end)
        if done < len(self.text):
            yield self.text[done:], None, False


def explain(
    classifier: ExplainableModel,
    text: str,
    label_name: str | None = None,
    max_steps: int = MAX_STEPS,
) -> Explanation:
    """Say what each word of a text adds to the log-odds of a class.

    The baseline is the text with every token, but for the special ones at its ends, replaced
    by one that says nothing, so that length and positions are no part of the difference.

    Args:
        classifier: the model and how it reads.
        text: the review; what truncation takes away of it is named in the result.
        label_name: the class; by default the one that the model predicts.
        max_steps: see `integrate_gradients`.

    Raises:
        InputError: the text is empty, the model has no such class, or its output is no number.
    """
    check_text(text)
    names = classifier.label_names
    if label_name is not None and label_name not in names:
        raise InputError(f"--class: {label_name!r}: the model's classes are {', '.join(names)}")
    reading = read_text(text, classifier.encoder, classifier.tokenizer)
    model, device = classifier.model, classifier.runtime.device
    ids = torch.tensor(reading.ids, device=device)
    is_special = torch.tensor(reading.is_special, device=device)
    embed = embedding_of(model)
    with torch.inference_mode():
        logits = compute_logits(model, ids, torch.tensor([0, len(ids)], device=device), [len(ids)])
    predicted = names[int(logits[0].argmax())]
    label = names.index(label_name or predicted)
    with torch.no_grad():
        ends = embed(ids), embed(torch.where(is_special, ids, classifier.baseline_id))
    attribution = integrate_gradients(
        _log_odds_of(model, ids, label),
        baseline=ends[1].float(),
        end=ends[0].float(),
        max_steps=max_steps,
        max_points=max(1, MAX_TOKENS_PER_PASS[device.type] // len(ids)),
        report=_report,
    )
    if not math.isfinite(attribution.gap):
        raise InputError(
            f"--model: {classifier.name}: the model's output is no finite number; "
            "its weights are damaged, or its training diverged"
        )
    values = attribution.values.tolist()
    return Explanation(
        text=text,
        label_name=names[label],
        predicted=predicted,
        words=reading.words,
        values=tuple(math.fsum(values[i] for i in word.tokens) for word in reading.words),
        unread=reading.unread,
        num_tokens=len(reading.ids) - sum(reading.is_special),
        baseline_token=classifier.baseline_token,
        attribution=attribution,
        model=f"{classifier.name} ({model.config.model_type})",
    )


def check_text(text: str) -> None:
    """See that there is something to explain, which takes no model.

    Raises:
        InputError: the text is empty, or was not UTF-8.
    """
    if not text.strip():
        raise InputError("the text is empty; give a review of one word or more")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("the text is not UTF-8")


def _report(found: Attribution) -> None:
    """A long review takes a large model minutes on a CPU; who waits at a terminal is told."""
    if sys.stderr.isatty():
        print(
            f"{found.num_steps} steps: off by {found.gap:.3f}, a word by {found.change:.3f}; "
            f"allowed {found.tolerance:.3f}; doubling",
            file=sys.stderr,
            flush=True,
        )


def log_odds(logits: torch.Tensor, label: int) -> torch.Tensor:
    """ln(p / (1 - p)) of a class, (num_reviews,), from logits (num_reviews, num_labels).

    A sure model's probability hardly moves along most of the line, its log-odds do.
    """
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return logits[:, label] - others.logsumexp(1)


def _log_odds_of(
    model: PreTrainedModel, ids: torch.Tensor, label: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """From embeddings (num_points, length, size) in the place of those of `ids` to log-odds.

    The ids go through the model as ever, so that each architecture takes its own way, the
    padding-free too, and sees which positions are real; only what its embedding of words
    answers is replaced.
    """
    embedding = embedding_of(model)

    def compute(points: torch.Tensor) -> torch.Tensor:
        num_points, length = points.shape[:2]
        offsets = torch.arange(num_points + 1, device=ids.device) * length
        with contextlib.ExitStack() as stack:
            handle = embedding.register_forward_hook(
                lambda module, inputs, output: points.reshape(output.shape)
            )
            stack.callback(handle.remove)
            # cuDNN has no gradients of an LSTM that is not in training.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            logits = compute_logits(model, ids.repeat(num_points), offsets, [length] * num_points)
        return log_odds(logits.float(), label)

    return compute


def _probability(odds: float) -> float:
    return 1 / (1 + math.exp(-odds)) if odds >= 0 else 1 - 1 / (1 + math.exp(odds))
