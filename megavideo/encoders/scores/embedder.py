"""Embeddings of frames and captions by CLIP and SigLIP, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from megavideo.data.ingest.scoring.measure import EMBEDDING, ClipFrames
from megavideo.encoders.scores.folder import ModelFolder
from megavideo.encoders.scores.head import Head
from megavideo.encoders.scores.in_memory import in_memory

_KINDS = ("clip", "siglip", "siglip2")


class Embedder:
    """A CLIP or SigLIP, loaded when it is first needed; several measures may share one.

    What it gave for the frames of the last clips is kept until others come.
    """

    def __init__(self, folder: ModelFolder, batch: int) -> None:
        if folder.kind not in _KINDS:
            rule = f"it holds a model of type {folder.kind}, and one of {', '.join(_KINDS)} is needed"
            raise folder.refuse(rule, "give a CLIP or SigLIP that save_pretrained wrote")
        self.folder = folder
        self._batch = batch
        self._last: tuple[list[np.ndarray], list[torch.Tensor]] = ([], [])

    @property
    def width(self) -> int | None:
        """Numbers of an embedding as the configuration tells; None where only the weights do."""
        config = self.folder.folder.config
        if self.folder.kind == "clip":
            return int(config.get("projection_dim", 512))
        vision = config.get("vision_config")
        return int(vision["hidden_size"]) if isinstance(vision, dict) and "hidden_size" in vision else None

    @torch.inference_mode()
    def frames(self, clips: Sequence[ClipFrames]) -> list[torch.Tensor]:
        """The embeddings of each clip's frames, float32 [N, D] of length one."""
        arrays = [clip.frames for clip in clips]
        known, values = self._last
        if len(known) == len(arrays) and all(one is other for one, other in zip(known, arrays, strict=True)):
            return values
        pictures = [frame for frames in arrays for frame in frames]
        parts = []
        with in_memory():
            for begin in range(0, len(pictures), self._batch):
                inputs = self._images(images=pictures[begin : begin + self._batch], return_tensors="pt")
                parts.append(_unit(self._model.get_image_features(**self.folder.moved(inputs))).cpu())
        values = list(torch.cat(parts).split([len(frames) for frames in arrays]))
        self._last = arrays, values
        return values

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """The embeddings of texts, float32 [N, D] of length one; each is cut at what the model reads."""
        longest = self._model.config.text_config.max_position_embeddings
        parts = []
        with in_memory():
            for begin in range(0, len(texts), self._batch):
                some = list(texts[begin : begin + self._batch])
                # To one length always: SigLIP was trained so, and what a text gives depends on no other.
                inputs = self._words(
                    some, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
                )
                named = {name: inputs[name] for name in self._text_inputs if name in inputs}
                parts.append(_unit(self._model.get_text_features(**self.folder.moved(named))).cpu())
        return torch.cat(parts)

    @property
    def _text_inputs(self) -> tuple[str, ...]:
        # SigLIP's texts are read with their padding.
        return ("input_ids", "attention_mask") if self.folder.kind == "clip" else ("input_ids",)

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModel

        return self.folder.model(AutoModel)

    @cached_property
    def _images(self) -> Any:
        return self.folder.image_processor()

    @cached_property
    def _words(self) -> Any:
        return self.folder.tokenizer()


class ClipFit:
    """Mean cosine of a clip's frames with its caption."""

    name: str = "clip"
    reads_caption: bool = True

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.key = f"clip 1 {embedder.folder.key}"

    def measure(self, clips: Sequence[ClipFrames]) -> list[float]:
        """The cosines, -1..1."""
        texts = self._embedder.texts([clip.row.caption for clip in clips])
        frames = self._embedder.frames(clips)
        return [float((seen @ text).mean()) for seen, text in zip(frames, texts, strict=True)]


class ClipEmbedding:
    """The mean of the embeddings of a clip's frames, of length one."""

    name: str = EMBEDDING
    reads_caption: bool = False

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.key = f"embedding 1 {embedder.folder.key}"

    def measure(self, clips: Sequence[ClipFrames]) -> list[np.ndarray]:
        """The vectors, float32 [D]."""
        return [_unit(frames.mean(0, keepdim=True))[0].numpy() for frames in self._embedder.frames(clips)]


class LearnedAesthetic:
    """Mean over a clip's frames of what a head gives for their embeddings."""

    name: str = "learned_aesthetic"
    reads_caption: bool = False

    def __init__(self, embedder: Embedder, head: Head) -> None:
        head.check_width(embedder.width)
        self._embedder = embedder
        self._head = head
        self.key = f"learned_aesthetic 1 {embedder.folder.key} {head.key}"

    def measure(self, clips: Sequence[ClipFrames]) -> list[float]:
        """The values, on the scale of the head."""
        embeddings = self._embedder.frames(clips)
        self._head.check_width(embeddings[0].shape[1])
        return [float(self._head(frames).mean()) for frames in embeddings]


def _unit(values: torch.Tensor) -> torch.Tensor:
    return F.normalize(values.float(), dim=-1)
