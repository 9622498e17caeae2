"""`distiltune sync`."""

import argparse

from distiltune.commands.publishing import checkout
from distiltune.syncing import synchronize


def run_sync(arguments: argparse.Namespace) -> None:
    """`distiltune sync`.

    Raises:
        InputError: something could not be sent.
    """
    synchronize(checkout(), discard=arguments.discard)
