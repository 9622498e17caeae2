"""Classify texts with the model in this folder, without the code that trained it.

    python classify.py "A superb film." "A dull one."

Needs numpy, tokenizers, and onnxruntime for `model.onnx` or torch for `model.pt2`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers


class ExportedModel:
    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "export.json").read_text("utf-8"))
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        file = str(folder / self.facts["model"])
        if self.facts["format"] == "onnx":
            import onnxruntime

            self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        else:
            import torch

            self.module = torch.export.load(file).module()

    def encode(self, texts: list[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Input ids and attention mask, (num_texts, longest) int64, padded on the right."""
        first, last = self.facts["truncation"]["first"], self.facts["truncation"]["last"]
        rows = []
        for encoding in self.tokenizer.encode_batch(texts):
            ids = encoding.ids or [self.facts["empty_text_id"]]
            if len(ids) > first + last:
                ids = ids[:first] + ids[len(ids) - last :]
            rows.append(ids)
        shape = len(rows), max(map(len, rows))
        input_ids = np.full(shape, self.facts["padding_id"], dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        for i, ids in enumerate(rows):
            input_ids[i, : len(ids)] = ids
            attention_mask[i, : len(ids)] = 1
        return input_ids, attention_mask

    def logits(self, texts: list[str]) -> np.ndarray[Any, Any]:
        """(num_texts, num_labels) fp32, of all texts as one batch."""
        input_ids, attention_mask = self.encode(texts)
        if self.facts["format"] == "onnx":
            feed = {"input_ids": input_ids, "attention_mask": attention_mask}
            return np.asarray(self.session.run(["logits"], feed)[0])
        import torch

        with torch.inference_mode():
            found = self.module(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        return np.asarray(found.numpy())

    def classify(self, texts: list[str]) -> list[tuple[str, float]]:
        """The label of each text and its probability."""
        logits = self.logits(texts).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        best = probabilities.argmax(axis=1)
        labels = self.facts["labels"]
        return [(labels[i], float(row[i])) for i, row in zip(best, probabilities, strict=True)]


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("usage: python classify.py TEXT ...")
    model = ExportedModel(Path(__file__).resolve().parent)
    for label, probability in model.classify(sys.argv[1:]):
        print(f"{label}\t{probability:.4f}")
