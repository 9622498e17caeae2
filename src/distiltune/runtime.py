"""The device and precision that a stage runs with, seeds, and what a stage's `main` does."""

import errno
import hashlib
import importlib
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml

from distiltune import InputError

if TYPE_CHECKING:
    import torch


# A full disk, a file that is gone or in the way, no right to it: a traceback explains nothing.
DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
)  # fmt: skip
# Where Linux tells a container's memory, in its second and its first version.
CONTAINER_MEMORY = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage; a user's mistake, or the disk's, is a line without a traceback, exit status 1.

    SIGINT and SIGTERM end it with 130 and 143, and what it writes aside is removed.
    """
    signal.signal(signal.SIGTERM, _end)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        is_gone = error.errno == errno.ENOENT
        way_out = "; `dvc checkout` restores what a stage has made, `dvc repro` makes it again"
        print(f"error: {where}{error.strerror}{way_out if is_gone else ''}", file=sys.stderr)
        sys.exit(1)


def warn(text: str) -> None:
    """Say what is wrong and does not end the work."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


# Of a model with fewer, products are so small that handing them out costs more than it saves.
SINGLE_THREAD_WEIGHTS = 1_000_000


def project_root() -> Path:
    """The main checkout, also in a queued experiment, which runs in a temporary copy.

    DVC names it in `DVC_ROOT`; without DVC it is the working directory.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def import_extra(package: str, extra: str, setting: str) -> Any:
    """Import what only an extra of this package installs.

    Args:
        package: to import.
        extra: which installs it.
        setting: what was asked for, to be named.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{setting} needs the package {package} ({error}); "
            f"pip install '.[{extra}]' in the project's folder"
        ) from None


def code_digest(stage: str, pipeline: Path = Path("dvc.yaml")) -> str:
    """The sha256 of a stage's code: all modules that `dvc.yaml` says it depends on."""
    dependencies = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"][stage]["deps"]
    digest = hashlib.sha256()
    for name in sorted(name for name in dependencies if name.endswith(".py")):
        digest.update(f"{name}\n".encode())
        digest.update((pipeline.parent / name).read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how the arithmetic is done."""

    device: "torch.device"
    precision: str  # fp32, bf16 or fp16
    description: str

    @property
    def has_flash_attention(self) -> bool:
        """Whether PyTorch's flash kernels run here: half precision, Ampere or newer."""
        import torch

        return (
            self.device.type == "cuda"
            and self.precision != "fp32"
            and torch.cuda.get_device_capability(self.device) >= (8, 0)
        )

    def autocast(self) -> "torch.autocast":
        """The context in which forward passes run: weights stay fp32, products do not."""
        import torch

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        return torch.autocast(
            self.device.type, dtype=dtype[self.precision], enabled=self.precision != "fp32"
        )


def choose_runtime(device: str, precision: str, *, prefer_fp32_on_cpu: bool = False) -> Runtime:
    """Resolve `auto`: CUDA where there is one, and the fastest precision that it has.

    bf16 needs an Ampere GPU or newer (fp16 with loss scaling before), or a CPU with
    bf16 dot products. `prefer_fp32_on_cpu` is for models that gain nothing from it.

    Raises:
        InputError: `cuda` was asked for and there is none, or the device lacks the precision.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InputError(
            "device: 'cuda' was asked for, and PyTorch sees no CUDA device here "
            f"(torch {torch.__version__}); use -S device=cpu or auto, or install a CUDA build"
        )
    if device == "auto":
        device = "cuda" if available else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        name = torch.cuda.get_device_name()
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        fastest = "bf16" if has_bf16 else "fp16"
    else:
        name = f"{os.cpu_count()} cores"
        has_bf16 = _cpu_has_bf16()
        fastest = "bf16" if has_bf16 and not prefer_fp32_on_cpu else "fp32"
        if precision == "fp16":
            raise InputError("precision: 'fp16' needs CUDA; on the CPU use auto, bf16 or fp32")
    if precision == "bf16" and not has_bf16:
        raise InputError(f"precision: 'bf16' is not supported by {name}; use auto or fp32")
    precision = fastest if precision == "auto" else precision
    return Runtime(
        device=chosen, precision=precision, description=f"{device} ({name}), {precision}"
    )


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX-512 BF16, AMX, or Arm's BF16)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    flags = set(cpuinfo.read_text().split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def available_memory() -> int:
    """Bytes that can be had without swapping, or that the container still allows."""
    import psutil

    available = int(psutil.virtual_memory().available)
    for folder, limit_file, used_file, cache_name in CONTAINER_MEMORY:
        limit, used = folder / limit_file, folder / used_file
        if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
            # What is cached of files counts as used, and is given up where it is needed.
            lines = (folder / "memory.stat").read_text().splitlines()
            cached = [int(line.split()[1]) for line in lines if line.split()[0] == cache_name]
            available = min(available, int(text) - int(used.read_text()) + sum(cached))
    return max(0, available)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, on every device."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def version_tags() -> dict[str, str]:
    """The versions that a result may depend on."""
    # Only here: stages that compute no model have no use for them.
    import importlib.metadata
    import platform

    packages = ("torch", "transformers", "mlflow", "dvc")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }
