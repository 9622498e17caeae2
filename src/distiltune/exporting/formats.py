"""A classifier as an ONNX file, or as one of `torch.export`."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from distiltune import InputError
from distiltune.exporting.lstm import OnnxLstm
from distiltune.models.lstm import LstmForSequenceClassification
from distiltune.runtime import import_extra

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "logits"
BATCH, LENGTH = "batch", "length"
# PyTorch's exporter writes this one by itself; for others it converts, and older readers lack them.
OPSET = 18
MAX_REASON = 300  # characters of what the libraries say
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Of the example that is traced. Sizes of 1 would be taken for constants.
EXAMPLE_SHAPE = (2, 8)


@dataclass(frozen=True, kw_only=True)
class Format:
    file: str
    opset: int | None
    check: Callable[[], None]  # before the work, that it can be done here
    write: Callable[[PreTrainedModel, int, Path], None]  # a model for up to so many tokens


class _Logits(nn.Module):
    """A model as a function of two tensors (num_reviews, longest) to one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def write_model(kind: Format, model: PreTrainedModel, max_length: int, file: Path) -> None:
    """Write a model whose inputs have any number of reviews, and of tokens up to a bound.

    Args:
        kind: one of `FORMATS`.
        model: fp32, for evaluation, on the CPU; it is not changed.
        max_length: the most tokens.
        file: where to.

    Raises:
        InputError: the format has no such model.
    """
    try:
        with _quiet():
            kind.write(model, max_length, file)
    except (InputError, OSError):
        raise
    # Tracing runs the model's own code, in which anything may go wrong.
    except Exception as error:
        reason = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
        raise InputError(
            f"a {model.config.model_type} model cannot be exported to {file.name}: {reason}"
        ) from None


def _write_onnx(model: PreTrainedModel, max_length: int, file: Path) -> None:
    if isinstance(model, LstmForSequenceClassification):
        model = copy.deepcopy(model)
        model.lstm = OnnxLstm(model.lstm, OPSET)
    program = torch.onnx.export(
        _trace(model, max_length),
        input_names=INPUTS,
        output_names=[OUTPUT],
        dynamic_shapes=_dynamic_shapes(max_length),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    # One file, as far as the format allows: up to 2 GB.
    program.save(file, external_data=False)


def _write_torch(model: PreTrainedModel, max_length: int, file: Path) -> None:
    if isinstance(model, LstmForSequenceClassification):
        raise InputError(
            "--format: torch: torch.export unrolls an LSTM for one length of texts; take onnx"
        )
    torch.export.save(_trace(model, max_length), file)


def _trace(model: nn.Module, max_length: int) -> torch.export.ExportedProgram:
    # Of its own, since gradients would be traced too.
    module = _Logits(copy.deepcopy(model).requires_grad_(False)).eval()
    ids = torch.zeros(EXAMPLE_SHAPE, dtype=torch.int64)
    return torch.export.export(
        module, (ids, torch.ones_like(ids)), dynamic_shapes=_dynamic_shapes(max_length)
    )


def _dynamic_shapes(max_length: int) -> dict[str, dict[int, torch.export.Dim]]:
    axes = {0: torch.export.Dim(BATCH), 1: torch.export.Dim(LENGTH, max=max_length)}
    return dict.fromkeys(INPUTS, axes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters tell their own developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _check_onnx() -> None:
    for package in ONNX_PACKAGES:
        import_extra(package, "onnx", "--format: 'onnx'")


FORMATS = {
    "onnx": Format(file="model.onnx", opset=OPSET, check=_check_onnx, write=_write_onnx),
    "torch": Format(file="model.pt2", opset=None, check=lambda: None, write=_write_torch),
}
