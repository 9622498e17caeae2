"""The pipeline's stages, one module each, run as `python -m stages.<name>`.

Importing this package puts the `src` beside it first on the path: a queued experiment
runs in a copy of the project, and must run that copy's code, not the code that is
installed in the environment. It also turns off what would call home, and lets idle
threads sleep: spinning ones make two trainings on the same cores many times slower.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
