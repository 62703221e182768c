"""Environment variables passed to the trainer."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = frozenset({"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "REQUESTS_CA_BUNDLE"})
_NAMES_IN_EITHER_CASE = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"})
_PREFIXES = ("LC_", "LD_", "PYTHON", "SSL_CERT_", "XDG_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH", "PYTORCH_")
_COMPUTE_PREFIXES = ("CUDA_", "NVIDIA_", "CUBLAS_", "NCCL_", "OMP_", "KMP_", "MKL_")


def trainer_environment(server_environment: Mapping[str, str], threads: int) -> dict[str, str]:
    """Return the variables that a trainer needs to find packages, models and devices, without the server's secrets.

    Adds the thread budget, which libraries read on import.
    """
    variables = {
        name: value
        for name, value in server_environment.items()
        if name in _NAMES or name.upper() in _NAMES_IN_EITHER_CASE or name.startswith(_PREFIXES + _COMPUTE_PREFIXES)
    }
    budget = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**variables, **budget, "TOKENIZERS_PARALLELISM": "false"}
