"""What an engine with adapters holds on a rank."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

from megavideo.parallel.engines.fragments import held_places
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.groups import destroy_groups
from megavideo.parity.process import build_parity_engine
from megavideo.parity.spec import ParitySpec


def held_elements(launch: Launch, spec: ParitySpec, layouts: Sequence[str]) -> dict[str, list[int]]:
    """By layout: elements of the optimizer's weights and states, and of gradients that frozen parameters could have."""
    found = {}
    for layout in layouts:
        with patch("deepspeed.utils.groups.mpu", None):
            engine = build_parity_engine(spec, layout, launch)
            engine.create_state()
            flats = {id(place.flat): place.flat for place in held_places(engine)}.values()
            every = [value for state in engine.base_optimizer.state.values() for value in state.values()]
            states = [value for value in every if value.ndim]
            frozen = [p for _, p, _ in engine.local_parameters() if not p.requires_grad]
            found[layout] = [
                sum(flat.numel() for flat in flats),
                sum(state.numel() for state in states),
                sum(p.grad is not None or hasattr(p, "_hp_mapping") for p in frozen),
                len(frozen),
            ]
            engine.close()
            destroy_groups()
    return found
