"""What an exported folder says of itself to people."""

from typing import Any

from distiltune.exporting.agreement import Agreement

ONNX = """\
    import json, onnxruntime
    from transformers import AutoTokenizer

    labels = json.load(open("export.json"))["labels"]
    tokenizer = AutoTokenizer.from_pretrained(".")
    session = onnxruntime.InferenceSession("model.onnx")
    encoded = tokenizer(["A superb film."], padding=True, truncation=True, return_tensors="np")
    feed = {name: encoded[name].astype("int64") for name in ("input_ids", "attention_mask")}
    (logits,) = session.run(["logits"], feed)
    print([labels[i] for i in logits.argmax(1)])
"""
TORCH = """\
    import json, torch
    from transformers import AutoTokenizer

    labels = json.load(open("export.json"))["labels"]
    tokenizer = AutoTokenizer.from_pretrained(".")
    model = torch.export.load("model.pt2").module()
    encoded = tokenizer(["A superb film."], padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(encoded["input_ids"], encoded["attention_mask"])
    print([labels[i] for i in logits.argmax(1)])
"""

WARNING = """
Load only a `model.pt2` that you trust: `torch.export.load` may unpickle what is in it.
"""


def readme(facts: dict[str, Any], agreement: Agreement) -> str:
    """Markdown: what is here, and how to call it.

    Args:
        facts: what is in `export.json`.
        agreement: how near the logits are.
    """
    first, last = facts["truncation"]["first"], facts["truncation"]["last"]
    read = f"the first {first} tokens and the last {last}, special ones among them"
    if last <= 1:  # the special one at the end
        read = f"the start alone, {first + last} tokens with the special ones"
    is_onnx = facts["format"] == "onnx"
    kind = f"ONNX, opset {facts['opset']}" if is_onnx else "`torch.export`"
    return f"""\
# A classifier of texts: {facts["architecture"]}

Labels, in the order of the logits: {", ".join(facts["labels"])}.

    python classify.py "A superb film."      # label, tab, probability

`classify.py` needs numpy, tokenizers and {"onnxruntime" if is_onnx else "torch"}. It is the example
to copy from: truncation and padding are in it, with the numbers of `export.json`. By hand, where
the first {facts["max_length"]} tokens of a text are enough:

{ONNX if is_onnx else TORCH}{"" if is_onnx else WARNING}
| file | what it is |
|---|---|
| `{facts["model"]}` | the model ({kind}), fp32, weights as they were trained |
| `tokenizer.json`, `tokenizer_config.json` | its tokenizer |
| `config.json` | the model's config in transformers |
| `export.json` | inputs, outputs, labels, truncation, padding, versions, the check |

| name | | type | shape |
|---|---|---|---|
| `input_ids` | in | int64 | (batch, length): tokens, then {facts["padding_id"]} as padding |
| `attention_mask` | in | int64 | (batch, length): 1 for a token, 0 for padding |
| `logits` | out | float32 | (batch, {len(facts["labels"])}) |

Batch and length are free, length up to {facts["max_length"]}. Of a longer text the model was
taught to read {read}.

Checked when it was written, on {agreement.num_texts} {agreement.texts} of
{agreement.shortest_tokens} to {agreement.longest_tokens} tokens, padded in a batch: logits differ
from those of transformers {facts["versions"]["transformers"]} by
{agreement.largest_difference:.1e} at most (allowed: {agreement.allowed:g}).
"""
