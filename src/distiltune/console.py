"""What the commands print."""

import os
import signal
import sys


def write(text: str) -> None:
    """Print what the terminal's encoding has, and a question mark for the rest.

    Who reads it may stop before the end, as `head` does; then the command ends too, without a
    word, and with the status that a shell gives a process so ended.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except BrokenPipeError:
        # Or the interpreter would try to write the rest once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
