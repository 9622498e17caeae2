"""One execution of `distiltune explain`: a model's folder and a text in, its words' shares out."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from distiltune import InputError
from distiltune.artifacts import RUN_FILE, WEIGHTS_FILE, read_json
from distiltune.encoding import TOKENIZER_CONFIG, Encoder, load_tokenizer
from distiltune.explaining.gradients import MAX_STEPS, Attribution, integrate_gradients
from distiltune.explaining.words import Word, read_text
from distiltune.models import compute_logits, load_model
from distiltune.models.lstm import LstmForSequenceClassification
from distiltune.runtime import Runtime, choose_runtime

FILES = (RUN_FILE, WEIGHTS_FILE, "config.json", "tokenizer.json", TOKENIZER_CONFIG)
MAX_REASON = 200  # characters of what a library says
SINGLE_THREAD_WEIGHTS = 1_000_000
# Of a pass, which keeps what its gradients need: four reviews of 512 tokens on the CPU.
MAX_TOKENS_PER_PASS = {"cpu": 2048, "cuda": 16_384}


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained model that explains itself, with how it reads a text."""

    model: PreTrainedModel
    encoder: Encoder
    tokenizer: tokenizers.Tokenizer  # without truncation
    label_names: tuple[str, ...]
    baseline_id: int  # the token that says nothing of a word
    baseline_token: str
    runtime: Runtime
    folder: Path


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


def load_classifier(folder: Path) -> Classifier:
    """Load the folder that the train stage writes.

    Raises:
        InputError: it is not there, not such a folder, or damaged.
    """
    if not folder.is_dir():
        raise InputError(
            f"--model: {folder}: no such folder; name one that `train` has written, "
            "or make data/model with `dvc repro`"
        )
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise InputError(
            f"--model: {folder}: has no {', '.join(missing)}; a folder that `train` has written "
            f"holds {', '.join(FILES)}"
        )
    # Of weights that are not there it would speak at length; they are looked for below.
    transformers_logging.set_verbosity_error()
    try:
        settings = read_json(folder / RUN_FILE)
        runtime = choose_runtime("auto", "fp32")
        model = load_model(folder).requires_grad_(False).to(runtime.device)
        if sum(weights.numel() for weights in model.parameters()) < SINGLE_THREAD_WEIGHTS:
            torch.set_num_threads(1)  # which in training is faster for so small a model too
        reader = load_tokenizer(folder)
        reader.no_truncation()
        reader.no_padding()
        baseline_id = _baseline_id(folder, model)
        classifier = Classifier(
            model=model,
            encoder=Encoder(load_tokenizer(folder), settings["max_length"], settings["truncation"]),
            tokenizer=reader,
            label_names=tuple(settings["label_names"]),
            baseline_id=baseline_id,
            baseline_token=str(reader.id_to_token(baseline_id)),
            runtime=runtime,
            folder=folder,
        )
        _check(classifier)
    except InputError:
        raise
    # The tokenizers' library has no class of its own for a damaged file, transformers none for
    # each of the many ways in which a config is wrong.
    except Exception as error:
        reason = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
        raise InputError(
            f"--model: {folder}: damaged, or not written by `train` ({reason})"
        ) from None
    return classifier


def explain(
    classifier: Classifier, text: str, label_name: str | None = None, max_steps: int = MAX_STEPS
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
    if not text.strip():
        raise InputError("the text is empty; give a review of one word or more")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("the text is not UTF-8")
    names = classifier.label_names
    if label_name is not None and label_name not in names:
        raise InputError(f"--class: {label_name!r}: the model's classes are {', '.join(names)}")
    reading = read_text(text, classifier.encoder, classifier.tokenizer)
    model, device = classifier.model, classifier.runtime.device
    ids = torch.tensor(reading.ids, device=device)
    is_special = torch.tensor(reading.is_special, device=device)
    embed = _embedding(model)
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
    )
    if not math.isfinite(attribution.gap):
        raise InputError(
            f"--model: {classifier.folder}: the model's output is no finite number; "
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
        model=f"{classifier.folder} ({model.config.model_type})",
    )


def announce(classifier: Classifier) -> None:
    """Say what is at work: a long review takes a large model half a minute on a CPU."""
    print(f"{classifier.folder}: on {classifier.runtime.description}", file=sys.stderr, flush=True)


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
    embedding = _embedding(model)

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


def _embedding(model: PreTrainedModel) -> Any:
    """The embedding of words."""
    if isinstance(model, LstmForSequenceClassification):
        return model.embedding
    return model.get_input_embeddings()


def _baseline_id(folder: Path, model: PreTrainedModel) -> int:
    """The token that says nothing of the word in its place.

    [MASK], where the pretraining taught the model that; else the tokenizer's own token for a word
    that it does not know; else padding. The zero vector, which padding is in models from scratch,
    is further from what they have seen: measured on generated reviews, the strongest word was
    one that carries sentiment in 82 % with it and in 98 % with [UNK].
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for found in (tokenizer.mask_token_id, tokenizer.unk_token_id, model.config.pad_token_id):
        if found is not None:
            return int(found)
    raise ValueError("its tokenizer has no token for a mask, an unknown word or padding")


def _check(classifier: Classifier) -> None:
    """What `transformers` passes over: weights that are not there are drawn at random."""
    folder, model = classifier.folder, classifier.model
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        stored = set(file.keys())
    weights = model.state_dict()
    # A tensor with two names is stored under one.
    shared = {weights[name].data_ptr() for name in stored & weights.keys()}
    lost = sorted(n for n, w in weights.items() if n not in stored and w.data_ptr() not in shared)
    if lost:
        raise SafetensorError(f"{WEIGHTS_FILE} lacks {len(lost)} weights, {lost[0]} for one")
    num_labels = model.config.num_labels
    if len(classifier.label_names) != num_labels:
        raise ValueError(f"{RUN_FILE} names {len(classifier.label_names)} of {num_labels} classes")
    num_embeddings = _embedding(model).weight.shape[0]
    if (size := classifier.tokenizer.get_vocab_size()) > num_embeddings:
        raise ValueError(f"the tokenizer has {size} tokens, the model {num_embeddings} embeddings")


def _probability(odds: float) -> float:
    return 1 / (1 + math.exp(-odds)) if odds >= 0 else 1 - 1 / (1 + math.exp(odds))
