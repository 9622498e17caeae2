"""The templates of the pages that commands write: each one file with all it shows."""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def load_template(file: Path) -> Template:
    """A template of HTML that escapes all it is given and misses nothing in silence.

    Args:
        file: the template; its folder holds those that it includes.
    """
    environment = Environment(
        loader=FileSystemLoader(file.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(file.name)


def as_data_uri(picture: Path) -> str:
    """A PNG file as an address that holds it, for a page of one file."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
