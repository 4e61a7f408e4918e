"""Settings of `megavideo doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class DoctorRun:
    """What `megavideo doctor` looks at: the machine, or with `data` a dataset and the run that is to train on it.

    `data` is a folder or s3:// prefix written by `megavideo encode`, `version` one of its versions (null: the newest).
    The settings up to `dp` mean what they mean to `megavideo train` (`patch` null: the dataset's); `gpus` are those of
    the whole run (null: as many as `dp`), and `tokens_per_second_per_gpu` is the speed that the stream has to keep up
    with. A run that drops more than `max_dropped_share` of the samples is refused. With `check_hashes` every shard is
    read: its hash is compared, and equal or non-finite latents are found; without, it is only seen whether the shards
    are there. `out` receives `report.html`, `report.json` and the histograms as `histograms.png`.
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
    out: str | None = None
