"""One call of a collective that is done later: what it reads, what it writes, and what nobody may touch meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from megavideo.parallel.processes.passing_group import CALLS
from megavideo.parallel.stand_in.buffers import Watched, share_memory, spoil
from megavideo.parallel.stand_in.signature import Signature, shapes


class CollectiveFault(RuntimeError):
    """A use of collectives that need not work where they run beside their caller, as on a GPU; says which and how."""


class LateCall:
    """A call from its issue until it has been waited for. `rank` is that in the group, of `size` ranks.

    Issued, it fills what it will write with what spoils its users. `name` is how messages call it.
    """

    def __init__(self, method: str, arguments: Sequence[Any], rank: int, size: int) -> None:
        call = CALLS[method]
        self.method = method
        self.operation = call.operation
        self.arguments = arguments
        self.signature = Signature.of(method, arguments, size)
        self.name = self.signature.text
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.waited = False
        self._lock = threading.Lock()
        self._futures: list[torch.futures.Future[Any]] = []
        inputs, outputs = call.inputs(arguments, rank), call.outputs(arguments, rank)
        self._check_contiguous([*inputs, *outputs])
        self.outputs = outputs
        # what is read and written in one place is read now, as it is about to be spoiled
        written = [given for given in inputs if any(share_memory(given, taken) for taken in outputs)]
        self._read_now = {id(given): given.data.clone() for given in written}
        self._inputs = [Watched(given.data) for given in inputs if id(given) not in self._read_now]
        self._given = {id(given) for given in inputs}
        for taken in outputs:
            spoil(taken)
        self._outputs = [Watched(taken.data) for taken in outputs]
        self._scratch: dict[int, torch.Tensor] = {}

    def _check_contiguous(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            if not tensor.is_contiguous():
                raise CollectiveFault(f"{self.name} is given {shapes([tensor])}, which is not contiguous")

    def own_arguments(self) -> list[Any]:
        """The arguments for the call itself: inputs as they are by now, and outputs that are not the caller's."""
        call = CALLS[self.method]
        held = [
            self._with_scratch(argument) if i == call.taken else argument for i, argument in enumerate(self.arguments)
        ]
        if call.given is not None and call.given != call.taken:
            held[call.given] = self._as_read(held[call.given])
        return held

    def _with_scratch(self, argument: Any) -> Any:
        if not isinstance(argument, torch.Tensor):
            return [self._with_scratch(part) for part in argument]
        read = self._read_now.get(id(argument))
        if read is None:
            # a rank of a reduction that is not its root gives what gloo may overwrite
            read = argument.data.clone() if id(argument) in self._given else torch.empty_like(argument.data)
        self._scratch[id(argument)] = read
        return read

    def _as_read(self, argument: Any) -> Any:
        if not isinstance(argument, torch.Tensor):
            return [self._as_read(part) for part in argument]
        return self._read_now.get(id(argument), argument.data)

    def hand_over(self) -> None:
        """Write the results where the caller wants them."""
        for taken in self.outputs:
            taken.data.copy_(self._scratch[id(taken)])
        self._outputs = [Watched(taken.data) for taken in self.outputs]

    def touched(self, when: str) -> list[str]:
        """Faults by then: inputs that were changed and outputs that were written since they were last looked at."""
        faults = [f"{self.name}: buffer reused early: its input {shapes([watched.tensor])} was changed {when}"
                  for watched in self._inputs if watched.changed]  # fmt: skip
        faults += [f"{self.name}: its output {shapes([watched.tensor])} was written to {when}"
                   for watched in self._outputs if watched.changed]  # fmt: skip
        return faults

    def end(self, error: BaseException | None) -> None:
        """Let those that wait go on."""
        with self._lock:
            self.error = error
            self.done.set()
        for future in self._futures:
            self._settle(future)

    def future(self) -> torch.futures.Future[Any]:
        """A future of the outputs."""
        future: torch.futures.Future[Any] = torch.futures.Future()
        with self._lock:
            if not self.done.is_set():
                self._futures.append(future)
                return future
        self._settle(future)
        return future

    def _settle(self, future: torch.futures.Future[Any]) -> None:
        if self.error is None:
            future.set_result(self.outputs)
        else:
            future.set_exception(self.error)


class Issuer(Protocol):
    """What must hear of the calls that it has issued."""

    def waited_for(self, call: LateCall) -> None:
        """Someone has waited for a call, or begun to."""

    def note(self, fault: str) -> None:
        """Something was wrong."""


class LateWork(dist.Work):
    """What a call returns at once."""

    def __init__(self, call: LateCall, issuer: Issuer) -> None:
        super().__init__()
        self._call = call
        self._issuer = issuer

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait until the outputs are there. Raises CollectiveFault for what went wrong by then."""
        call, first = self._call, not self._call.waited
        self._mark()
        if not call.done.wait(timeout.total_seconds() if timeout else None):
            raise CollectiveFault(f"{call.name} was not done in {timeout}")
        if call.error is not None:
            raise call.error
        faults = call.touched("before it was waited for") if first else []
        if faults:
            self._issuer.note("; ".join(faults))
            raise CollectiveFault("; ".join(faults))
        return True

    def synchronize(self) -> None:
        """Wait, as `wait` does."""
        self.wait()

    def is_completed(self) -> bool:
        """Whether it is done; who has seen that need not wait."""
        if self._call.done.is_set():
            self._mark()
        return self._call.done.is_set()

    def is_success(self) -> bool:
        """Whether it is done without an error."""
        return self.is_completed() and self._call.error is None

    def exception(self) -> BaseException | None:
        """The error with which it ended."""
        return self._call.error

    def result(self) -> list[torch.Tensor]:
        """The outputs, once they are there."""
        self.wait()
        return self._call.outputs

    def get_future(self) -> torch.futures.Future[Any]:
        """A future of the outputs, which then stands for waiting."""
        self._mark()
        return self._call.future()

    def _mark(self) -> None:
        if not self._call.waited:
            self._call.waited = True
            self._issuer.waited_for(self._call)

    def __del__(self) -> None:
        if not self._call.waited:
            self._call.waited = True
            # raises nothing here, where nobody would hear it
            self._issuer.note(f"{self._call.name}: its work was dropped before it was waited for")
