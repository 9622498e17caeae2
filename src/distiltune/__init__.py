"""Fine-tunes DistilBERT on reviews in a DVC pipeline, and logs every run to MLflow."""


class InputError(ValueError):
    """A mistake in what the user gave: params, files, device.

    The message is one line that names what is wrong and what is allowed; the
    stages print it without a traceback and exit with status 1.
    """
