"""A unidirectional LSTM classifier (Hochreiter and Schmidhuber 1997), as transformers saves it.

It has the meaning of packed sequences: the state that is classified is the one at each
review's last token, so what is padded to the right of it changes nothing.
"""

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class LstmConfig(PretrainedConfig):
    model_type = "distiltune_lstm"

    def __init__(
        self,
        vocab_size: int = 20000,
        embedding_size: int = 128,
        hidden_size: int = 256,
        num_hidden_layers: int = 1,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.dropout = dropout
        super().__init__(**kwargs)


class LstmForSequenceClassification(PreTrainedModel):
    config_class = LstmConfig

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(
            config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id
        )
        self.lstm = nn.LSTM(
            config.embedding_size,
            config.hidden_size,
            config.num_hidden_layers,
            dropout=config.dropout if config.num_hidden_layers > 1 else 0.0,
            batch_first=True,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation, which the modules have had already."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify reviews padded on the right.

        Args:
            input_ids: (num_reviews, longest).
            attention_mask: (num_reviews, longest), 1 on real tokens.
            labels: (num_reviews,), for the loss.
        """
        embedded = self.embedding(input_ids).float()
        # Autocast runs cuDNN's LSTM in fp16 whatever it is told, which has no scaled loss here.
        with torch.autocast(embedded.device.type, enabled=False):
            states, _ = self.lstm(embedded)  # (num_reviews, longest, hidden_size)
        last = attention_mask.sum(1) - 1
        # Not `len`, which `torch.export` takes for a constant.
        final = states[torch.arange(last.shape[0], device=last.device), last]
        logits = self.classifier(self.dropout(final))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
