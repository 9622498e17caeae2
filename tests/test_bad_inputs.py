"""Bad and strange inputs: each works, or is one clear line, and nothing is left half done."""

from pathlib import Path

import pytest

from tests.bad_inputs import CASES, Case, copy_of, prepared_project, run_case
from tests.conftest import Project


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return prepared_project(tmp_path_factory.mktemp("tokenized") / "project")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_it_works_or_is_one_clear_line(case: Case, tokenized: Project, tmp_path: Path) -> None:
    status, errors = run_case(case, copy_of(tokenized, tmp_path / "project"))
    if case.words:
        lines = [line for line in errors.splitlines() if not line.startswith("warning: ")]
        assert status == 1 and all(line.startswith("error: ") for line in lines), errors
        assert any(case.words in line for line in lines), errors
        assert max(map(len, lines)) < 500, errors
    else:
        assert status == 0 and errors == ""
