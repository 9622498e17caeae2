"""The pages of docs/: every command in them is run, in their order, at a small scale."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distiltune.artifacts import read_reviews, write_csv
from tests.bad_inputs import good_checkpoint
from tests.conftest import ROOT, Project
from tests.test_pipeline import runs_of
from tests.test_predict import BAD, GOOD

PAGES = sorted((ROOT / "docs").glob("*.md"))
# What cannot run here, and why; what comes nearest to it.
NOT_RUN = {
    "dvc exp run -S train.processes=8": "GPUs; tests/test_replicas.py runs two processes",
    "dvc exp run -S train.processes=8 -S train.batch_size=128 "
    "-S optimizers.adam.learning_rate=1.0e-4": "the same",
    "GPUS_PER_NODE=8 sbatch --nodes=2 --gpus-per-node=8 docs/recipes/slurm.sh "
    "-S optimizer=adamw": "Slurm; tests/test_replicas.py runs the recipe without it",
    "kubectl apply -f docs/recipes/kubernetes.yaml": "Kubernetes",
    "torchrun --standalone --nproc-per-node 8 -m stages.train": "tests/test_replicas.py: two",
    "dvc commit train": "after that",
    "dvc queue kill waiting": "a task whose worker is gone; tests/test_sweep.py has such ones",
    "make ui": "tests/test_ui.py",
    "distiltune ui --port 5005": "the same",
    "mlflow models serve -m models:/distiltune@champion --env-manager local "
    "--port 5001": "tests/test_registry.py",
    "distiltune compare --experiments NAME,NAME": "names of a sweep's; tests/test_report.py",
    "curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' "
    """-d '{"dataframe_records": [{"text": "A superb film."}]}'""": "the same",
}


# Pages that other tests follow, as they need a server.
ELSEWHERE = {"ui": "tests/test_ui.py", "team": "tests/test_team.py"}
# One of a page's blocks: of commands, or of text for a file.
BLOCK = re.compile(
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$|(?P<commands>(?:^    [^\n]*\n)+)", re.M | re.S
)


def commands_of(block: str) -> list[str]:
    """Its lines, continued ones as one, without their comments."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    return [re.sub(r"\s{2,}#.*", "", line).strip() for line in lines]


def follow(page: str, project: Project, table: str = "", **replaced: str) -> None:
    """Do what a page says, from its top to its end.

    Args:
        page: its name.
        project: where.
        table: of `params.yaml`, which the page's rows are for.
        replaced: what the page leaves to the reader, or has at a larger scale.
    """
    text = (ROOT / "docs" / f"{page}.md").read_text()
    for word, value in replaced.items():
        assert word in text
        text = text.replace(word, value)
    for block in BLOCK.finditer(text):
        if block["language"] == "yaml":
            params = project.root / "params.yaml"
            start = f"\n{table}:\n"
            before = params.read_text()
            assert before.count(start) == 1
            params.write_text(before.replace(start, start + block["text"]))
        elif block["language"] == "diff":
            subprocess.run(
                ["git", "apply"], cwd=project.root, input=block["text"], text=True, check=True
            )
        elif block["commands"]:
            for command in commands_of(block["commands"]):
                if command not in NOT_RUN:
                    project.run("bash", "-euc", command)


def test_every_page_is_followed_by_a_test() -> None:
    tests = Path(__file__).read_text()
    found = set()
    for page in PAGES:
        assert f'follow("{page.stem}", ' in tests or page.stem in ELSEWHERE, page
        blocks = BLOCK.finditer(page.read_text())
        found |= {
            c for block in blocks if block["commands"] for c in commands_of(block["commands"])
        }
        assert f"`docs/{page.name}`" in (ROOT / "README.md").read_text()
    assert {command.replace("waiting", "QUEUED") for command in NOT_RUN} <= found


def test_the_readme_names_every_file_and_no_other() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## Every file")[1]
    named = set(re.findall("`([^`]+)`", readme))
    files = [Path(line) for line in Project(ROOT).git("ls-files").splitlines()]
    # By its path, or by the end of it that its part of the table calls for.
    ends = {file: {"/".join(file.parts[i:]) for i in range(len(file.parts))} for file in files}
    skipped = {"README.md", *(f"{file}" for file in files if file.suffix == ".png")}
    unnamed = [
        str(file)
        for file in files
        if not ends[file] & named
        and str(file) not in skipped
        and not file.is_relative_to("benchmarks/records")
    ]
    assert unnamed == []
    there = {end for of_file in ends.values() for end in of_file}
    gone = [n for n in named if re.fullmatch(r"[\w./-]+\.(py|md|sh|yaml|toml|jinja)", n)]
    assert [name for name in gone if name not in there] == []


@pytest.mark.slow
def test_your_own_reviews(project: Project) -> None:
    project.change_params({"datasets.sample.num_reviews": 600})
    project.commit()
    project.stage_here("download")
    table, info = read_reviews(project.root / "data/reviews.parquet")
    labels = [info.label_names[label] for label in table["label"].to_pylist()]
    rows = zip(table["text"].to_pylist(), labels, strict=True)
    write_csv(project.root / "reviews.csv", ["review", "sentiment"], rows)
    follow("data", project)
    newest, *_ = sorted(runs_of(project), key=lambda run: -run.info.start_time)
    assert newest.data.params["dataset"] == "csv" and newest.data.params["split.train"] == "300"
    assert project.git("status", "--porcelain", "params.yaml") == ""


@pytest.mark.slow
def test_your_own_model(project: Project) -> None:
    folder = project.root / "checkpoints" / "mine"
    shutil.copytree(good_checkpoint(), folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    follow("model", project, "models", SHA256=digest)
    models = {run.data.params["model"] for run in runs_of(project)}
    assert models == {"mine", "tiny", "lstm"}


@pytest.mark.slow
def test_your_own_optimizer(project: Project) -> None:
    follow("optimizer", project, "optimizers")
    rows = {run.data.params.get("optimizer") for run in runs_of(project)}
    assert rows >= {"adam_ema", "adam", "adamax"}


@pytest.mark.slow
def test_comparing(project: Project) -> None:
    scale = {"--seeds 5": "--seeds 2", "--search-rates 5": "--search-rates 3"}
    follow("compare", project, **scale)
    assert (project.root / "reports/three/report.html").exists()


@pytest.mark.slow
def test_using_the_model(project: Project) -> None:
    project.dvc("exp", "run", "-n", "earlier")
    (project.root / "lines.txt").write_text(f"{GOOD}\n{BAD}\n")
    (project.root / "review.txt").write_text(BAD)
    write_csv(project.root / "reviews.csv", ["text"], [[GOOD], [BAD]])
    follow("use", project, NAME="earlier")
    assert pq.read_table(project.root / "out.parquet").num_rows == 2
    for file in ("why.html", "run.html", "reports/run.html", "exported/model.pt2"):
        assert (project.root / file).exists(), file


@pytest.mark.slow
def test_what_is_kept(project: Project) -> None:
    project.stage_here("download")
    follow("resume", project)


@pytest.mark.slow
def test_further_accuracy(project: Project) -> None:
    project.change_params({"models.tiny.architecture.dropout": 0.1})
    project.commit()
    follow("accuracy", project)
    assert len(runs_of(project)) == 6


@pytest.mark.slow
def test_troubleshooting(project: Project) -> None:
    project.dvc("exp", "run", "-n", "earlier")
    project.dvc("exp", "run", "--queue", "-n", "waiting", "-S", "seed=5")
    follow("troubleshooting", project, NAME="earlier", QUEUED="waiting")


@pytest.mark.slow
def test_gpus(project: Project) -> None:
    follow("gpus", project)
