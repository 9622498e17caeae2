"""Which tokens are hidden, and what stands in their places (Devlin et al. 2019, section 3.1).

They are drawn anew in each epoch (Liu et al. 2019, "dynamic masking"), by seed, epoch and
review alone: neither the batch nor a division of it, nor an interruption, changes them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from distiltune import InputError
from distiltune.batching import Batch, Tokens, gather

MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the hidden tokens; the rest stays what it is


@dataclass(frozen=True, kw_only=True)
class MaskedBatch(Batch):
    """A batch whose labels (num_hidden,) are the hidden tokens.

    `places` (num_hidden,) says which of `ids` they are, and `counts`, on the host, how many of
    them each review has.
    """

    places: torch.Tensor
    counts: list[int]

    def to(self, device: torch.device) -> "MaskedBatch":
        if device.type == "cpu":
            return self
        moved = super().to(device)
        return MaskedBatch(
            **vars(moved),
            places=self.places.pin_memory().to(device, non_blocking=True),
            counts=self.counts,
        )


class Masking:
    """Hides a share of each review's tokens, one at least."""

    def __init__(
        self, tokens: Tokens, tokenizer: PreTrainedTokenizerBase, share: float, seed: int
    ) -> None:
        """Count what each review has to hide.

        Args:
            tokens: the reviews.
            tokenizer: names the special tokens, which are never hidden. Without a token for
                a mask, as in models from scratch, the one for an unknown word stands for it.
            share: of a review's other tokens, how many are hidden.
            seed: decides with epoch and review.

        Raises:
            InputError: the tokenizer has neither token.
        """
        mask_id = tokenizer.mask_token_id
        mask_id = tokenizer.unk_token_id if mask_id is None else mask_id
        if mask_id is None:
            raise InputError(
                "adapt.epochs: the checkpoint's tokenizer has no token for a mask, nor one for an "
                "unknown word; set 0"
            )
        self.tokens = tokens
        self.seed = seed
        self.mask_id = int(mask_id)
        self.special_ids = torch.tensor(sorted({*tokenizer.all_special_ids, self.mask_id}))
        words = torch.ones(len(tokenizer), dtype=torch.bool)
        words[self.special_ids] = False
        self.word_ids = words.nonzero().flatten().numpy()
        is_word = torch.isin(tokens.ids, self.special_ids, invert=True)
        before = torch.cat([torch.zeros(1, dtype=torch.int64), is_word.cumsum(0)])
        self.num_words = before[tokens.offsets].diff()  # (num_reviews,)
        # A half goes up, where Python's own rounding takes the even one.
        self.num_hidden = (self.num_words * share + 0.5).long().clamp(min=1)

    def gather(self, rows: torch.Tensor, epoch: int) -> MaskedBatch:
        """Some reviews, with what is hidden in an epoch; each must have a word."""
        batch = gather(self.tokens, rows)
        ids = batch.ids.numpy()
        is_word = torch.isin(batch.ids, self.special_ids, invert=True).numpy()
        counts = self.num_hidden[rows].tolist()
        hidden, kinds, others = [], [], []
        starts = batch.offsets.tolist()
        for row, start, end, count in zip(
            rows.tolist(), starts[:-1], starts[1:], counts, strict=True
        ):
            generator = np.random.default_rng([self.seed, epoch, row])
            words = start + is_word[start:end].nonzero()[0]
            hidden.append(np.sort(generator.permutation(words)[:count]))
            kinds.append(generator.random(count))
            others.append(generator.choice(self.word_ids, count))
        places, kind = np.concatenate(hidden), np.concatenate(kinds)
        targets = ids[places]
        ids[places] = np.select(
            [kind < MASKED_SHARE, kind < MASKED_SHARE + RANDOM_SHARE],
            [np.full_like(targets, self.mask_id), np.concatenate(others)],
            targets,
        )
        return MaskedBatch(
            ids=batch.ids,
            offsets=batch.offsets,
            labels=torch.from_numpy(targets),
            lengths=batch.lengths,
            places=torch.from_numpy(places),
            counts=counts,
        )
