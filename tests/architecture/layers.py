"""Laws about imports: rooms look downward only, nothing is circular, and heavy libraries stay in their rooms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.architecture.source import PACKAGE, Module, imports_of, resolve

BASE = {"errors", "types", "border", "config", "observe"}
WORK = BASE | {"planning", "device", "data", "diffusion", "model", "encoders", "parallel", "optim", "checkpoint"}
RUNS = WORK | {"interop", "generate", "evaluation", "train", "autoencoder", "preflight", "parity"}

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "border": {"errors", "types"},
    "config": {"border", "errors"},
    "planning": {"border", "config", "errors", "types"},
    "observe": {"border", "config", "errors", "types"},
    "device": {"errors", "types"},
    "data": BASE,
    "diffusion": BASE,
    "model": BASE | {"device"},
    "encoders": BASE | {"data"},
    "parallel": BASE | {"device", "model"},
    "optim": BASE | {"parallel"},
    "checkpoint": BASE | {"device", "parallel", "optim"},
    "interop": WORK,
    "generate": WORK | {"interop"},
    "evaluation": WORK,
    "train": WORK | {"interop", "generate", "evaluation"},
    "autoencoder": WORK | {"evaluation"},
    "preflight": WORK,
    "launch": {"border", "config", "planning", "errors", "types"},
    "scaling": BASE | {"planning"},
    "parity": WORK | {"interop", "train"},
    "cli": WORK
    | {"interop", "generate", "evaluation", "train", "autoencoder", "preflight", "parity", "launch", "scaling"},
    "testing": WORK
    | {"interop", "generate", "evaluation", "train", "autoencoder", "preflight", "parity", "launch", "scaling", "cli"},
    "__main__": {"cli"},
    "": set(),
}

TORCH_FREE = ("errors", "types", "border", "config", "planning", "launch", "scaling")
TORCH_BOUND = {
    "torch", "torchvision", "deepspeed", "megatron", "transformer_engine", "diffusers", "transformers", "streaming",
}  # fmt: skip
ENGINES = {"megatron", "deepspeed", "transformer_engine"}


def upward_imports(modules: dict[str, Module]) -> Iterator[str]:
    """Imports of a room that the table does not allow, and rooms that the table does not know."""
    for module in modules.values():
        if module.room not in ALLOWED:
            yield f"{module.name}: room {module.room!r} is not in the import table"
            continue
        for item in imports_of(module):
            target = resolve(item.target, modules)
            if target is None:
                if item.target.split(".")[0] == PACKAGE:
                    yield f"{module.name}:{item.line} imports {item.target}, which is not there"
                continue
            room = modules[target].room
            if room not in (module.room, "") and room not in ALLOWED[module.room]:
                yield f"{module.name}:{item.line} imports {target}: {module.room!r} may not import {room!r}"


def torch_in_free_rooms(modules: dict[str, Module]) -> Iterator[str]:
    """Imports of torch and what needs it in torch-free rooms, but for type checkers."""
    for module in modules.values():
        if module.room in TORCH_FREE:
            for item in imports_of(module):
                if not item.typing_only and item.target.split(".")[0] in TORCH_BOUND:
                    yield f"{module.name}:{item.line} imports {item.target} in a torch-free room"


def engines_outside_parallel(modules: dict[str, Module]) -> Iterator[str]:
    """Imports of megatron, deepspeed or transformer_engine outside `parallel/`."""
    for module in modules.values():
        if module.room != "parallel":
            for item in imports_of(module):
                if item.target.split(".")[0] in ENGINES:
                    yield f"{module.name}:{item.line} imports {item.target} outside parallel/"


def parallel_state_users(modules: dict[str, Module]) -> list[str]:
    """Modules that import `megatron.core.parallel_state`; at most one may."""
    return [
        module.name
        for module in modules.values()
        if any("parallel_state" in item.target.split(".") for item in imports_of(module))
    ]


def room_of(module: Module) -> str:
    """The room a module lies in: `data`."""
    return module.room


def inner_room_of(module: Module) -> str:
    """The room within its room, or the module itself where it lies in none: `megavideo.data.plan`."""
    return ".".join(module.name.split(".")[:3])


def cycles(modules: dict[str, Module], node_of: Callable[[Module], str]) -> list[list[str]]:
    """Groups of modules, or of what holds them, that import each other in a circle (Tarjan 1972)."""
    graph: dict[str, set[str]] = {}
    for module in modules.values():
        node = node_of(module)
        edges = graph.setdefault(node, set())
        for item in imports_of(module):
            target = resolve(item.target, modules)
            if target is not None:
                edges |= {node_of(modules[target])} - {node}
    return [sorted(group) for group in _components(graph) if len(group) > 1]


def _components(graph: dict[str, set[str]]) -> list[list[str]]:
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            position = stack.index(node)
            found.append(stack[position:])
            del stack[position:]

    for node in graph:
        if node not in order:
            visit(node)
    return found
