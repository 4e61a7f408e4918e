"""A Python whose site has only what a bare GPU image has, and what is carried to it: for tests of tools that run there.

As `sitecustomize` in a folder on PYTHONPATH it lets top-level packages outside `ALLOWED` be found nowhere, also in the
processes that such a Python starts. Each one that the checkout itself asks for is noted in the file BARE_MACHINE_LOG.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

# of the image: torch and what it needs, and a few that transformers and DeepSpeed need
IMAGE = {
    "torch", "torchgen", "functorch", "torchvision", "triton", "nvidia", "numpy", "typing_extensions", "sympy",
    "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "setuptools", "pkg_resources", "packaging",
    "yaml", "_yaml", "psutil", "tqdm", "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "requests",
    "urllib3", "idna", "certifi", "charset_normalizer", "regex", "safetensors", "tokenizers", "huggingface_hub",
    "transformers", "PIL", "pip",
}  # fmt: skip
# carried as wheels
CARRIED = {
    "deepspeed", "megatron", "hydra", "omegaconf", "antlr4", "diffusers", "einops", "hjson", "msgpack", "cpuinfo",
    "importlib_metadata", "zipp",
}  # fmt: skip
# the checkout, its scripts' modules, and this one
OWN = {"megavideo", "tools", "sitecustomize"}
ALLOWED = IMAGE | CARRIED | OWN | set(sys.stdlib_module_names)


class BareFinder(PathFinder):
    """`PathFinder` for packages that are there; the others' modules it does not find."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        """See importlib: None where nothing is found."""
        spec = super().find_spec(name, path, target)
        top = name.partition(".")[0]
        if spec is None or top in ALLOWED or top.startswith("_") or cls._is_own(spec):
            return spec
        importer = cls._importer()
        log = os.environ.get("BARE_MACHINE_LOG")
        # installed packages may lie inside the checkout
        if log and importer.startswith(cls._root()) and "site-packages" not in importer:
            with open(log, "a") as file:
                file.write(f"{importer} imports {name}\n")
        return None

    @classmethod
    def _is_own(cls, spec: Any) -> bool:
        """Whether a module is one of the checkout's scripts."""
        return str(spec.origin).startswith(os.path.join(cls._root(), "tools"))

    @staticmethod
    def _root() -> str:
        return os.environ["BARE_MACHINE_ROOT"]

    @staticmethod
    def _importer() -> str:
        frame = sys._getframe(2)
        while frame.f_back is not None and (
            "importlib" in frame.f_code.co_filename or frame.f_code.co_filename == __file__
        ):
            frame = frame.f_back
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def bare_environment(repo_root: Path, folder: Path) -> dict[str, str]:
    """Variables of a Python that is bare in this way, by `folder`, whose file `log` tells what the checkout misses."""
    folder.mkdir()
    shutil.copy(__file__, folder / "sitecustomize.py")
    return {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "BARE_MACHINE_ROOT": str(repo_root),
        "BARE_MACHINE_LOG": str(folder / "log"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


if __name__ == "sitecustomize":
    sys.meta_path[:] = [BareFinder if finder is PathFinder else finder for finder in sys.meta_path]
