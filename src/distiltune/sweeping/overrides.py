"""Changes of params as `dvc exp run -S` takes them, seen through before anything is queued."""

import difflib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from distiltune import InputError
from distiltune.config import Params, load_params


def check_key(params: Params, key: str, override: str) -> None:
    """See that there is such a param.

    Args:
        params: of the workspace.
        key: with dots between its parts.
        override: in which it stands, to be named.

    Raises:
        InputError: there is none; what is like it.
    """
    table: object = asdict(params)
    *tables, last = key.split(".")
    for part in (*tables, last):
        if not isinstance(table, dict) or part not in table:
            allowed = difflib.get_close_matches(part, table, 3) if isinstance(table, dict) else []
            above = key.rpartition(".")[0] if part is last else ""
            allowed = [f"{above}.{name}" if above else name for name in allowed]
            hint = f"; did you mean {' or '.join(allowed)}?" if allowed else ""
            raise InputError(f"-S {override}: params.yaml has no {key}{hint}")
        table = table[part]


def params_with(root: Path, overrides: Sequence[str]) -> Params:
    """The workspace's params with changes, which stay out of the workspace.

    Args:
        root: the main checkout.
        overrides: one or more, as KEY=VALUE.

    Raises:
        InputError: a stage would refuse the result, or DVC a change.
    """
    # Half a second, which `compare` and `--help` need not wait.
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "params.yaml"
        shutil.copy(root / "params.yaml", copy)
        try:
            apply_overrides(copy, [o.removeprefix("params.yaml:") for o in overrides])
            return load_params(copy)
        except InputError as error:
            reason = str(error).replace(f"{copy}: ", "")
            raise InputError(f"-S {' -S '.join(overrides)}: {reason}") from None
        except DvcException as error:
            lines = str(error).splitlines()
            raise InputError(f"-S {' -S '.join(overrides)}: {lines[0]}") from None
