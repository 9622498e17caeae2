"""The modules of the project that a stage imports, directly or not, read from the source."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"distiltune": ROOT / "src" / "distiltune", "stages": ROOT / "stages"}


def module_file(name: str) -> Path | None:
    """The file of a dotted module name, if it is one of the project's."""
    package, *rest = name.split(".")
    if package not in SOURCES:
        return None
    base = SOURCES[package].joinpath(*rest)
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def module_name(file: Path) -> str:
    for package, folder in SOURCES.items():
        if file.is_relative_to(folder):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    raise AssertionError(file)


def direct_imports(file: Path) -> set[Path]:
    """The project's files that a file's import statements name, wherever they stand."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: relative import"
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            # Importing a module imports each package above it.
            for i in range(len(parts)):
                if target := module_file(".".join(parts[: i + 1])):
                    found.add(target)
    return found - {file}


def import_closure(file: Path) -> set[Path]:
    """All the project's files that running a file imports, itself included."""
    seen: set[Path] = set()
    waiting = {file}
    while waiting:
        current = waiting.pop()
        seen.add(current)
        waiting |= direct_imports(current) - seen
    return seen
