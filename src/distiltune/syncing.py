"""Sends what processes that are gone could not, for the next one or `distiltune sync`."""

from pathlib import Path

from distiltune import InputError
from distiltune.location import open_store, store_name
from distiltune.outbox import is_empty, left_behind
from distiltune.runtime import warn
from distiltune.sending import Sender, reason_of


def send_left_behind(root: Path, *, discard: bool = False) -> tuple[list[str], dict[str, str]]:
    """Send what processes that are gone could not.

    Args:
        root: the main checkout.
        discard: remove what cannot be sent.

    Returns:
        What all was sent of, as the run's name and the outbox's folder; and what something is
        left of, with the reason.
    """
    sent: list[str] = []
    left: dict[str, str] = {}
    here = store_name(root)
    failure: str | None = None
    for outbox in left_behind(root):
        what, store = f"{outbox.header.name} ({outbox.folder.name})", outbox.header.store
        if store != here:
            left[what] = f"waits for {store}, which MLFLOW_TRACKING_URI has to name"
        elif failure is not None:
            left[what] = failure
        else:
            try:
                sender = Sender(root, outbox, is_live=False)
                sender.send()
                sender.end_if_dead()
            # Whatever a store, a server or a disk can do wrong.
            except Exception as error:
                left[what] = reason_of(error)
                failure = None if _is_there(root) else left[what]
            else:
                sent.append(what)
        if what in left and not discard:
            outbox.release()
        else:
            outbox.remove()
    return sent, left


def synchronize(root: Path, *, discard: bool) -> None:
    """`distiltune sync`: send what is left, and say what came of it.

    Args:
        root: the main checkout.
        discard: remove what cannot be sent.

    Raises:
        InputError: something could not be sent.
    """
    sent, left = send_left_behind(root, discard=discard)
    for what in sent:
        print(f"{what}: sent to {store_name(root)}")
    for what in left if discard else ():
        print(f"{what}: discarded")
    if left and not discard:
        lines = [f"{what}: {reason}" for what, reason in left.items()]
        lines.append("it is kept; the same command sends it to a store that is there, "
                     "and --discard gives it up")  # fmt: skip
        raise InputError("\n".join(lines))
    if not sent and not left:
        print("nothing is left to be sent")


def send_waiting(root: Path) -> None:
    """Send what stages before could not, if anything; where that fails say so, and go on.

    Args:
        root: the main checkout.
    """
    if not is_empty(root):
        for what, reason in send_left_behind(root)[1].items():
            warn(f"MLflow does not have all of {what}: {reason}")


def _is_there(root: Path) -> bool:
    """Whether the store answers at all."""
    try:
        open_store(root).search_experiments(max_results=1)
    # As above: this asks whether it fails.
    except Exception:
        return False
    return True
