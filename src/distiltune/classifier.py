"""A trained model that classifies texts: labels and probabilities."""

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from distiltune import InputError
from distiltune.artifacts import DatasetInfo
from distiltune.batching import Tokens, gather
from distiltune.encoding import Encoded
from distiltune.inference import MIN_TOKENS_TO_FREEZE, freeze, predict_logits
from distiltune.models.frozen import FrozenDistilBert
from distiltune.runtime import Runtime, choose_runtime
from distiltune.trained import load_trained

if TYPE_CHECKING:
    import pandas as pd

# So many texts are computed in both precisions, to see how far apart they are: of those with the
# two best classes nearest (the surer a model, the less it is off) the shortest, which take least
# (on 1,200 reviews the difference had nothing to do with the length, a correlation of 0.01).
# Of fewer than `MIN_TEXTS`, all are computed in fp32.
NUM_PROBES, NUM_NEAREST, MIN_TEXTS = 16, 64, 64
# A text whose two best classes are nearer than this many times the largest difference seen is
# computed in fp32 too. Of 16 normal deviates the largest is about 1.8 standard deviations.
SAFETY = 4.0


class ReviewClassifier:
    """A trained model on the best device there is."""

    def __init__(self, folder: Path, *, mixed_on_cpu: bool = False) -> None:
        """Load what the train stage wrote.

        Args:
            folder: weights (safetensors), config, tokenizer and `run.json`.
            mixed_on_cpu: bf16 where the CPU multiplies it in hardware, for models that gain
                by it. What is close is computed again in fp32, so that labels stay what they are
                there as far as the differences seen can tell.

        Raises:
            InputError: the folder is no such model, or it is damaged.
        """
        trained = load_trained(folder)
        self.folder = folder
        self.label_names, self.encoder = trained.label_names, trained.encoder
        self.runtime = choose_runtime(
            "auto", "auto", prefer_fp32_on_cpu=trained.from_scratch or not mixed_on_cpu
        )
        self.model = trained.model.to(self.runtime.device)
        self.is_mixed = mixed_on_cpu and self.runtime.precision != "fp32"
        self.exact = Runtime(device=self.runtime.device, precision="fp32", description="fp32")
        # By precision: how many tokens were classified so far, and the model laid out for it.
        self.num_tokens: collections.Counter[str] = collections.Counter()
        self.frozen: dict[str, PreTrainedModel | FrozenDistilBert] = {}
        self.largest_difference: float | None = None
        self.num_cut = 0  # texts so far of which the model has read a part alone

    def prepare(self) -> None:
        """Lay the weights out now; else that is done when a few thousand tokens were classified."""
        runtime = self.runtime
        self.frozen[runtime.precision] = freeze(self.model, runtime)

    def predict(self, texts: list[str]) -> "pd.DataFrame":
        """Classify texts.

        Returns:
            One row for each: `label`, its `probability`, and `probability_<class>`.
        """
        # Only here: `distiltune predict` does without.
        import pandas as pd

        return pd.DataFrame(self.classify(texts))

    def classify(
        self, texts: list[str], on_batch: Callable[[int], object] | None = None
    ) -> dict[str, Any]:
        """The columns of `predict` by name, each with a value for every text.

        Args:
            texts: one or more.
            on_batch: called with the number of texts in each batch that is done.

        Raises:
            InputError: the model's output is no finite number.
        """
        encoded = self.encoder.encode(texts)
        self.num_cut += int(encoded.is_cut.sum())
        logits = self._logits(self._tokens(encoded), on_batch)
        if not logits.isfinite().all():
            raise InputError(
                f"{self.folder}: the model's output is no finite number; its weights are damaged, "
                "or its training diverged"
            )
        probabilities = logits.double().softmax(1)
        best = probabilities.argmax(1)
        columns: dict[str, Any] = {
            "label": [self.label_names[i] for i in best.tolist()],
            "probability": probabilities.max(1).values.numpy(),
        }
        for i, name in enumerate(self.label_names):
            columns[f"probability_{name}"] = probabilities[:, i].numpy()
        return columns

    @torch.inference_mode()
    def _logits(
        self, tokens: Tokens, on_batch: Callable[[int], object] | None = None
    ) -> torch.Tensor:
        """(num_texts, num_labels) fp32."""
        if not self.is_mixed:
            return self._compute(tokens, self.runtime, on_batch)
        if self.largest_difference is None and tokens.num_reviews < MIN_TEXTS:
            return self._compute(tokens, self.exact, on_batch)
        logits = self._compute(tokens, self.runtime, on_batch)
        margins = _margins(logits)
        if self.largest_difference is None:
            nearest = margins.topk(NUM_NEAREST, largest=False).indices
            order = tokens.lengths[nearest].argsort(stable=True)
            probes = nearest[order[:NUM_PROBES]]
            self._compute_exactly(tokens, logits, probes)
            margins[probes] = torch.inf
        assert self.largest_difference is not None
        # Each may show a larger difference, which makes others close.
        while len(close := (margins < SAFETY * self.largest_difference).nonzero().flatten()):
            self._compute_exactly(tokens, logits, close)
            margins[close] = torch.inf
        return logits

    def _compute_exactly(self, tokens: Tokens, logits: torch.Tensor, rows: torch.Tensor) -> None:
        """Put fp32 logits in place of `rows`, and note how far the others were from them."""
        if not len(rows):
            return
        found = gather(tokens, rows)
        chosen = dataclasses.replace(
            tokens, ids=found.ids.int(), offsets=found.offsets, labels=found.labels
        )
        exact = self._compute(chosen, self.exact)
        shift = logits[rows] - exact
        # What a difference of two classes' logits is wrong by.
        largest = float((shift.max(1).values - shift.min(1).values).max())
        self.largest_difference = max(largest, self.largest_difference or 0.0)
        logits[rows] = exact

    def _compute(
        self,
        tokens: Tokens,
        runtime: Runtime,
        on_batch: Callable[[int], object] | None = None,
    ) -> torch.Tensor:
        """The logits in one precision, by weights laid out for it where there is much to do."""
        precision = runtime.precision
        self.num_tokens[precision] += len(tokens.ids)
        if self.num_tokens[precision] >= MIN_TOKENS_TO_FREEZE and precision not in self.frozen:
            self.frozen[precision] = freeze(self.model, runtime)
        model = self.frozen.get(precision, self.model)
        return predict_logits(model, tokens, runtime, on_batch=on_batch)

    def _tokens(self, encoded: Encoded) -> Tokens:
        num_texts = len(encoded.lengths)
        offsets = torch.zeros(num_texts + 1, dtype=torch.int64)
        torch.cumsum(torch.from_numpy(encoded.lengths), 0, out=offsets[1:])
        return Tokens(
            ids=torch.from_numpy(encoded.ids),
            offsets=offsets,
            labels=torch.zeros(num_texts, dtype=torch.int64),
            info=DatasetInfo(dataset="", label_names=self.label_names),
            max_length=self.encoder.max_length,
            truncation=self.encoder.truncation,
        )


def _margins(logits: torch.Tensor) -> torch.Tensor:
    """By how much the best class leads the second, (num_texts,)."""
    best = logits.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]
