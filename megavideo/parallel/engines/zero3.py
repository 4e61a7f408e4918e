"""Parameters under ZeRO-3 as they are made: partitioned over the data axis one by one.

DeepSpeed partitions a whole model when its engine is made, for which each device must first hold all of it. It takes a
model as it is whose parameters are partitioned already.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

from torch import nn

from megavideo.parallel.engines.deepspeed import load_deepspeed
from megavideo.parallel.engines.engine import EnginePlan


class Zero3Partition:
    """Takes whole parameters in the run's precision, alike on all ranks of the data axis, and keeps this rank's share.

    A call is a collective one of these ranks: the first of them sends its values to the others, as DeepSpeed does. A
    parameter keeps its identity and is empty until a pass gathers it; `layers.sharding.part_shape` tells its shape.
    """

    def __init__(self, plan: EnginePlan) -> None:
        self._plan = plan
        self._first: Any = None

    def __call__(self, parameter: nn.Parameter) -> None:
        """Partition one parameter."""
        if self._first is not None:
            self._first.convert_to_zero_parameters([parameter])
            return
        deepspeed, plan = load_deepspeed(), self._plan
        deepspeed.init_distributed(verbose=False)
        unit = plan.model_parallel_unit()
        with redirect_stdout(io.StringIO()):  # it tells of its settings
            # by the arguments with which DeepSpeed's own engine partitions what is not partitioned yet
            deepspeed.zero.Init(
                module=nn.ParameterList([parameter]),
                data_parallel_group=None if unit is None else unit.get_data_parallel_group(),
                config_dict_or_path=plan.deepspeed_settings(),
                dtype=plan.dtype,
                mpu=unit,
            )
        self._first = parameter
