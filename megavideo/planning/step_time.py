"""Time of one training step, as a sum of what keeps a GPU busy or waiting.

Products run at a speed that depends on their inner size, attention at one of its kernel and length, all else by the
bytes it moves. Communication takes bytes over the bandwidth of the links that it crosses, and latency by hops; what
runs beside products is exposed in part, and at least by what exceeds them. `Constants` are the few free numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from megavideo.planning.chips import Chip
from megavideo.planning.communication import ring_bytes, tensor_parallel_bytes, text_bytes, ulysses_bytes
from megavideo.planning.workload import Scheme, Shape, attention_flops, element_bytes, layer_products

BF16, FP32 = 2, 4
_LATENCY = {"node": 8e-6, "fabric": 20e-6}  # seconds a hop of a ring of NCCL, in a node and across nodes
_KERNEL_SECONDS = 4e-6  # from one launch to the next
_KERNELS = {"eager": 320, "compiled": 120, "fused": 90}  # of a block, both passes
_UPDATE_BYTES = {"zero3": 44, "zero2": 60, "zero1": 60, "ddp": 44}  # an element of a rank's part of the states
_LOGIT_BYTES = 40  # a word and token: logits in float32, what softmax reads and writes of them, and their gradient


@dataclass(frozen=True)
class Constants:
    """What calibration fits: shares of the published speeds that a long run reaches, and how much overlap leaves over.

    `products` (GPUs slow down under power), `attention`, `elements` (bytes really moved over bytes counted) and
    `exposed` (share of communication that is seen though it runs beside products).
    """

    products: float = 0.77
    attention: float = 0.91
    elements: float = 1.3
    exposed: float = 0.22


# what `calibrate.fit` finds on the published rows, to which a test holds it
PUBLISHED_CONSTANTS = Constants(products=0.723, attention=0.852, elements=1.56, exposed=0.176)


@dataclass(frozen=True)
class Cluster:
    """Where it runs: a chip, GPUs of a node, and for each GPU the bandwidth to other nodes in bytes a second."""

    chip: Chip
    gpus_per_node: int = 8
    nic: float | None = None

    @property
    def domain(self) -> int:
        """GPUs that NVLink connects."""
        return max(self.chip.domain, self.gpus_per_node) if self.chip.domain > 8 else min(8, self.gpus_per_node)

    @property
    def nic_speed(self) -> float:
        """Bytes a second that one GPU sends to other nodes."""
        return (self.nic or self.chip.nic) * self.chip.nic_share

    @property
    def link_speed(self) -> float:
        """Bytes a second that one GPU sends within its domain."""
        return self.chip.nvlink * self.chip.link_share

    def speed(self, span: int, size: int) -> float:
        """Bytes a second of a rank in a group of `size` ranks that are spread over `span` neighbouring ranks."""
        if size == 1 or span <= self.domain:
            return self.link_speed
        inside = max(1, self.domain * size // span)  # ranks of the group in one node, which share what comes in
        return min(self.link_speed, self.nic_speed * inside)

    def latency(self, span: int, size: int) -> float:
        """Seconds that a ring over the group takes whatever it carries."""
        return (size - 1) * _LATENCY["node" if span <= self.domain else "fabric"] if size > 1 else 0.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by what the GPU does or waits for; they add up to the step.

    `hidden` are seconds of communication beside products, which the step does not see.
    """

    products: float
    attention: float
    elements: float
    recompute: float
    head: float
    launch: float
    tensor: float
    context: float
    pipeline: float
    bubble: float
    data: float
    update: float
    hidden: float = field(default=0.0)

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Everything that adds up to the step."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "hidden"}


@dataclass(frozen=True)
class _Layer:
    """Seconds of one block and micro-batch, forward and both passes."""

    products: float
    products_forward: float
    attention: float
    attention_forward: float
    elements: float

    @property
    def forward(self) -> float:
        return self.products_forward + self.attention_forward + self.elements / 3

    @property
    def total(self) -> float:
        return self.products + self.attention + self.elements


def step_time(shape: Shape, scheme: Scheme, cluster: Cluster, constants: Constants) -> StepTime:
    """Of a step that every rank makes `scheme.micro_steps` micro-batches for."""
    layer = _layer(shape, scheme, cluster.chip, constants)
    layers = shape.layers / scheme.pp
    micro = scheme.micro_steps
    tensor, tensor_hidden = _tensor(shape, scheme, cluster, constants, layer)
    context, context_hidden = _context(shape, scheme, cluster, constants, layer)
    again = scheme.recompute * (layer.forward + (tensor + context) / 3)
    per_layer = layer.total + again + tensor + context
    head = _head(shape, scheme, cluster.chip, constants)
    launch = max(0.0, _KERNELS[scheme.kernels] * (1 + scheme.recompute / 3) * _KERNEL_SECONDS - per_layer)
    pipeline = _pipeline(shape, scheme, cluster)
    busy = layers * (per_layer + launch) + head / scheme.pp + pipeline
    bubble = _bubble(scheme, micro) * busy
    data, data_hidden = _data(shape, scheme, cluster, constants, layers * per_layer)
    return StepTime(
        products=micro * layers * layer.products,
        attention=micro * layers * layer.attention,
        elements=micro * layers * layer.elements,
        recompute=micro * layers * again,
        head=micro * head / scheme.pp,
        launch=micro * layers * launch,
        tensor=micro * layers * tensor,
        context=micro * layers * context,
        pipeline=micro * pipeline,
        bubble=bubble,
        data=data,
        update=_update(shape, scheme, cluster.chip, constants),
        hidden=micro * layers * (tensor_hidden + context_hidden) + data_hidden,
    )


def _layer(shape: Shape, scheme: Scheme, chip: Chip, constants: Constants) -> _Layer:
    forward = backward = 0.0
    for product in layer_products(shape, scheme):
        forward += product.flops / chip.gemm_speed(product.inner)
        backward += product.flops / chip.gemm_speed(product.outer)
        backward += product.flops / chip.gemm_speed(product.rows) if scheme.trains_all else 0.0
    speed = constants.products * scheme.product_gain
    rates = chip.attention[scheme.attention]
    attend = attend_back = 0.0
    for length, flops in attention_flops(shape, scheme):
        attend += flops / rates.speed(length, backward=False, causal=shape.causal)
        attend_back += 2.5 * flops / rates.speed(length, backward=True, causal=shape.causal)
    narrow = min(1.0, shape.head_dim / 128) ** 0.5  # narrower heads leave the tensor cores waiting for the softmax
    attend, attend_back = attend / narrow, attend_back / narrow
    rows = scheme.tokens / scheme.cp / (scheme.tp if scheme.sp or scheme.tp == 1 else scheme.tp**0.5)
    moved = element_bytes(shape, scheme) * rows * shape.width * constants.elements
    return _Layer(
        products=(forward + backward) / speed,
        products_forward=forward / speed,
        attention=(attend + attend_back) / constants.attention,
        attention_forward=attend / constants.attention,
        elements=moved / chip.copy_speed,
    )


def _seen(seconds: float, window: float, constants: Constants, *, overlapped: bool) -> tuple[float, float]:
    """(seconds that are seen, seconds that are hidden) of communication beside a window of products."""
    if not overlapped:
        return seconds, 0.0
    seen = max(constants.exposed * seconds, seconds - window)
    return seen, seconds - seen


def _tensor(shape: Shape, scheme: Scheme, cluster: Cluster, constants: Constants, layer: _Layer) -> tuple[float, float]:
    if scheme.tp == 1:
        return 0.0, 0.0
    rows = scheme.tokens // scheme.cp
    collectives = 15 if scheme.sp else 12
    sent = tensor_parallel_bytes(rows, shape.width, scheme.tp, BF16, sp=scheme.sp)
    if not shape.cross:  # two pairs of collectives in place of three
        sent, collectives = sent * 2 // 3, collectives * 2 // 3
    if scheme.gathered_norms:  # queries and keys of both attentions whole on each rank, both ways
        sent += 6 * rows * shape.width * BF16 * (scheme.tp - 1) // scheme.tp
        collectives += 6
    seconds = sent / cluster.speed(scheme.tp, scheme.tp) + collectives * cluster.latency(scheme.tp, scheme.tp)
    return _seen(seconds, layer.products, constants, overlapped=scheme.overlap_tp)


def _context(
    shape: Shape, scheme: Scheme, cluster: Cluster, constants: Constants, layer: _Layer
) -> tuple[float, float]:
    if scheme.cp == 1:
        return 0.0, 0.0
    width = shape.width // scheme.tp
    ring, ulysses = scheme.ring, scheme.ulysses
    exchanged = ulysses_bytes(scheme.tokens // ring, width, ulysses, BF16)
    exchange = exchanged / cluster.speed(scheme.tp * ulysses, ulysses) + 8 * cluster.latency(scheme.tp * ulysses, 2)
    if ulysses == 1:
        exchange = 0.0
    span = scheme.tp * scheme.cp
    passed = ring_bytes(scheme.tokens, width // ulysses, ring, BF16)
    text = text_bytes(scheme.text, width, scheme.cp, BF16) if shape.cross else 0
    gather = text / cluster.speed(span, scheme.cp) + (4 * cluster.latency(span, scheme.cp) if text else 0.0)
    if scheme.text_in_ring:
        gather += 3 * cluster.latency(span, ring)
    seconds = passed / cluster.speed(span, ring) + 3 * cluster.latency(span, ring)
    seen, hidden = _seen(seconds, layer.attention, constants, overlapped=scheme.overlap_cp)
    return seen + exchange + gather, hidden


def _head(shape: Shape, scheme: Scheme, chip: Chip, constants: Constants) -> float:
    if not shape.vocab:
        return 0.0
    rows, words = scheme.tokens / scheme.cp, shape.vocab / scheme.tp
    flops = 2 * rows * shape.width * words
    products = flops / chip.gemm_speed(shape.width) + flops / chip.gemm_speed(words) + flops / chip.gemm_speed(rows)
    return products / constants.products + _LOGIT_BYTES * rows * words / chip.copy_speed


def _pipeline(shape: Shape, scheme: Scheme, cluster: Cluster) -> float:
    """Sends of a micro-batch that a stage waits for: one boundary each way for each chunk of layers."""
    if scheme.pp == 1:
        return 0.0
    rows = scheme.tokens // scheme.cp // (scheme.tp if scheme.sp else 1)
    sent = 2 * scheme.vpp * rows * shape.width * BF16
    span = scheme.tp * scheme.cp * scheme.dp * scheme.pp
    return sent / cluster.speed(span, 2) + 2 * scheme.vpp * cluster.latency(span, 2)


def _bubble(scheme: Scheme, micro: int) -> float:
    """In micro-batches: 1F1B waits for (p - 1) / v of them, DualPipeV for half."""
    if scheme.pp == 1:
        return 0.0
    return (scheme.pp - 1) / (2 if scheme.dual else scheme.vpp)


def _data(
    shape: Shape, scheme: Scheme, cluster: Cluster, constants: Constants, micro_seconds: float
) -> tuple[float, float]:
    """Gradients and parameters over the data axis, which is dp x cp ranks a rank apart by tp."""
    ranks = scheme.dp * scheme.cp
    if ranks == 1:
        return 0.0, 0.0
    span = scheme.tp * ranks
    held, trained = (number / scheme.tp / scheme.pp for number in (shape.parameters, shape.updated))
    speed, latency = cluster.speed(span, ranks), cluster.latency(span, ranks)
    others = (ranks - 1) / ranks
    scatter = trained * scheme.gradient_bytes * others / speed + 4 * latency
    gather = trained * BF16 * others / speed + 4 * latency
    if scheme.sharding == "zero3":
        layers = shape.layers / scheme.pp
        micro = 2 * held * BF16 * others / speed + scatter + 3 * layers * latency
        seen, hidden = _seen(micro, micro_seconds, constants, overlapped=scheme.overlap_dp)
        return scheme.micro_steps * seen, scheme.micro_steps * hidden
    reductions = scheme.micro_steps if scheme.sharding == "zero2" else 1
    seconds = reductions * scatter + gather
    return _seen(seconds, micro_seconds, constants, overlapped=scheme.overlap_dp)


def _update(shape: Shape, scheme: Scheme, chip: Chip, constants: Constants) -> float:
    held = shape.updated / scheme.tp / scheme.pp
    part = held if scheme.sharding == "ddp" else held / (scheme.dp * scheme.cp)
    copies = 0 if scheme.sharding == "zero3" else 8 * held  # gradients summed up and weights taken over
    moved = (_UPDATE_BYTES[scheme.sharding] * part + copies) / chip.copy_speed
    host = part * 16 / 40e9 if scheme.offload else 0.0
    return moved * constants.elements + host
