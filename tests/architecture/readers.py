"""The law about input from outside: it is parsed in `border/` alone, and nowhere else by a library of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import TypeGuard

from tests.architecture.source import Module

# what opens or parses files and texts that may be of anyone
READERS = frozenset(
    ("json.load", "json.loads", "yaml.load", "yaml.safe_load", "yaml.load_all", "yaml.safe_load_all", "yaml.full_load",
     "yaml.unsafe_load", "yaml.parse", "omegaconf.OmegaConf.load", "safetensors.safe_open", "safetensors.numpy.load",
     "safetensors.numpy.load_file", "safetensors.torch.load", "safetensors.torch.load_file",
     "safetensors.torch.load_model", "PIL.Image.open", "av.open", "pickle.load", "pickle.loads", "pickle.Unpickler",
     "torch.load", "numpy.load", "numpy.genfromtxt", "numpy.loadtxt", "marshal.loads", "shelve.open", "csv.reader",
     "csv.DictReader", "tomllib.loads", "tomllib.load", "xml.etree.ElementTree.parse", "zipfile.ZipFile",
     "tarfile.open", "cv2.imread", "cv2.VideoCapture", "imageio.imread", "pandas.read_csv", "pandas.read_parquet",
     "pyarrow.parquet.read_table", "ast.literal_eval", "eval", "exec", "joblib.load", "dill.load")
)  # fmt: skip
# (module, reader): why it may
ALLOWED: dict[tuple[str, str], str] = {
    ("megavideo.data.clips.write_video", "av.open"): "it writes",
    ("megavideo.data.table.open", "numpy.load"): "arrays of its own cache, which hold no objects",
}
BORDER = "megavideo.border"


def readers_outside(modules: Mapping[str, Module]) -> Iterator[str]:
    """Calls of readers outside of the border that the table does not allow, and rows of it that nothing needs."""
    used = set()
    for module in modules.values():
        if module.name.startswith(BORDER):
            continue
        for name, line in _calls(module.tree):
            if name in READERS and (module.name, name) not in ALLOWED:
                yield f"{module.path}:{line}: {name} is for {BORDER} alone, which bounds and checks what it reads"
            used.add((module.name, name))
    yield from (f"{module} does not call {name} any more" for module, name in ALLOWED if (module, name) not in used)


def _calls(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Dotted names of what is called or passed on, by the names under which it was imported."""
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            first, *rest = _parts(node)
            yield ".".join([imported.get(first, first), *rest]), node.lineno


def _parts(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*_parts(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


# fields that hold names from outside, and where such a name may be joined to a path: why it stays inside
NAMES = frozenset(("file", "basename", "source", "key"))
JOINED: dict[str, str] = {
    "megavideo.checkpoint.copying": "FileEntry holds the name of a file alone",
    "megavideo.checkpoint.fetch": "FileEntry holds the name of a file alone",
    "megavideo.checkpoint.survey": "FileEntry holds the name of a file alone",
    "megavideo.data.ingest.rows": "ClipRow holds a name that stays inside",
    "megavideo.data.ingest.work": "the names are those that the folder was found to hold",
    "megavideo.encoders.captioner.clips": "ClipRow holds a name that stays inside, and clip_file looks at links",
    "megavideo.evaluation.shapes.corpus": "the names are its own",
    "megavideo.testing.dataset": "the names are its own",
    "megavideo.testing.spoil": "FileEntry holds the name of a file alone",
}


def joins_outside(modules: Mapping[str, Module]) -> Iterator[str]:
    """Names from outside that are joined to a path where the table does not say why they stay inside."""
    used = set()
    for module in modules.values():
        if module.name.startswith(BORDER):
            continue
        for node in ast.walk(module.tree):
            if _is_join(node):
                used.add(module.name)
                if module.name not in JOINED:
                    yield f"{module.path}:{node.lineno}: join a name from outside by border.names.beneath"
    yield from (f"{module} joins no such name any more" for module in JOINED if module not in used)


def _is_join(node: ast.AST) -> TypeGuard[ast.BinOp]:
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)):
        return False
    named, right = isinstance(node.right, ast.Attribute | ast.Subscript), node.right
    if isinstance(right, ast.Subscript) and isinstance(right.slice, ast.Constant):
        return right.slice.value in NAMES
    return named and isinstance(right, ast.Attribute) and right.attr in NAMES
