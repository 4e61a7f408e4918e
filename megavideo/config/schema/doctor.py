"""Settings of `megavideo doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class AttentionTimes:
    """The packs on which this machine's attention kernels are timed, forward and backward.

    `time` null: on a GPU, and not on a CPU. A pack of `tokens` (null: 32768 on a GPU, 1024 on a CPU) in `segments` of
    one length attends to itself, and to `text_tokens` shared out in the same way.
    """

    time: bool | None = None
    tokens: int | None = setting(None, minimum=1)
    text_tokens: int = setting(1024, minimum=1)
    segments: int = setting(4, minimum=1)
    heads: int = setting(12, minimum=1)
    head_dim: int = setting(128, minimum=1)


_AS_IT_IS = AttentionTimes()


@dataclass(frozen=True, kw_only=True)
class DoctorRun:
    """What `megavideo doctor` looks at: the machine, or with `data` a dataset and the run that is to train on it.

    `data` is a folder or s3:// prefix written by `megavideo encode`, `version` one of its versions (null: the newest).
    The settings up to `dp` mean what they mean to `megavideo train` (`patch` null: the dataset's); `gpus` are those of
    the whole run (null: as many as `dp`), and `tokens_per_second_per_gpu` is the speed that the stream has to keep up
    with. A run that drops more than `max_dropped_share` of the samples is refused. With `check_hashes` every shard is
    read: its hash is compared, and equal or non-finite latents are found; without, it is only seen whether the shards
    are there. `out` receives `report.html`, `report.json` and the histograms as `histograms.png`. `attention` is for
    the machine alone.
    """

    data: str | None = None
    version: int | None = setting(None, minimum=1)
    patch: tuple[int, int, int] | None = setting(None, minimum=1)
    tokens_per_pack: int = setting(32768, minimum=1)
    text_tokens_per_pack: int = setting(16384, minimum=1)
    packs_per_step: int = setting(8, minimum=1)
    steps: int = setting(1000, minimum=1)
    seed: int = setting(0, minimum=0)
    dp: int = setting(1, minimum=1)
    gpus: int | None = setting(None, minimum=1)
    tokens_per_second_per_gpu: float = setting(20000.0, above=0.0)
    max_dropped_share: float = setting(0.01, minimum=0.0, maximum=1.0)
    check_hashes: bool = True
    attention: AttentionTimes = _AS_IT_IS
    out: str | None = None
