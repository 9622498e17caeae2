"""`distiltune explain`: figures that add up, words put together again, page, terminal, errors."""

import math
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tokenizers
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, DistilBertConfig
from transformers import DistilBertForSequenceClassification as DistilBert

from distiltune import cli
from distiltune.artifacts import reviews_schema, write_json, write_reviews
from distiltune.batching import Batch
from distiltune.config import load_params
from distiltune.encoding import Encoder, load_tokenizer, prepare_tokenizer
from distiltune.explaining.gradients import Attribution, integrate_gradients, quadrature
from distiltune.explaining.model import load_explainable
from distiltune.explaining.run import Explanation, explain
from distiltune.explaining.words import Reading, read_text
from distiltune.models import build_model, compute_logits, save_model
from distiltune.sample import (
    ADJECTIVES,
    CONCESSIONS,
    NEGATIONS,
    SAMPLE_INFO,
    VERDICTS,
    generate_reviews,
)
from tests.conftest import ROOT, Project
from tests.damage import cut_the_weights, lose_a_layer, make_weights_nan, name_a_third_class

PARAMS = load_params(ROOT / "params.yaml")
LABELS = SAMPLE_INFO.label_names
ARCHITECTURES = ("tiny", "lstm", "distilbert", "bert")
REVIEW = "The plot was unaffable, but I'd say the acting isn't <b>bad</b> & the ending: superb!"
PIECES = list("abcdefghijklmnopqrstuvwxyz")
WORDPIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"<>&!.,:'", *PIECES,
              *(f"##{piece}" for piece in PIECES), "the", "was", "plot", "acting", "super", "##b",
              "but", "ending", "bad"]  # fmt: skip
VERDICT_WORDS = {word for texts in VERDICTS for text in texts for word in text.split()}
FILLERS = {"a", "to", "of", "from", "one", "two", "well", "sit", "through", "start"}
# What decides a generated review.
CARRIERS = {
    *ADJECTIVES[0], *ADJECTIVES[1], *(VERDICT_WORDS - FILLERS),
    *(word for text in (*NEGATIONS, *CONCESSIONS) for word in text.split()),
}  # fmt: skip


def reviews(num_reviews: int, seed: int, *, is_plain: bool = False) -> tuple[list[str], list[int]]:
    """Generated reviews; plain ones negate and concede nothing."""
    texts, labels = generate_reviews(num_reviews, seed)
    pairs = list(zip(texts, labels, strict=True))
    if is_plain:
        turns = (*NEGATIONS, *CONCESSIONS)
        pairs = [pair for pair in pairs if not any(turn in pair[0].lower() for turn in turns)]
    return [text for text, _ in pairs], [label for _, label in pairs]


def write_settings(folder: Path, max_length: int, truncation: str = "head") -> None:
    """What the train stage writes of how a model reads."""
    settings = {"label_names": LABELS, "max_length": max_length, "truncation": truncation,
                "from_scratch": True}  # fmt: skip
    write_json(folder / "run.json", settings)


def make_model(folder: Path, architecture: str) -> Path:
    """A model of random weights, in the way of the train stage."""
    tokenizer, checkpoint = folder / "tokenizer", folder / "checkpoint"
    tokenizer.mkdir(parents=True)
    torch.manual_seed(0)
    model: Any
    if architecture in ("tiny", "lstm"):
        row = PARAMS.models[architecture]
        table = folder / "train.parquet"
        texts, labels = reviews(500, seed=1)
        schema = reviews_schema(SAMPLE_INFO)
        batch = pa.record_batch([pa.array(texts), pa.array(labels, pa.int32())], schema=schema)
        write_reviews(table, [batch], schema)
        prepare_tokenizer(row.tokenizer, row.tokenizer.max_length, checkpoint, table, tokenizer)
        model = build_model(row, LABELS, row.tokenizer.max_length, tokenizer, checkpoint)
        if architecture == "lstm":
            with torch.no_grad():
                model.classifier.weight.mul_(20)  # or nothing would have a figure worth checking
    else:
        checkpoint.mkdir()
        (checkpoint / "vocab.txt").write_text("\n".join(WORDPIECES) + "\n")
        write_json(checkpoint / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
        size = {"vocab_size": len(WORDPIECES), "max_position_embeddings": 128}
        if architecture == "bert":
            bert = BertConfig(**size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                              intermediate_size=64, initializer_range=0.3)  # fmt: skip
            model = BertForSequenceClassification(bert)
            bert.save_pretrained(checkpoint)
        else:
            distilbert = DistilBertConfig(**size, dim=32, n_layers=3, n_heads=4, hidden_dim=64,
                                          initializer_range=0.3)  # fmt: skip
            model = DistilBert(distilbert)
            distilbert.save_pretrained(checkpoint)
        prepare_tokenizer(PARAMS.models["bert"].tokenizer, 128, checkpoint, folder, tokenizer)
    output = folder / "model"
    save_model(model, tokenizer, output)
    write_settings(output, 128)
    return output


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the command sets it for small models; other tests get back what they had."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a model of each architecture."""
    base = tmp_path_factory.mktemp("models")
    return {name: make_model(base / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def trained(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`, trained for seconds on generated reviews that negate nothing."""
    classifier = load_explainable(folders["tiny"])
    model = classifier.model.train().requires_grad_(True)
    texts, labels = reviews(6000, seed=2, is_plain=True)
    encoded = classifier.encoder.encode(texts)
    pieces = torch.from_numpy(encoded.ids).long().split(encoded.lengths.tolist())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    for _ in range(2):
        for rows in torch.randperm(len(texts)).split(16):
            chosen = [pieces[i] for i in rows.tolist()]
            sizes = [len(piece) for piece in chosen]
            batch = Batch(ids=torch.cat(chosen), offsets=torch.tensor([0, *sizes]).cumsum(0),
                          labels=torch.tensor(labels)[rows], lengths=sizes)  # fmt: skip
            logits = compute_logits(model, batch.ids, batch.offsets, batch.lengths)
            optimizer.zero_grad()
            functional.cross_entropy(logits, batch.labels).backward()
            optimizer.step()
    output = tmp_path_factory.mktemp("trained") / "model"
    shutil.copytree(folders["tiny"], output)
    model.save_pretrained(output)
    return output


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command as its user gives it: exit status, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["distiltune", "explain", *arguments])
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return (status, *capsys.readouterr())

    return run


# --- the integral ---


def attributed(compute: Any, point: list[float], **options: Any) -> Attribution:
    """Of a function of numbers, from zero to a point."""
    end = torch.tensor(point, dtype=torch.float64)[:, None]
    return integrate_gradients(lambda x: compute(x[:, :, 0]), torch.zeros_like(end), end, **options)


def test_the_quadrature_is_exact_for_polynomials_and_nested() -> None:
    for num_steps in (4, 8, 16, 32):
        places, weights = quadrature(num_steps)
        for degree in range(num_steps + 1):
            exact = 1 / (degree + 1)
            assert float(weights @ places**degree) == pytest.approx(exact, abs=1e-12)
        torch.testing.assert_close(quadrature(2 * num_steps)[0][::2], places)
        assert (weights > 0).all()


def test_known_attributions() -> None:
    """Linear: each its product. A product: halves. A sigmoid of a sum: in proportion."""
    slopes = torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64)
    linear = attributed(lambda x: x @ slopes + 7, [1.0, 2.0, 4.0])
    assert linear.values.tolist() == pytest.approx([2.0, -6.0, 2.0], abs=1e-12)
    assert (linear.output, linear.baseline_output) == pytest.approx((5.0, 7.0))
    product = attributed(lambda x: x[:, 0] * x[:, 1] + 0 * x[:, 2], [3.0, 4.0, 9.0])
    assert product.values.tolist() == pytest.approx([6.0, 6.0, 0.0], abs=1e-12)
    steep = attributed(lambda x: (x @ slopes).sigmoid(), [20.0, -10.0, 4.0])
    rise = 1 / (1 + math.exp(-72.0)) - 0.5
    expected = [rise * part / 72 for part in (40.0, 30.0, 2.0)]
    assert steep.holds
    assert steep.values.tolist() == pytest.approx(expected, abs=steep.tolerance)


def test_steps_are_doubled_until_it_holds_and_it_says_where_it_does_not() -> None:
    """A kink in the way: the exact share of each is its part of what comes behind it."""

    def hinge(x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x.sum(1) - 3.1)

    found = attributed(hinge, [3.0, 7.0])
    assert found.holds and found.num_steps > 8
    assert found.values.tolist() == pytest.approx([2.07, 4.83], abs=found.tolerance)
    few = attributed(lambda x: torch.cos(40 * x).sum(1), [3.0, 7.0], max_steps=16)
    assert few.num_steps == 16 and not few.holds
    # The sum is right by symmetry from the start, its two parts are not.
    opposite = attributed(lambda x: torch.cos(40 * x[:, 0]) - torch.cos(40 * x[:, 1]), [3.0, 3.0],
                          max_steps=16)  # fmt: skip
    assert opposite.gap < 1e-9 and not opposite.holds


def test_memory_is_bounded_and_nothing_is_computed_twice() -> None:
    sizes = []

    def compute(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return torch.cos(40 * x).sum(1)

    parts = attributed(compute, [3.0], max_steps=64, max_points=5)
    assert max(sizes) <= 5 and sum(sizes) == parts.num_steps + 1 == 65
    whole = attributed(compute, [3.0], max_steps=64)
    assert whole.values.tolist() == parts.values.tolist()


# --- models ---


def odds(logits: torch.Tensor, label: int) -> float:
    return float(logits[0, label] - logits[0, 1 - label])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_words_add_up_to_the_plain_models_difference(
    architecture: str, folders: dict[str, Path]
) -> None:
    """Against transformers' own padded forward pass on the text and on the baseline."""
    classifier = load_explainable(folders[architecture])
    found = explain(classifier, REVIEW, "negative")
    ids = torch.tensor(read_text(REVIEW, classifier.encoder, classifier.tokenizer).ids)[None]
    special = {classifier.tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]")}
    blank = torch.tensor([[i if i in special else classifier.baseline_id for i in ids[0].tolist()]])
    ones = torch.ones_like(ids)
    ends = [classifier.model(input_ids=x, attention_mask=ones).logits for x in (ids, blank)]
    difference = odds(ends[0], 0) - odds(ends[1], 0)
    assert abs(difference) > 0.1  # so that adding up says something
    assert found.attribution.holds
    assert abs(sum(found.values) - difference) <= max(0.01 * abs(difference), 0.01) + 1e-5
    assert found.baseline_token == ("[MASK]" if "bert" in architecture else "[UNK]")
    assert found.probability == pytest.approx(float(ends[0].softmax(1)[0, 0]), abs=1e-5)
    other = explain(classifier, REVIEW, "positive")
    assert other.values == pytest.approx([-value for value in found.values], abs=1e-4)


@pytest.mark.parametrize("architecture", ["tiny", "distilbert", "bert"])
def test_words_equal_a_plain_sum_over_a_thousand_points(
    architecture: str, folders: dict[str, Path]
) -> None:
    """The method written plainly, on embeddings that transformers takes in place of ids."""
    classifier = load_explainable(folders[architecture])
    model, text = classifier.model, "The plot was bad, but the acting superb"
    found = explain(classifier, text, "positive")
    reading = read_text(text, classifier.encoder, classifier.tokenizer)
    ids = torch.tensor(reading.ids)
    blank = torch.where(torch.tensor(reading.is_special), ids, classifier.baseline_id)
    weight = model.get_input_embeddings().weight
    start, direction = weight[blank], weight[ids] - weight[blank]
    total = torch.zeros(len(ids))
    for part in ((torch.arange(1000) + 0.5) / 1000).split(250):
        points = (start + part[:, None, None] * direction).requires_grad_()
        logits = model(inputs_embeds=points, attention_mask=torch.ones(points.shape[:2])).logits
        (gradients,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), points)
        total += (gradients * direction).sum((0, 2)) / 1000
    expected = [float(total[list(word.tokens)].sum()) for word in reading.words]
    assert max(map(abs, expected)) > 0.1
    assert found.values == pytest.approx(expected, abs=2 * found.attribution.tolerance)


def shares(found: list[Explanation]) -> tuple[float, float]:
    """Of reviews whose strongest word decides, and of plain adjectives that point the right way."""
    decided, right = [], []
    for one in found:
        assert one.label_name == "positive"
        word, _ = one.strongest[0]
        decided.append(one.text[word.start : word.end].lower() in CARRIERS)
        for sentence in re.finditer(r"[^.!]+", one.text.lower()):
            if any(turn in sentence[0] for turn in (*NEGATIONS, *CONCESSIONS)):
                continue
            for word, value in zip(one.words, one.values, strict=True):
                if word.start in range(*sentence.span()):
                    text = one.text[word.start : word.end].lower()
                    right += [(value > 0) == bool(polarity) for polarity in (0, 1)
                              if text in ADJECTIVES[polarity]]  # fmt: skip
    return sum(decided) / len(decided), sum(right) / len(right)


def test_a_trained_models_strongest_words_carry_the_sentiment(
    trained: Path, folders: dict[str, Path]
) -> None:
    """By chance it would be 2 of 10 words and half of the directions, as before the training."""
    texts = reviews(200, seed=5, is_plain=True)[0][:40]
    before = load_explainable(folders["tiny"])
    untrained = shares([explain(before, text, "positive", 64) for text in texts])
    assert untrained[0] < 0.6 and untrained[1] < 0.75
    classifier = load_explainable(trained)
    decided, right = shares([explain(classifier, text, "positive") for text in texts])
    assert decided >= 0.85 and right >= 0.95


@pytest.mark.slow
def test_the_same_of_the_pipelines_model_on_the_sample(new_project: Any) -> None:
    """With negations and concessions, trained by the stages as `make demo` does."""
    project: Project = new_project(small=False)
    project.change_params({"dataset": "sample", "model": "tiny"})
    for stage in ("download", "download_checkpoint", "split", "tokenize", "train"):
        project.stage(stage)
    classifier = load_explainable(project.root / "data/model")
    found = [explain(classifier, text, "positive") for text in reviews(150, seed=11)[0]]
    decided, right = shares(found)
    assert decided >= 0.9 and right >= 0.95
    assert sum(one.attribution.holds for one in found) >= 0.9 * len(found)


# --- words ---


def bytes_tokenizer() -> Tokenizer:
    """As RoBERTa's: bytes, the space a part of the word behind it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                         show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator([REVIEW], trainer)
    return tokenizer


def sentence_tokenizer() -> Tokenizer:
    """As XLM-R's: pieces of what stands between spaces."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = UnigramTrainer(vocab_size=60, show_progress=False, unk_token="<unk>",
                             special_tokens=["<unk>"])  # fmt: skip
    tokenizer.train_from_iterator([REVIEW] * 3, trainer)
    return tokenizer


def read(tokenizer: Tokenizer, text: str, max_length: int = 128, how: str = "head") -> Reading:
    free = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    free.no_truncation()
    return read_text(text, Encoder(tokenizer, max_length, how), free)


def words_of(text: str, reading: Reading) -> list[str]:
    return [text[word.start : word.end] for word in reading.words]


def test_subwords_become_the_words_of_the_text(folders: dict[str, Path]) -> None:
    text = "It isn't un-\taffable, Café cafe\u0301!  I’d 映画 [SEP] \U0001f600x"  # noqa: RUF001
    for architecture in ("tiny", "bert"):
        words = words_of(text, read(load_tokenizer(folders[architecture]), text))
        assert words == [
            "It", "isn't", "un", "-", "affable", ",", "Café", "cafe\u0301", "!", "I’d",  # noqa: RUF001
            "映", "画", "[SEP]", "\U0001f600x",
        ]  # fmt: skip


@pytest.mark.parametrize("how", ["head", "head_tail"])
@pytest.mark.parametrize("kind", ["tiny", "lstm", "bert", "bytes", "sentence"])
def test_each_token_is_in_one_word_however_it_is_cut(
    kind: str, how: str, folders: dict[str, Path]
) -> None:
    text = f"{REVIEW} don't\n\n<br /><br />naïve cafe\u0301 \U0001f600 映画 {REVIEW}"
    others = {"bytes": bytes_tokenizer, "sentence": sentence_tokenizer}
    for max_length in (3, 7, 20, 41, 60, 1000):
        tokenizer = others[kind]() if kind in others else load_tokenizer(folders[kind])
        reading = read(tokenizer, text, max_length, how)
        assert len(reading.ids) <= max_length
        placed = [token for word in reading.words for token in word.tokens]
        assert placed == [i for i, special in enumerate(reading.is_special) if not special]
        assert all(a.end <= b.start for a, b in pairwise(reading.words))
        if max_length == 1000:
            assert reading.unread is None
            covered = {at for word in reading.words for at in range(word.start, word.end)}
            left = "".join(text[at] for at in range(len(text)) if at not in covered)
            # Markup of a line's end is a space to the tokenizers that the project trains.
            assert "".join(left.split()) in ("", "<br/><br/>")
        else:
            assert reading.unread and reading.unread[0] < reading.unread[1]
            assert not any(
                word.start < reading.unread[1] and reading.unread[0] < word.end
                for word in reading.words
            )


# --- the command ---


def figures(output: str) -> dict[str, float]:
    """The table in the terminal: words and log-odds."""
    lines = output.split("\n\n")[1].splitlines()[1:]
    found = [re.fullmatch(r"(.*?)\s+([+-]\d+\.\d{3})(?:  .*)?", line) for line in lines]
    assert all(found)
    return {match[1]: float(match[2]) for match in found if match}


def test_the_table_in_the_terminal(trained: Path, command: Any) -> None:
    text = "The acting was superb and the plot was gripping."
    status, output, errors = command(text, "--model", str(trained))
    assert (status, errors) == (0, f"{trained}: on cpu ({os.cpu_count()} cores), fp32\n")
    assert "\x1b" not in output
    probability, first = re.match(r"positive: (\S+)%, log-odds (\S+)\.\n", output).groups()  # type: ignore[union-attr]
    assert float(probability) > 90
    assert f"{1 / (1 + math.exp(-float(first))):.1%}" == f"{probability}%"
    second = re.search(
        r"^Baseline: \S+%, log-odds (\S+): the same text with each of its", output, re.M
    )
    assert second
    table = figures(output)
    # The same word may stand there twice; the first of each is the stronger.
    assert {"superb", "gripping"} <= set(list(table)[:3])
    by = explain(load_explainable(trained), text)
    assert (
        f"{sum(by.values):+.3f} of a difference of {float(first) - float(second[1]):+.3f}" in output
    )


def test_a_file_a_class_and_the_pipelines_model(
    trained: Path, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --model it is the one that `train` writes."""
    shutil.copytree(trained, tmp_path / "data/model")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "review.txt"
    file.write_text("The plot was dull.\nThe acting was awful.\n", encoding="utf-8")
    status, output, _ = command("--file", str(file), "--class", "positive")
    assert status == 0
    assert output.startswith("positive (the model says negative): ")
    assert figures(output)["awful"] < 0 and figures(output)["dull"] < 0


def test_too_few_steps_are_told(trained: Path, command: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    text = reviews(20, seed=8)[0][3]
    arguments = (text, "--model", str(trained), "--html", str(page))
    _, output, _ = command(*arguments, "--steps", "8")
    assert re.search(r"^(NOT COMPLETE|NOT SETTLED): the words add up to .* \(8 steps", output, re.M)
    assert 'role="alert"' in page.read_text()
    _, output, _ = command(*arguments)
    assert re.search(r"^Complete: ", output, re.M)
    assert 'role="alert"' not in page.read_text()


class Page(HTMLParser):
    """What a browser makes of the page, as far as it matters here."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str | None]] = []
        self.review = self.unread = self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag != "meta":
            self.open.append((tag, found.get("class")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if ("div", "review") in self.open:
            self.review += data
            self.unread += data if self.open[-1][0] == "del" else ""


def test_the_page_shows_the_whole_text_and_runs_nothing(
    trained: Path, command: Any, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text("what was there")
    text = "A <script>alert('x')</script>\n& \"fresh\" plot </div><b onclick=x>dull</b> {{ 7*7 }}"
    status, output, _ = command(text, "--model", str(trained), "--html", str(page))
    assert status == 0 and output.endswith(f"\npage: {page}\n")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    found = Page(page)
    assert found.review == text and not found.open
    assert {tag for tag, _ in found.tags} & {"script", "b", "img", "link", "iframe"} == set()
    names = {name for _, attributes in found.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")} and not names & {"src", "href"}
    assert "url(" not in page.read_text() and "http://" not in page.read_text()
    titles = [a["title"] for _, a in found.tags if a.get("title")]
    assert sum(map(float, map(str, titles))) == pytest.approx(
        sum(explain(load_explainable(trained), text).values), abs=0.001 * len(titles)
    )
    for said in ("[UNK]", "log-odds", "weak to strong", "Complete:", "integrated gradients"):
        assert said in found.text


@pytest.mark.parametrize("how", ["head", "head_tail"])
def test_what_was_not_read_is_marked(
    how: str, folders: dict[str, Path], command: Any, tmp_path: Path
) -> None:
    model, page = tmp_path / "model", tmp_path / "page.html"
    shutil.copytree(folders["tiny"], model)
    write_settings(model, 16, how)
    text = " ".join(f"{word} plot was dull." for word in ("First", "The", "The", "The", "Last"))
    status, output, _ = command(text, "--model", str(model), "--html", str(page))
    assert status == 0
    found = Page(page)
    assert found.review == text
    assert f"Not read: {len(found.unread)} of {len(text)} characters" in output
    assert found.unread and found.unread in text
    assert text.endswith(found.unread) == (how == "head")


def on_terminal(command: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the command writes to a terminal."""
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as terminal:  # noqa: PTH123 (of a descriptor)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            patch.setenv("TERM", "xterm")
            assert command(*arguments)[0] == 0
        terminal.write("\x04")
        terminal.flush()
        output = b""
        while not output.endswith(b"\x04"):
            output += os.read(ours, 4096)
    os.close(ours)
    return output.decode().replace("\r\n", "\n").removesuffix("\x04")


def test_colours_on_a_terminal_alone_and_not_with_no_color(
    trained: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colours are the command's own: an escape in the text does nothing."""
    text = "A superb plot\x1b[31m, dull ending"
    arguments = (text, "--class", "positive", "--model", str(trained))
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = on_terminal(command, monkeypatch, *arguments)
    assert re.search(r"\x1b\[38;5;16;48;5;(75|111|153)msuperb\x1b\[0m", coloured)
    assert re.search(r"\x1b\[38;5;16;48;5;(208|215|223)mdull\x1b\[0m", coloured)
    assert "\x1b[31m" not in coloured and "for positive" in coloured
    without = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert "A superb plot\ufffd[31m, dull ending" in without
    monkeypatch.setenv("NO_COLOR", "1")
    plain = on_terminal(command, monkeypatch, *arguments)
    assert "\x1b" not in plain
    assert figures(plain)["superb"] > 0


@pytest.mark.slow
def test_a_reader_who_stops_is_no_error(trained: Path, tmp_path: Path) -> None:
    """In a process of its own, whose output nobody reads; the page is there all the same."""
    ours, theirs = os.pipe()
    os.close(ours)
    page = tmp_path / "page.html"
    arguments = ["A superb plot.", "--model", str(trained), "--html", str(page)]
    ended = subprocess.run(
        [sys.executable, "-m", "distiltune.cli", "explain", *arguments],
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        timeout=120,
    )
    os.close(theirs)
    assert ended.returncode == 141 and "Error" not in ended.stderr, ended.stderr
    assert Page(page).review == "A superb plot."


# --- errors ---


def damage(name: str, content: bytes | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return change


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no-weights": (damage("model.safetensors", None), "has no model.safetensors"),
    "no-settings": (damage("run.json", None), "has no run.json"),
    "settings-cut": (damage("run.json", b'{"label_na'), "damaged"),
    "settings-empty": (damage("run.json", b"{}"), "damaged"),
    "config-garbage": (damage("config.json", b"\x00\xff"), "damaged"),
    "config-unknown": (damage("config.json", b'{"model_type": "none"}'), "damaged"),
    "tokenizer-garbage": (damage("tokenizer.json", b"{}"), "damaged"),
    "tokenizer-settings": (damage("tokenizer_config.json", b"{"), "tokenizer_config.json: damaged"),
    "weights-cut": (cut_the_weights, "damaged"),
    "weights-lost": (lose_a_layer, "model.safetensors: lacks 1 weights, classifier.weight"),
    "weights-nan": (make_weights_nan, "no finite number"),
    "other-classes": (name_a_third_class, "run.json names 3 classes, config.json has 2"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_model_is_one_line(
    case: str, folders: dict[str, Path], command: Any, tmp_path: Path
) -> None:
    change, words = DAMAGED[case]
    model, page = tmp_path / "model", tmp_path / "page.html"
    page.write_text("the page of before")
    shutil.copytree(folders["tiny"], model)
    change(model)
    status, output, errors = command("fine", "--model", str(model), "--html", str(page))
    told = [line for line in errors.splitlines() if not line.endswith(" cores), fp32")]
    assert (status, output, len(told)) == (1, "", 1), errors
    assert told[0].startswith("error: ") and str(model) in told[0] and words in told[0]
    assert page.read_text() == "the page of before"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((" \n ",), "the text is empty"),
        # Before the model is looked for.
        (("", "--model", "nowhere"), "the text is empty"),
        (("bad \udcff",), "the text is not UTF-8"),
        (("fine", "--class", "neutral"), "'neutral': the model's classes are negative, positive"),
        (("fine", "--html", "nowhere/page.html"), "--html: nowhere/page.html: must be a file in"),
        (("fine", "--html", "."), "--html: .: must be a file in"),
        (("--file", "nowhere.txt"), "--file: nowhere.txt: no such file"),
        (("--file", "latin.txt"), "--file: latin.txt: not UTF-8"),
        (("fine", "--model", "nowhere"), "nowhere: no such folder"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], words: str, folders: dict[str, Path], command: Any,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes(b"caf\xe9")
    if "--model" not in arguments:
        arguments = (*arguments, "--model", str(folders["tiny"]))
    status, output, errors = command(*arguments)
    told = [line for line in errors.splitlines() if not line.endswith(" cores), fp32")]
    assert (status, output, len(told)) == (1, "", 1), errors
    assert told[0].startswith("error: ") and words in told[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["latin.txt"]


@pytest.mark.parametrize("arguments", [(), ("a", "--file", "b"), ("a", "--steps", "7")], ids=str)
def test_a_wrong_command_line_is_told_with_its_use(
    arguments: tuple[str, ...], command: Any
) -> None:
    status, _, errors = command(*arguments)
    assert status == 2 and "usage: distiltune explain" in errors and "error: " in errors
