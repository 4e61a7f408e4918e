"""GPUs: what their data sheets say, and the speed that kernels reach on them.

The one table of peak speeds. Figures of H100 and H200 are published measurements; those of the other chips are scaled
from them by the data sheets unless a source is named, and no row of measured steps calibrates them (`calibrated`).
"""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.cluster import ChipName


@dataclass(frozen=True)
class AttentionRates:
    """Speed of one kernel at heads of 128 and 8,192 tokens, in TFLOP/s, of the products that it must form.

    `forward` and `backward` without a mask, `causal` forward with one. Shorter segments are slower (`speed`).
    """

    forward: float
    backward: float
    causal: float

    def speed(self, length: float, *, backward: bool, causal: bool) -> float:
        """FLOP/s for segments of a length: half of what is lost at 8,192 tokens is lost at twice as many."""
        rate = self.backward if backward else self.forward
        half = 256.0
        if causal:
            rate, half = rate * self.causal / self.forward, 1024.0
        return 1e12 * rate * (1 + half / 8192) / (1 + half / max(length, 1.0))


@dataclass(frozen=True)
class Chip:
    """A GPU. Speeds in TFLOP/s of dense products, memory in bytes, bandwidths in bytes a second (links: each way).

    A product over an inner size K reaches `gemm_tflops` / (1 + `gemm_half` / K). `copy_share` of the memory bandwidth
    and `link_share` of a link's are reached. `domain` is how many GPUs NVLink connects, `nic` what each has beside it.
    """

    name: ChipName
    label: str
    bf16_tflops: float
    fp8_tflops: float
    memory: int
    bandwidth: float
    nvlink: float
    domain: int
    nic: float
    watts: float
    gemm_tflops: float
    gemm_half: float
    attention: dict[str, AttentionRates]
    source: str
    calibrated: bool = False
    copy_share: float = 0.9
    link_share: float = 0.76
    nic_share: float = 0.8

    def gemm_speed(self, inner: float) -> float:
        """FLOP/s of a product over an inner size."""
        return 1e12 * self.gemm_tflops / (1 + self.gemm_half / max(inner, 1.0))

    @property
    def copy_speed(self) -> float:
        """Bytes a second that kernels bound by memory read and write."""
        return self.bandwidth * self.copy_share


_HOPPER = {
    # FlashAttention-3 (Shah et al. 2024), figures 5 and 6, heads of 128, 8,192 tokens, H100
    "fa3": AttentionRates(646.0, 559.0, 602.0),
    "cudnn": AttentionRates(600.0, 518.0, 529.0),
    "fa2": AttentionRates(370.0, 318.0, 333.0),
}
_HOPPER |= {"te": _HOPPER["cudnn"], "fa4": _HOPPER["fa3"]}
# FlashAttention-2 (Dao 2023), figures 5 and 6, A100
_AMPERE = {"fa2": AttentionRates(222.0, 187.0, 200.0)}
# FlashAttention-4 (2026): up to 1,605 TFLOP/s forward on B200; the rest is scaled from Hopper
_BLACKWELL = {
    "fa4": AttentionRates(1500.0, 1200.0, 1350.0),
    "cudnn": AttentionRates(1400.0, 1150.0, 1230.0),
    "fa2": AttentionRates(450.0, 390.0, 405.0),
}
_BLACKWELL |= {"te": _BLACKWELL["cudnn"]}
_GEMM = "GEMM: OpenXLA's measured table for sm_90"
_HGX = "NVIDIA data sheet"

_CHIPS = (
    Chip("a100", "A100 SXM 80 GB", 312.0, 312.0, 80 * 10**9, 2.039e12, 300e9, 8, 25e9, 400.0,
         267.0, 120.0, _AMPERE, f"{_HGX} of A100 (2021); kernels scaled"),
    Chip("h100", "H100 SXM", 989.5, 1979.0, 80 * 10**9, 3.35e12, 450e9, 8, 50e9, 700.0,
         847.0, 229.0, _HOPPER, f"{_HGX} of H100 (2023); {_GEMM}", calibrated=True),
    Chip("h200", "H200 SXM", 989.5, 1979.0, 141 * 10**9, 4.8e12, 450e9, 8, 50e9, 700.0,
         847.0, 229.0, _HOPPER, f"{_HGX} of H200 (2024); {_GEMM}", calibrated=True),
    Chip("b200", "B200 SXM", 2250.0, 4500.0, 180 * 10**9, 7.7e12, 900e9, 8, 50e9, 1000.0,
         1850.0, 480.0, _BLACKWELL, f"{_HGX} of HGX B200 (2024); kernels scaled"),
    Chip("gb200", "GB200 NVL72", 2500.0, 5000.0, 186 * 10**9, 8.0e12, 900e9, 72, 50e9, 1200.0,
         1950.0, 480.0, _BLACKWELL, f"{_HGX} of GB200 NVL72 (2024); kernels scaled"),
    Chip("gb300", "GB300 NVL72", 2500.0, 5000.0, 279 * 10**9, 8.0e12, 900e9, 72, 100e9, 1400.0,
         1950.0, 480.0, _BLACKWELL, f"{_HGX} of GB300 NVL72 (2025); kernels scaled"),
)  # fmt: skip
# boards with less power than SXM say so in their names, of which the first that fits counts
_BOARDS = {
    "H200 NVL": 835.5, "H100 NVL": 835.5, "H100 PCIe": 756.5, "H200": 989.5, "H100": 989.5,
    "A100": 312.0, "GB200": 2500.0, "GB300": 2500.0, "B200": 2250.0,
}  # fmt: skip


def chip_of(name: str) -> Chip:
    """The chip of that name."""
    return next(chip for chip in _CHIPS if chip.name == name)


def chip_names() -> tuple[str, ...]:
    """All names, oldest first."""
    return tuple(chip.name for chip in _CHIPS)


def board_tflops(device_name: str) -> float | None:
    """Dense bf16 TFLOP/s by the name that a GPU's driver gives, None for one that is not known."""
    return next((tflops for part, tflops in _BOARDS.items() if part in device_name), None)
