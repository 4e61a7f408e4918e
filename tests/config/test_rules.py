"""Each rule between settings refuses what it names, and every preset passes them all."""

from __future__ import annotations

from typing import Any

import pytest

from megavideo.config.load import load
from megavideo.config.rules import rules_for
from megavideo.config.rules.model import rotary_split
from megavideo.config.schema.cluster import SlurmGenRun
from megavideo.config.schema.export import ExportRun
from megavideo.config.schema.fit import FitRun
from megavideo.config.schema.parity import ParityRun
from megavideo.config.schema.plan import PlanRun
from megavideo.config.schema.prepare import EncodeRun, IngestRun
from megavideo.config.schema.sample import SampleRun
from megavideo.config.schema.train import TrainRun
from megavideo.config.schema.vae import TrainVaeRun
from megavideo.errors import ConfigError

BASE: dict[str, tuple[type[Any], list[str]]] = {
    "train": (TrainRun, ["data.uri=latents"]),
    "encode": (EncodeRun, ["src=clips", "out=latents"]),
    "ingest": (IngestRun, ["src=clips", "out=list"]),
    "parity": (ParityRun, []),
    "train_vae": (TrainVaeRun, []),
    "slurm_gen": (SlurmGenRun, []),
    "plan": (PlanRun, ["run=wan_1b"]),
    "sample": (SampleRun, ["ckpt=run", "out=a.mp4"]),
    "export": (ExportRun, ["ckpt=run", "out=a"]),
    "fit": (FitRun, []),
}


def load_with(primary: str, words: str) -> Any:
    """The base config of a verb with overrides, which take the place of the base's own."""
    schema, base = BASE[primary]
    given = words.split()
    keys = {word.split("=")[0] for word in given}
    return load(schema, primary, [*(word for word in base if word.split("=")[0] not in keys), *given])


REFUSED = [
    ("train", "lora.alpha=8", "lora.alpha", "no effect with lora.rank=null"),
    ("train", "lora.base=runs/base", "lora.base", "no effect with lora.rank=null"),
    ("train", "lora.rank=4 lora.base=runs/base", "lora.targets", "needs it"),
    ("train", "lora=blocks", "lora.base", "needs it"),
    ("train", "optim.muon_momentum=0.9", "optim.muon_momentum", "no effect with optim.algorithm=adamw"),
    ("train", "optim.muon_precision=fp32", "optim.muon_precision", "no effect with optim.algorithm=adamw"),
    ("train", "optim=muon optim.warmup_steps=9 optim.muon_momentum=null", "optim.muon_momentum", "needs it"),
    ("train", "optim=muon optim.warmup_steps=9 optim.muon_precision=null", "optim.muon_precision", "needs it"),
    ("train", "optim=muon optim.warmup_steps=9 layout=dp2-zero1-offload", "layout", "host memory"),
    ("train_vae", "optim=muon optim.warmup_steps=9", "optim.algorithm", "an autoencoder has none"),
    ("train", "model.heads=3", "model.heads", "must divide"),
    ("train", "model.heads=64", "model.heads", "at least 6"),
    ("train", "model.width=60 model.heads=4", "model.heads", "even"),
    ("train", "model.patch=[1,2,0]", "model.patch", ">= 1"),
    ("train", "model.time_dim=7", "model.time_dim", "even"),
    ("train", "run=wan_finetune", "init_from", "is required"),
    ("train", "init_expert=high", "init_expert", "no effect without init_from"),
    ("train", "model.image_dim=1280", "model.image_dim", "model.given_channels=0 tells nothing"),
    (
        "train",
        "model.given_channels=20 model.image_dim=1280 diffusion.conditions.image_to_video=1 "
        "diffusion.conditions.interpolation=1",
        "diffusion.conditions.interpolation",
        "is of one image",
    ),
    (
        "train",
        "model.given_channels=20 model.image_dim=1280 diffusion.conditions.image_to_video=1 layers=te_fp8 "
        "train.precision=bf16",
        "layers.fp8",
        "do not divide by 16",
    ),
    ("encode", "image_encoder.path=wan", "image_encoder.path", "no effect without given_latents"),
    (
        "encode",
        "given_latents=[interpolation] image_encoder.path=wan",
        "image_encoder.path",
        "no effect without given_latents",
    ),
    ("export", "format=transformer parts.image_encoder=none", "parts.image_encoder", "no effect"),
    ("train", "diffusion.prediction=v", "diffusion.prediction", "predicts velocity"),
    ("train", "diffusion=ddpm diffusion.prediction=velocity", "diffusion.prediction", "epsilon or v"),
    ("train", "diffusion.logit_mean=null", "diffusion.logit_mean", "needs it"),
    ("train", "diffusion.logit_std=null", "diffusion.logit_std", "needs it"),
    ("train", "diffusion.timesteps=uniform", "diffusion.logit_mean", "no effect"),
    ("train", "diffusion.timesteps=uniform diffusion.logit_mean=null", "diffusion.logit_std", "no effect"),
    ("train", "diffusion=ddpm diffusion.shift=3", "diffusion.shift", "no effect"),
    ("train", "diffusion=ddpm diffusion.shift_by_size=true", "diffusion.shift_by_size", "no effect"),
    ("train", "diffusion=ddpm diffusion.shift_by_content=0.5", "diffusion.shift_by_content", "no effect"),
    ("train", "diffusion.terms.perceptual_clips=2", "diffusion.terms.perceptual_clips", "without a weight"),
    (
        "train",
        "diffusion.terms.motion_smoothness=1 diffusion.terms.perceptual_frames=4",
        "diffusion.terms.perceptual_frames",
        "weight of perceptual",
    ),
    ("train", "diffusion.terms.max_level=0.5", "diffusion.terms.max_level", "without a weight"),
    ("train", "diffusion.shift=3 diffusion.shift_by_size=true", "diffusion.shift", "excludes"),
    ("train", "diffusion.zero_terminal_snr=true", "diffusion.zero_terminal_snr", "no effect"),
    ("train", "diffusion=ddpm diffusion.zero_terminal_snr=true", "diffusion.zero_terminal_snr", "epsilon"),
    ("train", "diffusion.loss_weight=min_snr diffusion.snr_gamma=5", "diffusion.loss_weight", "ddpm"),
    ("train", "diffusion=ddpm diffusion.loss_weight=min_snr", "diffusion.snr_gamma", "needs it"),
    ("train", "diffusion.snr_gamma=5", "diffusion.snr_gamma", "no effect"),
    ("train", "diffusion=ddpm diffusion.loss_weight=shift_sigma", "diffusion.loss_weight", "flow"),
    ("train", "diffusion.loss_weight=shift_sigma", "diffusion.shift_loss_scale", "needs it"),
    ("train", "diffusion.shift_loss_scale=1", "diffusion.shift_loss_scale", "no effect"),
    ("train", "diffusion.conditions.text=0", "diffusion.conditions", "zero"),
    ("train", "optim.betas=[0.9,1.0]", "optim.betas", "< 1"),
    ("train", "optim.betas=[-0.1,0.9]", "optim.betas", ">= 0"),
    ("train", "optim.ema_decay=1", "optim.ema_decay", "never moves"),
    ("train", "optim.warmup_steps=300", "optim.warmup_steps", "train.steps=300"),
    ("train", "optim.schedule=cosine", "optim.min_lr_ratio", "optim.schedule=cosine needs it"),
    ("train", "optim.schedule=wsd optim.decay_steps=60", "optim.min_lr_ratio", "optim.schedule=wsd needs it"),
    ("train", "optim.schedule=wsd optim.min_lr_ratio=0", "optim.decay_steps", "optim.schedule=wsd needs it"),
    ("train", "optim.schedule=wsd optim.min_lr_ratio=0 optim.decay_steps=281", "optim.decay_steps", "<= 280"),
    ("train", "optim.decay_steps=10", "optim.decay_steps", "no effect with optim.schedule=constant"),
    ("fit", "export=m.yaml", "export", "needs the video tokens of a clip"),
    ("fit", "export=m clip_tokens=9", "export", "is a file for configs/model"),
    ("fit", "export=m.yaml six_nd=true", "export", "no model of video"),
    ("fit", "clip_tokens=9 six_nd=true", "clip_tokens", "no effect with six_nd=true"),
    ("fit", "shape.aspect=64", "shape", "no effect without clip_tokens"),
    ("fit", "text_tokens=64", "text_tokens", "no effect without clip_tokens"),
    ("fit", "resamples=0 confidence=0.9", "confidence", "no effect with resamples=0"),
    ("train", "optim.min_lr_ratio=0.1", "optim.min_lr_ratio", "no effect"),
    ("train", "data.cache=shards", "data.cache", "no effect"),
    ("train", "data.cache_gb=5", "data.cache_gb", "no effect"),
    ("train", "data.uri=gs://bucket/x", "data.uri", "s3://"),
    ("train", "data.max_segments=1025", "data.max_segments", "text_tokens_per_pack"),
    ("train", "data.max_segments=4096", "data.max_segments", "tokens_per_pack"),
    ("train", "data.sources={image:-1.0}", "data.sources.image", "negative"),
    ("train", "data.area=[65536,4096]", "data.area", "nothing lies in it"),
    ("train", "data.frames=[17,5]", "data.frames", "nothing lies in it"),
    ("train", "name=a/b", "name", "not a path"),
    ("train", "observe.wandb_project=p", "observe.wandb_project", "no effect"),
    ("train", "output=s3://bucket/runs", "output", "not an address"),
    ("train", "guard.spike_window=32", "guard.spike_window", "no effect"),
    ("train", "exit.plateau_share=0.01", "exit.plateau_share", "no effect"),
    ("train", "data.retry_seconds=5", "data.retry_seconds", "no effect"),
    ("train_vae", "name=../a", "name", "not a path"),
    ("train_vae", "output=s3://bucket/runs", "output", "not an address"),
    ("train_vae", "data.src=s3://bucket/clips", "data.src", "not an address"),
    ("parity", "recompute.parts=[ffn]", "recompute.parts", "recompute.kind=none"),
    ("parity", "recompute.kind=full recompute.layers=9", "recompute.layers", "num_layers=4"),
    ("slurm_gen", "cluster.container.runner=apptainer", "cluster.container.runner", "no effect"),
    ("plan", "run=null", "run", "is required"),
    ("plan", "run=null calibrate=a validate=b", "validate", "goes not with calibrate"),
    ("plan", "validate=a", "run", "no effect"),
    ("plan", "stage=video", "stage", "without a curriculum"),
    ("plan", "show=3", "show", "without search"),
    ("ingest", "cuts.enabled=false cuts.ratio=5", "cuts.ratio", "no effect"),
    ("encode", "overwrite=true retry_dropped=true", "retry_dropped", "no effect"),
    ("sample", "expand.max_new_tokens=10", "expand.max_new_tokens", "no effect"),
    ("sample", "expand.endpoint.attempts=2", "expand.endpoint.attempts", "no effect"),
    (
        "sample",
        "expand=language_model expand.path=m expand.endpoint.attempts=2",
        "expand.endpoint.attempts",
        "without expand.endpoint.url",
    ),
    ("ingest", "src=gs://bucket/clips", "src", "s3://bucket/prefix"),
    ("ingest", "out=s3://bucket/clips", "out", "not an address"),
    ("encode", "src=gs://bucket/clips", "src", "s3://bucket/prefix"),
    ("encode", "out=gs://bucket/x", "out", "s3://"),
    ("encode", "src=a/ out=a", "out", "differ"),
    ("encode", "patch=[0,2,2]", "patch", ">= 1"),
    ("encode", "given_latents=[]", "given_latents", "names no task"),
    ("encode", "given_latents=[interpolation,interpolation]", "given_latents", "twice"),
    ("encode", "given_latents=[extension]", "given_latents[0]", "interpolation"),
    ("encode", "patch=[1,4,4]  area=1023", "area", "1024 pixels"),
    ("encode", "autoencoder.channels=null", "autoencoder.channels", "needs it"),
    ("encode", "autoencoder.fit_clips=null", "autoencoder.fit_clips", "needs it"),
    ("encode", "autoencoder.path=a", "autoencoder.path", "no effect"),
    ("encode", "autoencoder.precision=bf16", "autoencoder.precision", "no effect"),
    ("encode", "autoencoder=wan autoencoder.path=a autoencoder.channels=16", "autoencoder.channels", "no effect"),
    ("encode", "autoencoder=wan autoencoder.path=null", "autoencoder.path", "needs it"),
    ("encode", "text_encoder.dim=null", "text_encoder.dim", "needs it"),
    ("encode", "text_encoder.path=a", "text_encoder.path", "no effect"),
    ("encode", "text_encoder.pad_to=512", "text_encoder.pad_to", "no effect"),
    ("encode", "text_encoder=wan text_encoder.path=a text_encoder.pad_to=77", "text_encoder.pad_to", "would not fit"),
    ("encode", "text_encoder=transformers text_encoder.path=a text_encoder.dim=8", "text_encoder.dim", "no effect"),
    ("train", "diffusion=ddpm diffusion.sigma_range=[0.5,1]", "diffusion.sigma_range", "no effect"),
    ("train", "diffusion.sigma_range=[0.9,0.1]", "diffusion.sigma_range", "from less noise to more"),
    ("train", "diffusion.sigma_range=[0,1]", "diffusion.sigma_range", "no effect"),
    ("train", "diffusion.sigma_range=[0.5,1.5]", "diffusion.sigma_range[1]", "<= 1"),
    (
        "train",
        "diffusion.sigma_range=[0.875,1] diffusion.terms.temporal_consistency=0.1",
        "diffusion.terms.max_level",
        "no effect",
    ),
    (
        "train",
        "model.given_channels=16 diffusion.conditions.image_to_video=1",
        "model.given_channels",
        "a mask besides model.latent_channels=16",
    ),
    ("train", "model.given_channels=20", "model.given_channels", "no effect"),
    (
        "train",
        "model.given_channels=20 diffusion=flow_conditions",
        "diffusion.conditions.extension",
        "a first frame and a last",
    ),
    (
        "train",
        "model.given_channels=20 diffusion.conditions.image_to_video=1 diffusion.conditions.text=0 "
        "validation.samples_every=5 validation.prompts=[a]",
        "validation.samples_every",
        "a first frame",
    ),
    ("sample", "boundary=0.9", "boundary", "no effect"),
    ("sample", "low_ckpt=b", "boundary", "needs it"),
    ("sample", "low_ckpt=b boundary=1", "boundary", "<= 0.999"),
    ("sample", "out=a.gif", "out", ".mp4"),
    ("export", "out=s3://bucket/a", "out", "not an address"),
    ("export", "format=single", "out", "is one file"),
    ("export", "format=wan out=a.safetensors", "out", "is a folder"),
    ("export", "format=single out=a.safetensors shard_gb=2", "shard_gb", "no effect"),
    ("export", "format=wan shift=3", "shift", "no effect"),
    ("export", "format=transformer parts.vae=link", "parts.vae", "no effect"),
    ("export", "parts.tokenizer=move", "parts.tokenizer", "copy"),
    ("export", "dtype=fp16", "dtype", "bf16"),
    ("export", "low_ckpt=low", "boundary", "needs it"),
    ("export", "boundary=0.875", "boundary", "no effect"),
    ("export", "low_ckpt=low boundary=0.875 quantization=fp8", "quantization", "one network"),
    ("export", "low_ckpt=low boundary=0.875 format=wan", "low_ckpt", "holds one transformer"),
    ("export", "quantization=fp4", "quantization", "int8"),
    ("export", "quantization=fp8 format=wan", "quantization", "reads no scales"),
    ("export", "compare.steps=2", "compare.steps", "no effect with quantization=none"),
    ("export", "quantization=int8 verify=false compare.frames=5", "compare.frames", "no effect with verify=false"),
    ("sample", "out=s3://bucket/a.mp4", "out", "not an address"),
    ("sample", "scheduler=ddim shift=3", "shift", "no effect"),
]

ACCEPTED = [
    ("train", "data.uri=s3://bucket/x data.cache=shards data.retry_seconds=5"),
    ("train", "guard.spike_factor=3 guard.spike_window=32"),
    ("parity", "recompute.kind=selective recompute.parts=[ffn] recompute.layers=2"),
    ("ingest", "cuts.enabled=false"),
    ("train", "data.area=[4096,4096] data.frames=[1,1]"),
    ("train", "diffusion=ddpm_v"),
    ("train", "diffusion=flow_conditions"),
    ("train", "diffusion.loss_weight=shift_sigma diffusion.shift_loss_scale=1"),
    ("train", "model.given_channels=20 diffusion.conditions.image_to_video=1"),
    ("train", "model.given_channels=20 model.image_dim=1280 diffusion.conditions.image_to_video=1"),
    ("encode", "given_latents=[image_to_video] image_encoder.path=wan"),
    (
        "train",
        "model.given_channels=20 diffusion.conditions.interpolation=1 "
        "validation.samples_every=5 validation.prompts=[a]",
    ),
    ("train", "model.given_channels=20 diffusion.conditions.image_to_video=1 diffusion.conditions.text=0"),
    ("encode", "given_latents=[image_to_video,interpolation]"),
    ("train", "diffusion.sigma_range=[0.875,1] diffusion.shift=5"),
    ("sample", "low_ckpt=b boundary=0.875"),
    ("train", "diffusion.shift_by_content=0.5 diffusion.shift=3"),
    ("train", "diffusion.terms.temporal_consistency=0.1 diffusion.terms.max_level=0.5"),
    ("train", "diffusion.terms.perceptual=0.1 diffusion.terms.perceptual_clips=2"),
    ("train", "optim=cosine train.steps=2000"),
    ("train", "optim=wsd train.steps=2000"),
    ("train", "optim.schedule=wsd optim.min_lr_ratio=0 optim.decay_steps=280"),
    ("fit", "clip_tokens=9 export=m.yaml shape.aspect=64 text_tokens=0"),
    ("fit", "six_nd=true resamples=0"),
    ("train", "optim.ema_decay=null"),
    ("train", "observe=wandb"),
    ("train", "model.modulation=adaln_zero"),
    ("encode", "autoencoder=wan autoencoder.path=a autoencoder.precision=bf16"),
    ("encode", "text_encoder=transformers text_encoder.path=a"),
    ("encode", "text_encoder=wan text_encoder.path=a"),
    ("sample", "out=folder"),
    ("export", "format=single out=a.safetensors"),
    ("export", "shift=3 parts.vae=link parts.tokenizer=none"),
    ("export", "quantization=fp8 compare.steps=0"),
    ("export", "quantization=int8 format=single out=a.safetensors dtype=bf16 verify=false"),
]


@pytest.mark.parametrize(("primary", "words", "field", "part"), REFUSED)
def test_rule_refuses(primary: str, words: str, field: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_with(primary, words)
    assert caught.value.field == field
    assert part in caught.value.rule
    assert caught.value.remedy


@pytest.mark.parametrize(("primary", "words"), ACCEPTED)
def test_rule_accepts(primary: str, words: str) -> None:
    load_with(primary, words)


def test_rules_belong_to_their_schema() -> None:
    assert rules_for(int) == ()
    assert len(rules_for(TrainRun)) >= 20


@pytest.mark.parametrize(
    ("head_dim", "split"), [(128, (44, 42, 42)), (64, (24, 20, 20)), (16, (8, 4, 4)), (6, (2, 2, 2))]
)
def test_rotary_split_is_wans(head_dim: int, split: tuple[int, int, int]) -> None:
    assert rotary_split(head_dim) == split
