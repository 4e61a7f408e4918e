"""`megavideo encode`: clips and captions into shards of latents and text."""

from __future__ import annotations

from typing import Any

from megavideo.cli.describe import describe_fields
from megavideo.cli.verb import Texts, Verb
from megavideo.config.schema.prepare import EncodeRun


def _run(cfg: EncodeRun, texts: Texts) -> Any:
    from megavideo.encoders.encode.run import encode

    return encode(cfg)


VERB = Verb(
    name="encode",
    summary="encode clips and captions into shards of latents, in a folder or on s3://",
    primary="encode",
    schema=EncodeRun,
    run=_run,
    describe=describe_fields,
    examples=(
        "megavideo encode src=data/clips out=data/latents",
        "megavideo encode src=data/clips out=s3://bucket/latents autoencoder=wan autoencoder.path=FOLDER "
        "text_encoder=transformers text_encoder.path=FOLDER",
    ),
)
