"""In which phase of a step a process is: its forward pass, its backward pass, or between them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Phase = Literal["forward", "backward", "between"]


class Phases:
    """The phase that this thread is in, once a model is watched; `between` is what an engine does outside both."""

    def __init__(self) -> None:
        self._in_forward = False

    def watch(self, model: nn.Module) -> None:
        """Take the calls of `model` as the forward phase from now on."""
        model.register_forward_pre_hook(lambda *_: self._set_forward(True), prepend=True)
        model.register_forward_hook(lambda *_: self._set_forward(False), always_call=True)

    @property
    def current(self) -> Phase:
        """The phase now."""
        # recomputation, and what engines hang on gradients, run inside autograd's task
        if torch._C._current_graph_task_id() != -1:
            return "backward"
        return "forward" if self._in_forward else "between"

    def _set_forward(self, value: bool) -> None:
        self._in_forward = value
