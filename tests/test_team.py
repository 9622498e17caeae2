"""What a team shares: servers by the compose file, natively; DVC remote; divided sweeps."""

import importlib.metadata
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import mlflow
import pytest
import yaml
from compose_spec import PyCompose

from benchmarks.outages import Server, free_port
from distiltune import cli, store
from distiltune.sweeping.sharding import Shard
from tests.closure import ROOT
from tests.conftest import Project, environment
from tests.servers import HOST, POSTGRES, filled_in, objects, postgres, serving

COMPOSE_FILE = ROOT / "docs" / "team" / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GUIDE = (ROOT / "docs" / "team.md").read_text()
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


def as_documented(command: str, changes: Mapping[str, str] | None = None) -> list[str]:
    """A command of the guide, with this test's address, names or keys in it."""
    assert re.search(rf"^    {re.escape(command)}(\s\s+#.*)?$", GUIDE, re.MULTILINE), command
    for old, new in (changes or {}).items():
        assert old in command
        command = command.replace(old, new)
    return shlex.split(command)


def test_the_compose_file_is_valid_and_a_mistake_in_it_is_not() -> None:
    PyCompose.from_yaml(yaml.safe_dump(COMPOSE))
    for key, value in (("healthchek", {}), ("ports", ["localhost:1:1"]), ("restart", "maybe")):
        changed = {**COMPOSE, "services": {"database": {**SERVICES["database"], key: value}}}
        with pytest.raises(ValueError, match=key):
            PyCompose.from_yaml(yaml.safe_dump(changed))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_private_and_watched(name: str) -> None:
    service = SERVICES[name]
    image = service["image"]
    if "build" in service:
        image = re.findall(r"^FROM (\S+)$", service["build"]["dockerfile_inline"], re.MULTILINE)[-1]
    assert re.search(r":v?\d+\.\d+(\.\d+)?[\w.-]*$", image), image
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert service["healthcheck"]["test"][0] == "CMD"
    for needed, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"} and "healthcheck" in SERVICES[needed]
    for volume in service.get("volumes", []):
        assert volume.partition(":")[0] in COMPOSE["volumes"]
    for key, value in service["environment"].items():
        if re.search("PASSWORD|SECRET|KEY", key):
            assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?[^}]+\}", value), key


def test_the_server_has_the_versions_that_the_project_is_tested_with() -> None:
    recipe = SERVICES["mlflow"]["build"]["dockerfile_inline"]
    assert (COMPOSE_FILE.parent / SERVICES["mlflow"]["build"]["context"]).resolve() == ROOT
    assert "COPY constraints.txt /tmp/constraints.txt" in recipe
    options, _, packages = recipe.replace("\\\n", "").partition("--constraint /tmp/constraints.txt")
    assert "pip install" in options
    wanted = packages.split("\n")[0].split()
    assert wanted == ["mlflow", "psycopg2-binary", "boto3"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    for package in wanted:
        assert f"{package}=={importlib.metadata.version(package)}" in pins
    image = re.search(r"FROM python:(\d+\.\d+)\.", recipe)
    assert image and f"Python {image[1]}" in pins[0]


def test_the_guide_makes_the_passwords_which_git_ignores(tmp_path: Path) -> None:
    command = re.search(r"^    (\(umask.*?> docs/team/\.env\))$", GUIDE, re.MULTILINE | re.DOTALL)
    assert command
    (tmp_path / "docs" / "team").mkdir(parents=True)
    subprocess.run(["bash", "-c", re.sub("^    ", "", command[1], flags=re.M)], cwd=tmp_path,
                   check=True)  # fmt: skip
    file = tmp_path / "docs" / "team" / ".env"
    made = dict(line.split("=") for line in file.read_text().splitlines())
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(set(made.values())) == 3 and all(len(value) == 40 for value in made.values())
    filled_in(COMPOSE_FILE.read_text(), made)
    ignored = subprocess.run(["git", "check-ignore", "docs/team/.env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not POSTGRES, reason="apt-get install postgresql")
def test_a_model_goes_to_the_composed_server_and_comes_back(
    project: Project, tmp_path: Path
) -> None:
    password = "7h3 p4ss"
    service = yaml.safe_load(
        filled_in(yaml.safe_dump(SERVICES["mlflow"]), {**KEYS, "POSTGRES_PASSWORD": password})
    )
    port = str(free_port())
    shell, option, script = service["command"]
    assert "--host 0.0.0.0 --port 5000" in script
    script = script.replace("0.0.0.0", HOST).replace("5000", port)
    log, uri = tmp_path / "mlflow.log", f"http://{HOST}:{port}"
    with postgres(password) as database, objects(tmp_path) as address:
        variables = service["environment"]
        inside = ("postgresql+psycopg2://mlflow@database:5432/mlflow", "http://objects:7070")
        assert variables["MLFLOW_BACKEND_STORE_URI"] == inside[0]
        assert variables["AWS_ENDPOINT_URL_S3"] == inside[1]
        variables |= {"MLFLOW_BACKEND_STORE_URI": database, "AWS_ENDPOINT_URL_S3": address}
        variables["MLFLOW_WORKERS"] = "1"
        with serving([shell, option, script], variables, log, f"{uri}/health"):
            pass  # and again, when the buckets are there
        with serving([shell, option, script], variables, log, f"{uri}/health"):
            env = {"MLFLOW_TRACKING_URI": uri}
            output = project.dvc("repro", env=env)
            assert "warning" not in output
            (run,) = mlflow.MlflowClient(uri).search_runs(["1"])
            assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
            assert run.data.metrics["test/accuracy"] == json.loads(
                (project.root / "metrics" / "test.json").read_text()
            )["accuracy"]  # fmt: skip
            texts = ("A superb film.", "Dull and far too long.")
            given = project.run("distiltune", "predict", *texts).stdout
            (project.root / "data" / "model").rename(project.root / "data" / "elsewhere")
            champion = ("--model", "models:/distiltune@champion")
            found = project.run("distiltune", "predict", *texts, *champion, env=env).stdout
            assert found == given and len(found.splitlines()) == 2
        bucket = boto3.resource("s3", endpoint_url=address, region_name="us-east-1",
                                aws_access_key_id="key",
                                aws_secret_access_key="secret").Bucket("mlflow")  # fmt: skip
        names = [file.key for file in bucket.objects.all()]
        assert any(name.endswith("model.safetensors") for name in names), names
    assert not (project.root / "mlartifacts").exists()


@pytest.fixture
def shared(project: Project, tmp_path: Path) -> Project:
    """A checkout whose git remote `origin` others can clone."""
    project.run("git", "init", "-q", "--bare", "-b", "main", str(tmp_path / "origin.git"))
    project.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    project.git("push", "-q", "-u", "origin", "main")
    return project


def clone(shared: Project, name: str) -> Project:
    """Another checkout, as on another machine."""
    folder = shared.root.parent / name
    shared.run("git", "clone", "-q", str(shared.root.parent / "origin.git"), str(folder))
    project = Project(folder)
    project.git("config", "user.name", "test")
    project.git("config", "user.email", "test@localhost")
    return project


@pytest.mark.slow
def test_what_one_checkout_pushes_another_pulls_and_trains_nothing(
    shared: Project, tmp_path: Path
) -> None:
    with objects(tmp_path) as address:
        boto3.client("s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="key",
                     aws_secret_access_key="secret").create_bucket(Bucket="dvc")  # fmt: skip
        shared.run(*as_documented("dvc remote add --default team s3://dvc"))
        shared.run(*as_documented("dvc remote modify team endpointurl http://127.0.0.1:7070",
                                  {"http://127.0.0.1:7070": address}))  # fmt: skip
        shared.run(*as_documented("git add .dvc/config"))
        shared.run(*as_documented('git commit -m "The team\'s DVC remote"'))
        shared.dvc("repro")
        metrics = (shared.root / "metrics" / "test.json").read_text()
        shared.run(*as_documented("dvc push"), env=KEYS)
        shared.commit()
        shared.git("push", "-q")

        other = clone(shared, "other")
        refused = other.run("dvc", "pull", check=False)
        assert refused.returncode and "credentials" in refused.stderr
        other.run(*as_documented("dvc remote modify --local team access_key_id KEY"))
        other.run(*as_documented("dvc remote modify --local team secret_access_key SECRET"))
        assert other.git("status", "--porcelain") == ""
        other.run(*as_documented("dvc pull"))
        assert "up to date" in other.run(*as_documented("dvc status")).stdout
        assert "Running stage" not in other.dvc("repro").replace("Running stage 'watch-csv'", "")
        assert (other.root / "metrics" / "test.json").read_text() == metrics
        assert other.run("distiltune", "predict", "A superb film.").stdout

        # An experiment goes back, without its data being computed or trained again.
        other.dvc("exp", "run", "--name", "lion-there", "-S", "optimizer=lion")
        found = (other.root / "metrics" / "test.json").read_text()
        other.run(*as_documented("dvc exp push origin NAME", {"NAME": "lion-there"}))
        shared.run(*as_documented("dvc exp pull origin NAME", {"NAME": "lion-there"}), env=KEYS)
        shared.dvc("exp", "apply", "lion-there")
        assert (shared.root / "metrics" / "test.json").read_text() == found != metrics
        assert "Running stage 'train'" not in shared.dvc("repro")
        committed = shared.git("show", "HEAD:.dvc/config")
        assert "KEY" not in committed and "key" not in committed


def parts(num_variants: int, num_seeds: int, count: int) -> list[list[tuple[int, int]]]:
    """Of each shard the variants and seeds."""
    trials = [(v, s) for s in range(num_seeds) for v in range(num_variants)]
    return [
        list(Shard(number=number, count=count).take(trials, num_variants))
        for number in range(1, count + 1)
    ]


@pytest.mark.parametrize("num_variants", range(1, 6))
@pytest.mark.parametrize("num_seeds", [1, 2, 5])
def test_shards_are_a_sweep_divided_evenly(num_variants: int, num_seeds: int) -> None:
    for count in range(1, num_variants * num_seeds + 1):
        found = parts(num_variants, num_seeds, count)
        assert sorted(itertools.chain(*found)) == [
            (v, s) for v in range(num_variants) for s in range(num_seeds)
        ]
        sizes = [len(part) for part in found]
        assert max(sizes) - min(sizes) <= 1


def test_no_machine_has_one_variant_to_itself() -> None:
    for count in (2, 4):
        for part in parts(2, 8, count):
            assert {variant for variant, _ in part} == {0, 1}


@pytest.mark.parametrize(
    ("shard", "options", "said"),
    [
        ("0/2", [], "'0/2': which part, and of how many"),
        ("3/2", [], "'3/2': which part"),
        ("1", [], "'1': which part"),
        ("1/x", [], "'1/x': which part"),
        ("-1/2", [], "'-1/2': which part"),
        ("1/7", [], "--shard 1/7: more parts than the sweep has experiments; 6 at most"),
        ("1/2", ["--search-rates", "3"], "--shard: not with --search-rates"),
    ],
)
def test_a_wrong_shard_is_refused(
    shard: str, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    command = ["distiltune", "sweep", "--optimizers", "adam,lion", "--seeds", "3"]
    monkeypatch.setattr(sys, "argv", [*command, f"--shard={shard}", *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code and said in capsys.readouterr().err


def test_parts_of_machines_that_end_at_once_are_read_as_one_sweep(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # Neither sees yet that the other has made one.
        patch.setattr(store, "find_runs", lambda *_: [])
        made = [store.parent_of_sweep(root, "distiltune", "divided") for _ in range(2)]
    for number, parent in enumerate(made, start=1):
        store.write_members(root, parent, "trial", {f"e{number}": f"id{number}"}, f"{number}/3")
    parents = store.parents_of_sweeps(store.find_runs(root, "distiltune"))["divided"]
    assert sorted(parents) == sorted(made)
    first = store.parent_of_sweep(root, "distiltune", "divided")
    assert first == parents[0]
    store.write_members(root, first, "trial", {"e3": "id3"}, "3/3")
    store.write_members(root, first, "search", {"e4": "id4"})
    expected = {f"e{number}": f"id{number}" for number in range(1, 4)}
    assert store.read_members(root, parents, "trial") == expected
    assert store.read_members(root, parents, "search") == {"e4": "id4"}


@pytest.mark.slow
def test_two_checkouts_share_a_sweep_and_one_report_is_over_all(
    shared: Project, tmp_path: Path
) -> None:
    shared.change_params({"tracking.log_model": False})
    shared.commit()
    shared.git("push", "-q")
    server = Server(tmp_path)
    server.start()
    env = {"MLFLOW_TRACKING_URI": f"http://{HOST}:{server.port}"}
    command = "distiltune sweep --optimizers adam,lion --seeds 2 --shard {}/2"
    first = as_documented(command.format(1))
    second = as_documented(command.format(2))
    other = clone(shared, "other")
    try:
        outputs = [
            process.communicate()[0]
            for process in [
                subprocess.Popen([*line, "--json", "figures.json"], cwd=project.root, text=True,
                                 env=environment(env), stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT)
                for project, line in ((shared, first), (other, second))
            ]
        ]  # fmt: skip
        begin = r"^(sweep-\w+), shard 1/2: 2 experiments, 0 of them"
        name, *_ = re.findall(begin, outputs[0], re.MULTILINE)
        assert f"{name}, shard 2/2: 2 experiments, 0 of them done already" in outputs[1]
        client = mlflow.MlflowClient(env["MLFLOW_TRACKING_URI"])
        runs = client.search_runs(["1"])
        (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
        below = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert len(runs) == 5 and len(below) == 4
        assert {(r.data.params["optimizer"], r.data.params["seed"]) for r in below} == {
            (optimizer, seed) for optimizer in ("adam", "lion") for seed in "12"
        }
        # Each half of them by a checkout of its own, which has both variants.
        halves: dict[str, set[str]] = {}
        for run in below:
            halves.setdefault(run.data.tags["checkout"], set()).add(run.data.params["optimizer"])
        assert list(halves.values()) == [{"adam", "lion"}] * 2
        assert parent.info.status == "FINISHED"

        # The last one, at least, has compared all; anyone else can, and gets the same.
        reported = [p for p in (shared, other) if (p.root / "figures.json").exists()]
        figures = json.loads((reported[-1].root / "figures.json").read_text())
        assert [variant["num_seeds"] for variant in figures["variants"]] == [2, 2]
        for project, output in ((shared, outputs[0]), (other, outputs[1])):
            so_far = "2 of 4 experiments are in MLflow" in output
            assert so_far != (project in reported), output
        third = clone(shared, "third")
        compare = as_documented("distiltune compare NAME", {"NAME": name})
        third.run(*compare, "--json", "figures.json", env=env)
        again = json.loads((third.root / "figures.json").read_text())
        assert again["pairs"] == figures["pairs"]
        # Once more there is nothing to do, and the report is there whoever asks.
        output = shared.run(*first, env=env).stdout
        assert "2 experiments, 2 of them done already" in output
        assert figures["pairs"][0]["sentence"] in output
        assert len(client.search_runs(["1"])) == 5
    finally:
        server.kill()
