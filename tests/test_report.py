"""Runs put together by variant, and what a comparison of them shows: text, tables, page."""

import csv
import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distiltune import InputError
from distiltune.comparison import report
from distiltune.comparison.comparing import Comparison, compare
from distiltune.comparison.figures import aligned
from distiltune.comparison.matrices import agreement
from distiltune.comparison.page import headline
from distiltune.comparison.rates import RatePoint, rate_lines
from distiltune.comparison.report import format_table, report_folder, to_json, write_report
from distiltune.comparison.runs import Run, TriedRate, best_rates

TIMES = itertools.count()  # one run after the other
NUM_REVIEWS = 240
NUM_STEPS = 60
CONDITIONS = {
    "test split": "e" * 64,
    "training data": f'"{"0123456789abcdef" * 4}"',
    "training code": f'"{"fedcba9876543210" * 4}"',
    "model": '"tiny"',
    "num_steps": str(NUM_STEPS),
}


def make_run(
    optimizer: str = "adam",
    seed: int = 1,
    *,
    accuracy: float = 0.8,
    validation: Sequence[float] = (0.7, 0.8, 0.85),
    params: Mapping[str, Any] | None = None,
    conditions: Mapping[str, str] | None = None,
    source: str | None = None,
    right: np.ndarray[Any, Any] | None = None,
    num_reviews: int = NUM_REVIEWS,
    train_seconds: float = 30.0,
    log_every: int = 5,
    energy: float | None = None,
) -> Run:
    """A run whose model is right on about the share `accuracy` of reviews, hard ones less."""
    labels = np.arange(num_reviews) % 2
    hardness = np.random.default_rng(0).normal(0, 0.5, num_reviews)
    generator = np.random.default_rng([seed, *optimizer.encode(), int(1e4 * accuracy)])
    ability = generator.normal(0, 0.03) + generator.normal(0, 1, num_reviews) - hardness
    guessed = ability > np.quantile(ability, 1 - accuracy)
    answers = guessed if right is None else right
    rate = (params or {}).get("learning_rate", 5e-5)
    steps = range(log_every, NUM_STEPS + 1, log_every)
    noise = generator.normal(0, 0.02, NUM_STEPS + 1)
    num_epochs = len(validation)
    return Run(
        source=source or f"experiment {optimizer}-{seed}",
        optimizer=optimizer,
        seed=seed,
        variant_params={
            "optimizer": optimizer,
            "learning_rate": rate,
            "optimizer.learning_rate": rate,
            **(params or {}),
        },
        conditions={**CONDITIONS, **(conditions or {})},
        predicted=np.where(answers, labels, 1 - labels).astype(np.int64),
        right=answers.astype(np.bool_),
        accuracy=float(answers.mean()),
        loss=1.2 - float(answers.mean()),
        summary={
            "started": float(begun := next(TIMES)),
            "ended": begun + 0.5,
            "kept_epoch": num_epochs,
            "train_seconds": train_seconds,
            "num_tokens": 90_000,
            "optimizer_seconds_per_step": 0.0042,
            "optimizer_state_bytes": 3 * 2**20,
            "peak_memory_bytes": 1_500 * 2**20,
            "energy_joules": energy,
        },
        steps=[
            {"step": float(s), "loss": 0.2 + 0.5 * float(np.exp(-s / 30)) + float(noise[s])}
            for s in steps
        ],
        epochs=[
            {
                "epoch": float(number),
                "validation_accuracy": value,
                "train_seconds": train_seconds / num_epochs,
            }
            for number, value in enumerate(validation, start=1)
        ],
    )


def make_comparison(accuracies: Mapping[str, float], seeds: Sequence[int]) -> Comparison:
    return compare(
        [make_run(name, s, accuracy=level) for name, level in accuracies.items() for s in seeds]
    )


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_comparison({"adam": 0.8, "sgd": 0.6, "lion": 0.79}, [1, 2, 3, 4])


@pytest.fixture(scope="module")
def folder(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent") / "report"
    write_report(comparison, folder, "Which optimizer?")
    return folder


# compare


def test_variants_are_summarized_with_the_best_first(comparison: Comparison) -> None:
    assert [variant.name for variant in comparison.variants] == ["adam", "lion", "sgd"]
    first = comparison.variants[0]
    accuracies = [run.accuracy for run in comparison.runs["adam"]]
    assert first.seeds == (1, 2, 3, 4) and first.num_seeds == 4
    assert first.mean == pytest.approx(np.mean(accuracies))
    assert first.standard_deviation == pytest.approx(np.std(accuracies, ddof=1))
    assert first.best == max(accuracies)
    assert first.mean_validation_accuracy == pytest.approx(0.85)
    assert comparison.num_reviews == NUM_REVIEWS
    assert [(p.variant_a, p.variant_b, p.verdict) for p in comparison.pairs] == [
        ("adam", "lion", "no difference shown"),
        ("adam", "sgd", "better"),
        ("lion", "sgd", "better"),
    ]


def test_a_variant_is_named_by_what_differs_within_its_optimizer() -> None:
    runs = [
        make_run("adamw", seed, params={"learning_rate": rate, "optimizer.learning_rate": rate})
        for rate in (1e-5, 3e-5)
        for seed in (1, 2)
    ]
    found = compare([*runs, make_run("sgd")])
    assert set(found.runs) == {"adamw (learning_rate=1e-05)", "adamw (learning_rate=3e-05)", "sgd"}
    runs = [make_run("adamw", params={"optimizer.weight_decay": decay}) for decay in (0.0, 0.1)]
    assert set(compare(runs).runs) == {"adamw (weight_decay=0.0)", "adamw (weight_decay=0.1)"}


def test_of_a_seed_that_is_there_twice_the_later_counts() -> None:
    runs = [
        make_run("adam", 1, source="old"),
        make_run("adam", 1, source="new", accuracy=0.9),
        make_run("adam", 2),
        make_run("adam", 2, source="again"),
        make_run("sgd", 1),
    ]
    found = compare(runs)
    assert [run.source for run in found.runs["adam"]] == ["new", "again"]
    assert found.notes == (
        "adam with seed 1 is there twice, with different predictions; new counts, old does not",
        "adam with seed 2 is there twice, with the same predictions; "
        "again counts, experiment adam-2 does not",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("training data", '"ff"'), ("num_steps", "61"), ("training code", '"aa"')],
)
def test_runs_that_share_too_little_are_refused_by_name(name: str, value: str) -> None:
    runs = [
        make_run("adam", 1),
        make_run("adam", 2),
        make_run("sgd", 1, conditions={name: value}),
    ]
    expected = f"{name}: {CONDITIONS[name].strip(chr(34))[:12]} (adam 1, adam 2), "
    expected += f"{value.strip(chr(34))} (sgd 1)"
    with pytest.raises(InputError, match="not comparable") as error:
        compare(runs)
    assert expected in str(error.value)
    assert [found.sentence for found in compare(runs, force=True).differences] == [expected]


def test_a_condition_that_only_some_have_is_a_difference() -> None:
    with pytest.raises(InputError, match=r"speed.new: not set \(adam 1\), true \(sgd 1\)"):
        compare([make_run("adam"), make_run("sgd", conditions={"speed.new": "true"})])


def test_what_one_run_has_a_table_of_and_the_other_not_is_one_line() -> None:
    table = {"adapt.epochs": "3", "adapt.batch_size": "16", "adapt.new": "1", "train.epochs": "9"}
    runs = [
        make_run("adam"),
        make_run("sgd", conditions={**table, "adapt.weights_sha256": '"ab"'}),
        make_run("lion", conditions={**table, "adapt.weights_sha256": '"cd"', "speed.new": "true"}),
    ]
    shown = [
        "adapt.epochs: 3 (sgd 1, lion 1), not set (adam 1); likewise adapt.batch_size, adapt.new",
        "train.epochs: 9 (sgd 1, lion 1), not set (adam 1)",
        # What divides the runs otherwise is not hidden among them.
        "adapt.weights_sha256: not set (adam 1), ab (sgd 1), cd (lion 1)",
        "speed.new: not set (adam 1, sgd 1), true (lion 1)",
    ]
    with pytest.raises(InputError) as error:
        compare(runs)
    assert str(error.value).splitlines()[1:] == shown
    forced = compare(runs, force=True)
    assert all(line in format_table(forced) for line in shown)
    assert len(to_json(forced)["differences"]) == 6


def test_values_that_begin_alike_can_be_told_apart() -> None:
    names = ['"distilbert-base-uncased"', '"distilbert-base-cased"']
    runs = [make_run(o, conditions={"model": n}) for o, n in zip("ab", names, strict=True)]
    with pytest.raises(InputError, match=r"distilbert-base-uncased \(a 1\), .*-base-cased \(b 1"):
        compare(runs)
    digests = ['"' + digit * 64 + '"' for digit in "ab"]
    runs = [make_run(o, conditions={"data": d}) for o, d in zip("ab", digests, strict=True)]
    with pytest.raises(InputError, match=r"data: a{12} \(a 1\), b{12} \(b 1\)"):
        compare(runs)


def test_different_numbers_of_reviews_are_refused_even_when_forced() -> None:
    with pytest.raises(InputError, match="sgd with seed 1: predictions for 100 reviews, but"):
        compare([make_run("adam"), make_run("sgd", num_reviews=100)], force=True)


@pytest.mark.parametrize(
    ("runs", "found"),
    [([], "no runs"), ([make_run("adam", s) for s in (1, 2)], "only runs of adam")],
)
def test_fewer_than_two_variants_are_refused(runs: list[Run], found: str) -> None:
    with pytest.raises(InputError, match=f"two variants or more, and there are {found}"):
        compare(runs)


def test_target() -> None:
    runs = [
        make_run("adam", 1, validation=(0.70, 0.80, 0.90)),
        make_run("adam", 2, validation=(0.70, 0.86, 0.85)),
        make_run("sgd", 1, validation=(0.85, 0.8519, 0.8)),
    ]
    found = compare(runs)
    assert found.target == 0.851  # of the lowest best, rounded down
    by_name = {variant.name: variant for variant in found.variants}
    assert by_name["adam"].epochs_to_target == pytest.approx(2.5)
    assert by_name["adam"].seconds_to_target == pytest.approx(25)
    assert by_name["adam"].tokens_to_target == pytest.approx(75_000)
    assert by_name["sgd"].epochs_to_target == 2

    found = compare(runs, target=0.88)
    assert found.target == 0.88
    for variant in found.variants:  # one run of adam gets there, the other does not
        assert variant.epochs_to_target is None
        assert variant.seconds_to_target is None and variant.tokens_to_target is None


# the text


def test_table(comparison: Comparison) -> None:
    text = format_table(comparison)
    lines = text.splitlines()
    assert "test accuracy, %" in lines[0] and "to 85.0 % validation" in lines[0]
    assert " ".join(lines[1].split()) == (
        "variant seeds mean ± sd best loss epochs seconds tokens ms/step memory peak memory seconds"
    )
    first = comparison.variants[0]
    assert (
        lines[2].split()
        == (
            f"adam 4 {100 * first.mean:.2f} ± {100 * (first.standard_deviation or 0):.2f} "
            f"{100 * first.best:.2f} {first.mean_loss:.4f} "
            "3 30.0 90.0 k 4.20 3.00 MiB 1.46 GiB 30.0"
        ).split()
    )
    assert max(map(len, lines[:5])) <= 120
    for pair in comparison.pairs:
        assert f"- {pair.sentence}" in lines
    assert "energy" not in text and "Notes" not in text and "NOT COMPARABLE" not in text


def test_table_of_long_names_is_two() -> None:
    long = "adamw_with_a_name_that_is_rather_long"
    found = compare([make_run(long, 1, energy=2_500.0), make_run("sgd", 1)], target=0.99)
    accuracy, cost, legend = format_table(found).split("\n\n")[:3]
    assert "test accuracy" in accuracy and "optimizer" not in accuracy
    assert "peak memory" in cost and "test accuracy" not in cost and "2.50 kJ" in cost
    for table in (accuracy, cost):
        assert [line.split()[0] for line in table.splitlines()[2:]] == [long, "sgd"]
        assert max(map(len, table.splitlines())) <= 120
    # One seed has no deviation, and none of the runs gets to the target.
    assert accuracy.splitlines()[2].split()[3] == "-"
    assert accuracy.splitlines()[2].split()[-3:] == ["-", "-", "-"]
    assert "99.0 %" in accuracy and "99.0 %" in legend


def test_table_warns_of_what_was_forced() -> None:
    runs = [make_run("adam"), make_run("adam"), make_run("sgd", conditions={"model": '"other"'})]
    text = format_table(compare(runs, force=True))
    assert text.endswith("NOT COMPARABLE, forced:\n- model: tiny (adam 1), other (sgd 1)")
    assert "Notes:\n- adam with seed 1 is there twice" in text


def test_headline(comparison: Comparison) -> None:
    mean = f"{100 * comparison.variants[0].mean:.2f}"
    assert headline(comparison) == (
        f"adam has the highest mean test accuracy, {mean} % over 4 seeds. It is better than sgd; "
        "no difference to lion is shown."
    )
    alone = make_comparison({"adam": 0.8, "sgd": 0.6, "lion": 0.79}, [1])
    assert headline(alone).endswith("% over one seed. It was not tested against any other.")
    right = np.arange(NUM_REVIEWS) < 200
    equal = compare([make_run(name, right=right) for name in ("a", "b")])
    assert headline(equal).startswith("a and b have the same mean test accuracy, 83.33 %")


# the files


def test_json_is_plain(comparison: Comparison, folder: Path) -> None:
    content = to_json(comparison)
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text) == content
    assert json.loads((folder / "comparison.json").read_text()) == content
    assert [row["name"] for row in content["variants"]] == ["adam", "lion", "sgd"]
    assert content["variants"][0]["seeds"] == [1, 2, 3, 4]
    assert content["pairs"][1]["verdict"] == "better"
    assert content["pairs"][1]["sentence"] == comparison.pairs[1].sentence
    assert content["pairs"][1]["interval"] == list(comparison.pairs[1].interval or ())
    assert content["runs"][0] == {
        "variant": "adam",
        "seed": 1,
        "source": "experiment adam-1",
        "accuracy": comparison.runs["adam"][0].accuracy,
        "loss": comparison.runs["adam"][0].loss,
    }
    assert content["forced"] is False and content["differences"] == []


def test_json_has_null_for_what_is_not_finite() -> None:
    run = make_run("adam", 1)
    broken = Run(**{**vars(run), "loss": float("nan"), "seed": 2})
    content = to_json(compare([run, broken, make_run("sgd")]))
    assert content["variants"][0]["name"] == "adam" and content["variants"][0]["mean_loss"] is None
    assert [row["loss"] for row in content["runs"]][1] is None
    json.dumps(content, allow_nan=False)


def test_csv(comparison: Comparison, folder: Path) -> None:
    def rows(name: str) -> list[dict[str, str]]:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    variants, pairs, runs = rows("variants.csv"), rows("pairs.csv"), rows("runs.csv")
    assert [(row["name"], row["seeds"]) for row in variants] == [
        ("adam", "1 2 3 4"),
        ("lion", "1 2 3 4"),
        ("sgd", "1 2 3 4"),
    ]
    assert float(variants[0]["mean"]) == comparison.variants[0].mean
    assert variants[0]["energy_joules"] == ""
    assert len(pairs) == 3 and len(runs) == 12
    low, high = comparison.pairs[2].interval or (None, None)
    assert (float(pairs[2]["interval_low"]), float(pairs[2]["interval_high"])) == (low, high)
    assert pairs[2]["verdict"] == "better"
    assert [row["seed"] for row in runs[:4]] == ["1", "2", "3", "4"]


def test_page_is_one_file_with_all_pictures(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == ["accuracy_time.png", "agreement.png", "curves.png", "pairs.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in folder.glob("*.png"))
    assert page.count('src="data:image/png;base64,') == len(pictures)
    assert len(re.findall(r"\bsrc=", page)) == len(pictures)
    for forbidden in ('src="http', "<script", "<link", "href=", "@import", "url("):
        assert forbidden not in page
    # The verdicts come first, before the table and the pictures.
    places = [page.index(text) for text in ("adam is better than sgd", "<table>", "<img")]
    assert places == sorted(places)
    assert "no optimizer was run with two or more" in page
    assert "Not comparable" not in page


def test_page_escapes_what_comes_from_outside(tmp_path: Path) -> None:
    runs = [
        make_run("<b>x", 1, source="<i>from"),
        make_run("_$y_{1$&", 1, conditions={"<u>model": '"<s>"'}),
    ]
    write_report(compare(runs, force=True), tmp_path / "report", "<em>title & more")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    for hostile in ("<b>", "<i>", "<u>", "<s>", "<em>"):
        assert hostile not in page
    assert "&lt;b&gt;x" in page and "&lt;em&gt;title &amp; more" in page
    assert "Not comparable, forced." in page and "&lt;u&gt;model: not set" in page


def test_learning_rates_are_drawn_where_there_are_several(tmp_path: Path) -> None:
    runs = [
        make_run(
            "adamw", seed, accuracy=accuracy, params={"learning_rate": rate, "optimizer.decay": 0.1}
        )
        for rate, accuracy in ((1e-5, 0.7), (3e-5, 0.8))
        for seed in (1, 2)
    ]
    found = compare([*runs, make_run("sgd")])
    assert {k: len(line) for k, line in rate_lines(found).items()} == {"adamw": 4}
    paths = write_report(found, tmp_path / "report", "rates")
    assert all(path.is_file() for path in paths)
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "report").iterdir()}
    assert "learning_rates.png" in {path.name for path in paths}
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 5
    assert "There is no picture of learning rates" not in page
    # Lines that differ in more than the rate are not mixed.
    more = [
        make_run("adamw", 1, params={"learning_rate": rate, "optimizer.decay": 0.2})
        for rate in (1e-5, 3e-5)
    ]
    assert set(rate_lines(compare([*runs, *more]))) == {"adamw (decay=0.1)", "adamw (decay=0.2)"}


def test_the_search_for_the_rates_is_drawn_and_told(tmp_path: Path) -> None:
    tried = [
        TriedRate(
            optimizer=optimizer,
            row_rate=rate,
            learning_rate=rate,
            validation_accuracy=0.8 + 100 * rate,
            validation_loss=0.5,
            stopped_early=rate == 1e-5,
        )
        for optimizer, rates in (("adam", (1e-5, 5e-5)), ("sgd", (1e-2,)))
        for rate in rates
    ]
    found = compare([make_run("adam"), make_run("sgd")], tried_rates=tried)
    assert rate_lines(found) == {
        "adam": [
            RatePoint(rate=1e-5, accuracy=0.8 + 1e-3, variant="adam", stopped_early=True),
            RatePoint(rate=5e-5, accuracy=0.8 + 5e-3, variant="adam"),
        ]
    }
    paths = write_report(found, tmp_path / "report", "rates")
    assert "learning_rates.png" in {path.name for path in paths}
    assert len(to_json(found)["tried_rates"]) == 3
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "3 did not diverge; 1 of these ended early" in " ".join(page.split())


def test_one_variant_of_a_sweep_is_summarized(tmp_path: Path) -> None:
    runs = [make_run("adam", seed) for seed in (1, 2)]
    with pytest.raises(InputError, match="only runs of adam"):
        compare(runs)
    found = compare(runs, is_sweep=True)
    assert found.pairs == () and found.variants[0].num_seeds == 2
    assert "Pairs:" not in format_table(found)
    paths = {path.name for path in write_report(found, tmp_path / "report", "one")}
    assert "curves.png" in paths and not {"pairs.png", "agreement.png"} & paths
    page = " ".join((tmp_path / "report/report.html").read_text(encoding="utf-8").split())
    assert "Nothing was compared, because there is no other variant." in page
    assert ">5e-05</td>" in page  # the learning rate


def test_other_test_reviews_are_never_paired(tmp_path: Path) -> None:
    runs = [make_run("adam", seed) for seed in (1, 2)]
    other = {"test split": "f" * 64}
    runs += [make_run("sgd", seed, conditions=other, num_reviews=50) for seed in (1, 2)]
    with pytest.raises(InputError, match="test split: "):
        compare(runs)
    found = compare(runs, force=True)
    assert found.pairs == () and len(found.variants) == 2
    text = format_table(found)
    assert "the test reviews differ, so no pair is compared on them" in text
    assert "NOT COMPARABLE, forced:" in text
    write_report(found, tmp_path / "report", "forced")


def test_what_has_learned_nothing_sets_no_target() -> None:
    idle = make_run("sgd", validation=(0.5, 0.5))
    idle = dataclasses.replace(idle, predicted=np.zeros_like(idle.predicted))
    found = compare([make_run("adam"), make_run("lion", validation=(0.7, 0.81)), idle])
    assert found.target == 0.81
    assert any("sgd has learned nothing with seed 1" in note for note in found.notes)
    by_name = {variant.name: variant for variant in found.variants}
    assert by_name["sgd"].epochs_to_target is None and by_name["lion"].epochs_to_target == 2


def test_what_ended_early_is_no_candidate() -> None:
    def tried(rate: float, accuracy: float, *, stopped: bool) -> TriedRate:
        return TriedRate(
            optimizer="adam", row_rate=rate, learning_rate=rate, validation_accuracy=accuracy,
            validation_loss=0.5, stopped_early=stopped,
        )  # fmt: skip

    rates = [tried(1e-5, 0.9, stopped=True), tried(2e-5, 0.8, stopped=False)]
    assert best_rates(rates)["adam"].row_rate == 2e-5


def test_a_report_takes_the_place_of_the_one_before(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The pictures take their time, and are not the point here.
    monkeypatch.setattr(report, "write_figures", lambda *_: [])
    target = tmp_path / "report"
    write_report(comparison, target, "first")
    (target / "stale.png").touch()
    write_report(comparison, target, "second")
    assert "second" in (target / "report.html").read_text(encoding="utf-8")
    assert not (target / "stale.png").exists()

    def fail(*_: object) -> str:
        raise RuntimeError("in the middle")

    before = {path.name: path.read_bytes() for path in target.iterdir()}
    monkeypatch.setattr(report, "render_page", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        write_report(comparison, target, "third")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_what_is_no_report_is_not_replaced(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(InputError, match="is not a report"):
            write_report(comparison, path, "title")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# what is drawn


def test_runs_are_aligned_by_the_steps_that_all_have() -> None:
    runs = [make_run("adam", 1, log_every=10), make_run("adam", 2, log_every=15)]
    runs[1].steps[-1]["loss"] = float("inf")
    places, values = aligned((run.steps for run in runs), "step", "loss")
    assert places.tolist() == [30.0, 60.0]
    assert values.shape == (2, 2)
    assert values[0, 0] == next(r["loss"] for r in runs[0].steps if r["step"] == 30)
    assert np.isnan(values[1, 1])


def test_agreement() -> None:
    right, other = np.arange(NUM_REVIEWS) < 200, np.arange(NUM_REVIEWS) >= 60
    runs = [
        make_run("a", 1, right=right),
        make_run("a", 2, right=other),
        make_run("b", 1, right=right[::-1]),
        make_run("b", 3, right=right),
        make_run("c", 4, right=other),
    ]
    found = compare(runs)
    place = {name: i for i, name in enumerate(found.runs)}
    shares = agreement(found)
    a, b, c = place["a"], place["b"], place["c"]
    assert shares[a, a] == pytest.approx((right == other).mean())
    assert shares[a, b] == shares[b, a] == pytest.approx((right == right[::-1]).mean())
    assert np.isnan(shares[c]).all()  # one seed, that nobody else has


def test_a_report_where_none_can_be_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(InputError, match=r"cannot be made in .*file; name another folder"):
        report_folder(file / "report")
    assert file.read_text() == "kept"
