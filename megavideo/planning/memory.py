"""Memory of one GPU by part, and the moments at which it is highest.

States are exact, activations within 2 % (tests of both); context, communication buffers and the margin for
fragmentation are assumed, and said to be so.
"""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.layout import Layout, layout_parts, ulysses_degree
from megavideo.config.schema.precision import CPU_ATTENTION
from megavideo.config.schema.train import TrainRun
from megavideo.planning.activations import KeptBytes, PackShape, kept_bytes
from megavideo.planning.states import BF16, FP32, StateBytes, state_bytes

CONTEXT_BYTES = 900_000_000  # CUDA context, cuBLAS and cuDNN workspaces of an H100 process: 0.5 to 1.2 GB are seen
COMMUNICATOR_BYTES = 200_000_000  # NCCL's buffers of one group of ranks, of several channels: 0.1 to 0.4 GB are seen
FRAGMENTATION = 0.05  # of what comes and goes in a step, with expandable segments


@dataclass(frozen=True)
class Part:
    """A part of memory, in bytes; `assumed` where no count stands behind it."""

    name: str
    bytes: int
    assumed: bool = False


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of the GPU that holds most, at the height of a step, by part; and all moments by name.

    `host_bytes` is what a rank needs in host memory for offload and the snapshot of an asynchronous checkpoint.
    """

    parts: tuple[Part, ...]
    moments: dict[str, int]
    host_bytes: int
    pp_rank: int
    states: StateBytes

    @property
    def peak(self) -> int:
        """The highest of all moments."""
        return max(self.moments.values())


def memory_plan(config: TrainRun, layout: Layout, pack: PackShape, micro_steps: int) -> MemoryPlan:
    """Of the pipeline rank that needs most. `layout.dp` is given; `micro_steps` are packs of a rank in a step."""
    ranks = [_rank_plan(config, layout, pack, micro_steps, rank) for rank in range(layout.pp)]
    return max(ranks, key=lambda plan: plan.peak)


def communicators(layout: Layout, heads: int) -> int:
    """Groups of ranks with more than one member, which each have buffers on the device."""
    ulysses = ulysses_degree(layout, heads)
    ring = layout.cp // ulysses
    data = (layout.dp or 1) * layout.cp
    return sum(size > 1 for size in (layout.tp, ulysses, ring, data, layout.pp)) + 1


def _rank_plan(config: TrainRun, layout: Layout, pack: PackShape, micro_steps: int, pp_rank: int) -> MemoryPlan:
    states = state_bytes(config, layout, pp_rank)
    kept = _kept(config, layout, pack, pp_rank)
    in_flight = _in_flight(layout, micro_steps, pp_rank)
    activations = sum(stage.on_device * number for stage, number in zip(kept, in_flight, strict=True))
    working = max(stage.working for stage in kept)
    attention = _attention_workspace(config, layout, pack)
    batches = _batch_bytes(config, layout, pack) * 2  # the one at work and the next, copied beside it
    live = states.live + states.bucket
    coming = activations + working + attention + live + batches + states.update
    fixed = (
        Part("CUDA context and workspaces", CONTEXT_BYTES, assumed=True),
        Part("communication buffers", COMMUNICATOR_BYTES * communicators(layout, config.model.heads), assumed=True),
    )
    margin = Part("fragmentation", int(FRAGMENTATION * coming), assumed=True)
    on_device = 0 if states.offloaded else 1
    parts = (
        Part("weights", states.weights),
        Part("gradient accumulators", states.accumulators),
        Part("master weights", states.master * on_device),
        Part("optimizer states", states.optimizer * on_device),
        Part("average (EMA)", states.ema * on_device),
        Part("gathered parameters", states.live),
        Part("gradient bucket", states.bucket),
        Part("activations", activations),
        Part("recomputed block", working),
        Part("attention workspace", attention),
        Part("packs", batches),
        *fixed,
        margin,
    )
    always = states.on_device - states.accumulators + sum(part.bytes for part in fixed)
    step = always + states.accumulators
    forward = _forward_only(config, layout, pack) + states.live
    moments = {
        "forward and backward": sum(part.bytes for part in parts),
        "update": step + states.bucket + 2 * states.update + margin.bytes,
        "resume": always + _largest_file(states) + margin.bytes,
    }
    if config.validation.every is not None:
        moments["validation"] = always + forward + margin.bytes
    if config.validation.samples_every is not None:
        moments["sampling"] = always + 2 * forward + margin.bytes  # with and without the prompt
    saved = states.updated if config.checkpoint.asynchronous else 0
    host = states.on_host + (1 << (saved - 1).bit_length() if saved else 0)  # pinned buffers are powers of two
    return MemoryPlan(parts, moments, host, pp_rank, states)


def _kept(config: TrainRun, layout: Layout, pack: PackShape, pp_rank: int) -> list[KeptBytes]:
    parts = layout_parts(config.model.layers, layout)
    own = [parts[pp_rank]]
    if layout.pp_schedule == "dualpipev":
        own.append(parts[2 * layout.pp - 1 - pp_rank])
    return [kept_bytes(config, layout, pack, part) for part in own]


def _in_flight(layout: Layout, micro_steps: int, pp_rank: int) -> list[int]:
    """Packs whose activations a stage keeps at once, at most.

    1F1B: the stages that follow, and its own. DualPipeV keeps 2 pp + 1 packs of a half stage on every rank: those of
    the way down wait for the way up (DeepSeek-AI 2024, table 2).
    """
    if layout.pp_schedule == "dualpipev":
        down = min(micro_steps, 2 * layout.pp - pp_rank)
        return [down, min(micro_steps, pp_rank + 1)]
    return [min(layout.pp - pp_rank, micro_steps)]


def _attention_workspace(config: TrainRun, layout: Layout, pack: PackShape) -> int:
    """Of the backward pass: gradients of queries in float32 (all kernels of GPUs), and in a ring of all three."""
    if config.layers.attention in CPU_ATTENTION:
        return 0
    ring = layout.cp // ulysses_degree(layout, config.model.heads)
    heads = pack.tokens // layout.cp * config.model.width // layout.tp
    return FP32 * heads * (4 if ring > 1 else 1)


def _batch_bytes(config: TrainRun, layout: Layout, pack: PackShape) -> int:
    """A pack on the device: tokens and text in the run's precision, target in float32."""
    element = BF16 if config.train.precision == "bf16" else FP32
    model = config.model
    own = pack.tokens // layout.cp
    return element * (pack.tokens * (model.patch_dim + model.given_dim) + pack.text * model.text_dim) + (
        FP32 * own * model.patch_dim
    )


def _forward_only(config: TrainRun, layout: Layout, pack: PackShape) -> int:
    """The height of a pass that keeps nothing: residual streams, queries, keys and values, or the feed-forward."""
    element = BF16 if config.train.precision == "bf16" else FP32
    attended = pack.tokens // layout.cp
    own = attended // layout.tp if layout.sp else attended
    inner = max(6 * config.model.width, 2 * config.model.ffn) // layout.tp
    return element * (4 * own * config.model.width + attended * inner)


def _largest_file(states: StateBytes) -> int:
    """Restoring fills states piece by piece, from host memory."""
    return min(states.updated, 1 << 30)
