"""An LSTM as the operator that ONNX has for it.

`torch.export` unrolls PyTorch's over the tokens of its example, so that no other length fits.
"""

from typing import Any

import torch
from torch import nn


class OnnxLstm(nn.Module):
    """Stands in the place of an `nn.LSTM` that is exported to ONNX, with the same weights.

    It cannot compute: outside an export its outputs are zeros.
    """

    def __init__(self, lstm: nn.LSTM, opset: int) -> None:
        """Take an LSTM's weights.

        Args:
            lstm: unidirectional, with the batch first.
            opset: which version of the operator to write.
        """
        super().__init__()
        self.hidden_size, self.num_layers, self.opset = lstm.hidden_size, lstm.num_layers, opset
        for i in range(lstm.num_layers):
            own = {name: getattr(lstm, f"{name}_l{i}").detach() for name in
                   ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}  # fmt: skip
            parts = {name: _in_order_of_onnx(weights) for name, weights in own.items()}
            # With a dimension before, of the directions.
            self.register_buffer(f"input_{i}", parts["weight_ih"][None])
            self.register_buffer(f"recurrent_{i}", parts["weight_hh"][None])
            self.register_buffer(f"bias_{i}", torch.cat([parts["bias_ih"], parts["bias_hh"]])[None])

    def forward(self, embedded: torch.Tensor) -> tuple[torch.Tensor, None]:
        """States (num_reviews, longest, hidden_size) of (num_reviews, longest, embedding_size)."""
        states = embedded.transpose(0, 1)  # (longest, num_reviews, ...), as the operator has it
        for i in range(self.num_layers):
            weights = [getattr(self, f"{name}_{i}") for name in ("input", "recurrent", "bias")]
            attributes: dict[str, Any] = {"hidden_size": self.hidden_size}
            longest, num_reviews = states.shape[:2]
            (output,) = torch.onnx.ops.symbolic_multi_out(
                "LSTM",
                (states, *weights),
                attributes,
                dtypes=(states.dtype,),
                shapes=((longest, 1, num_reviews, self.hidden_size),),
                version=self.opset,
            )
            states = output.squeeze(1)
        return states.transpose(0, 1), None


def _in_order_of_onnx(weights: torch.Tensor) -> torch.Tensor:
    """Input, output, forget and cell gate, where PyTorch has the output gate last."""
    entry, forget, cell, output = weights.chunk(4)
    return torch.cat([entry, output, forget, cell])
