"""The command `distiltune`: its subcommands and their options."""

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from distiltune.runtime import run_stage
from distiltune.sweeping.sharding import Shard


def main() -> None:
    """Run what the command line asks for; a user's mistake is one line, exit status 1."""
    arguments = parser().parse_args()
    run_stage(lambda: _command(arguments.command)(arguments))


def _command(name: str) -> Callable[[argparse.Namespace], None]:
    """Each imports what it needs alone: what a comparison does takes longer than a prediction."""
    if name in ("explain", "export", "predict"):
        # As the stages do: threads that wait leave the cores to others.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    match name:
        case "sweep":
            from distiltune.commands.sweep import run_sweep

            return run_sweep
        case "compare":
            from distiltune.commands.compare import run_compare

            return run_compare
        case "predict":
            from distiltune.predicting.run import run_predict

            return run_predict
        case "explain":
            from distiltune.explaining.command import run_explain

            return run_explain
        case "report":
            from distiltune.reporting.command import run_report

            return run_report
        case "export":
            from distiltune.exporting.command import run_export

            return run_export
        case "ui":
            from distiltune.ui import run_ui

            return run_ui
        case _:
            from distiltune.commands.sync import run_sync

            return run_sync


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="distiltune", description=__doc__)
    commands = found.add_subparsers(required=True, dest="command", metavar="COMMAND")
    sweep = commands.add_parser(
        "sweep",
        help="train every variant with every seed through DVC's queue, and compare",
        description="Queues an experiment for each variant and seed, runs what is missing and "
        "compares. Started again after whatever interruption, it goes on where it was. "
        "Leave params and code as they are meanwhile: it stops where they have changed.",
    )
    sweep.add_argument("--optimizers", required=True, type=_names, metavar="NAME,NAME,...",
                       help="rows of the table `optimizers` in params.yaml")  # fmt: skip
    sweep.add_argument("--seeds", default="5", type=_seeds, metavar="N | N,N,...",
                       help="how many (1 to N), or which; a single one with a comma behind "
                       "it (default: 5)")  # fmt: skip
    sweep.add_argument("--jobs", default=1, type=_count, metavar="N",
                       help="experiments at a time (default: 1)")  # fmt: skip
    sweep.add_argument("--shard", type=_shard, metavar="I/N",
                       help="run only the I-th of N parts, on one of N machines with this same "
                       "command and one MLflow server; the last to end compares all")  # fmt: skip
    sweep.add_argument("--name", type=_name, help="of the sweep (default: made of its settings)")
    sweep.add_argument("--search-rates", default=0, type=_count, metavar="N",
                       help="first try N learning rates for each variant, with a seed of their own "
                       "and on validation alone, and go on with the best")  # fmt: skip
    sweep.add_argument("--span", type=_span, metavar="FACTOR",
                       help="the rates reach from the row's divided by this to it times this "
                       "(default: 8)")  # fmt: skip
    sweep.add_argument("--prune", action="store_true",
                       help="first run the middle half of the rates, and end those of the others "
                       "early that do not come up to their median")  # fmt: skip
    sweep.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE",
                       help="change a param in all experiments, as in `dvc exp run`")  # fmt: skip
    _add_output_options(sweep)
    compare = commands.add_parser(
        "compare",
        help="say which variant is better, by how much and how surely",
        description="Compares finished runs: those of a sweep, or any. Without a choice, the "
        "newest sweep; without a sweep, all that MLflow has in the experiment of params.yaml.",
    )
    chosen = compare.add_mutually_exclusive_group()
    chosen.add_argument("sweep", nargs="?", help="the name of a sweep")
    chosen.add_argument("--runs", type=_names, metavar="ID,ID,...", help="runs in MLflow")
    chosen.add_argument("--experiments", type=_names, metavar="NAME,NAME,...",
                        help="DVC's experiments, or commits")  # fmt: skip
    compare.add_argument("--force", action="store_true",
                         help="compare what is not comparable too, and mark it")  # fmt: skip
    _add_output_options(compare)
    predict = commands.add_parser(
        "predict",
        help="classify texts, or a table of any size, with a trained model",
        description="Prints label and probability of each text, with a tab between. With --file, "
        "writes a table's columns and beside them label, probability and probability_CLASS, a "
        "part at a time.",
    )
    given = predict.add_mutually_exclusive_group(required=True)
    given.add_argument("texts", nargs="*", default=[], metavar="TEXT",
                       help="to classify; - alone takes each line of stdin")  # fmt: skip
    given.add_argument("--file", type=Path, metavar="FILE",
                       help="a table: .csv, .csv.gz or .parquet")  # fmt: skip
    predict.add_argument("--output", type=Path, metavar="FILE",
                         help="where to write it: .csv, .csv.gz or .parquet")  # fmt: skip
    predict.add_argument("--text-column", metavar="NAME",
                         help="which holds the texts (default: datasets.csv.text_column of "
                         "params.yaml, or text, or the only one)")  # fmt: skip
    predict.add_argument("--prefix", metavar="TEXT",
                         help="put before the names of the added columns")  # fmt: skip
    _add_model_option(predict)
    sync = commands.add_parser(
        "sync",
        help="send MLflow what it was not there for",
        description="Sends what stages could not log, since MLflow was away, and kept on disk. "
        "Stages, sweep and compare do that too when they start. The exit status is 1 as long as "
        "something is left.",
    )
    sync.add_argument("--discard", action="store_true",
                      help="give up what cannot be sent; in the files it stays")  # fmt: skip
    explain = commands.add_parser(
        "explain",
        help="say which words of a review moved the model's verdict",
        description="Integrated gradients of the log-odds of a class, from a baseline without "
        "words to the review. Coloured on a terminal, unless NO_COLOR is set.",
    )
    review = explain.add_mutually_exclusive_group(required=True)
    review.add_argument("text", nargs="?", help="the review")
    review.add_argument("--file", type=Path, help="a text file that holds it")
    _add_model_option(explain)
    explain.add_argument("--class", dest="label_name", metavar="NAME",
                         help="to explain (default: the one that the model predicts)")  # fmt: skip
    explain.add_argument("--html", type=Path, metavar="FILE", help="write a page there too")
    explain.add_argument("--steps", default=256, type=_steps, metavar="N",
                         help="the most steps; they are doubled from 8 until the words add up "
                         "(default: 256)")  # fmt: skip
    report = commands.add_parser(
        "report",
        help="write one page about one run: results, settings, curves, mistakes, costs",
        description="Writes one HTML file, which loads nothing from anywhere, about the run whose "
        "files are in this checkout, or about another one.",
    )
    report.add_argument("--experiment", metavar="NAME",
                        help="one of DVC's experiments, or a commit (default: the files "
                        "here)")  # fmt: skip
    report.add_argument("--output", type=Path, metavar="FILE",
                        help="of the page (default: reports/run.html, or "
                        "reports/run-NAME.html)")  # fmt: skip
    export = commands.add_parser(
        "export",
        help="write a trained model for use without distiltune: ONNX or torch.export",
        description="Writes a folder with the model, its tokenizer and what a program needs to "
        "know, once its logits agree with those of transformers. --format onnx needs the "
        "packages of `pip install '.[onnx]'`.",
    )
    export.add_argument("--output", type=Path, required=True, metavar="FOLDER",
                        help="new, or an earlier export, which it replaces")  # fmt: skip
    export.add_argument("--format", default="onnx", choices=("onnx", "torch"),
                        help="onnx for ONNX Runtime, torch for torch.export.load "
                        "(default: onnx)")  # fmt: skip
    _add_model_option(export)
    ui = commands.add_parser(
        "ui",
        help="start MLflow's UI on the project's runs, and say where",
        description="Serves it for this machine alone until Ctrl-C, and prints the address of the "
        "runs, with the columns that say most. Where MLFLOW_TRACKING_URI is a server, only that.",
    )
    ui.add_argument("--port", default=5000, type=_count, metavar="N", help="(default: 5000)")
    return found


def _add_model_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="MODEL",
                         help="a folder, or in MLflow runs:/ID, models:/NAME/VERSION or "
                         "models:/NAME@ALIAS (default: data/model)")  # fmt: skip


def _add_output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--target", type=_share, metavar="ACCURACY",
                         help="validation accuracy to reach, as 0.9 (default: the highest that "
                         "all runs reach)")  # fmt: skip
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    command.add_argument("--output", type=Path, metavar="FOLDER",
                         help="of the report (default: reports/NAME)")  # fmt: skip


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: names with commas between, each once")
    return names


def _name(text: str) -> str:
    if not text.replace("-", "").replace("_", "").isalnum() or not text.isascii():
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, - and _")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1")
    return int(text)


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 8:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 8")
    return int(text)


def _seeds(text: str) -> list[int]:
    parts = [part for part in text.split(",") if part]
    if not parts or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: how many seeds, or seeds with commas")
    return [int(part) for part in parts] if "," in text else list(range(1, _count(text) + 1))


def _shard(text: str) -> Shard:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r}: which part, and of how many, as 1/4, 2/4, 3/4 and 4/4"
        )
    return Shard(number=int(number), count=int(count))


def _span(text: str) -> float:
    return _number(text, 1, 1e4, "a factor above 1, up to 10000")


def _share(text: str) -> float:
    return _number(text, 0, 1, "a number above 0, up to 1")


def _number(text: str, above: float, highest: float, allowed: str) -> float:
    with contextlib.suppress(ValueError):
        if above < (number := float(text)) <= highest:
            return number
    raise argparse.ArgumentTypeError(f"{text!r}: {allowed}")


if __name__ == "__main__":
    main()
