"""Probabilities of a label by an image classifier, and the share of a picture that is of a class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from megavideo.data.ingest.scoring.measure import ClipFrames
from megavideo.encoders.scores.folder import ModelFolder
from megavideo.encoders.scores.in_memory import in_memory
from megavideo.errors import ConfigError


class LabelProbability:
    """The probability of a label: the mean over a clip's frames, or with `largest` the largest of any."""

    reads_caption: bool = False

    def __init__(self, name: str, folder: ModelFolder, label: str, batch: int, largest: bool) -> None:
        _check_class(folder, "ForImageClassification")
        self.name = name
        self._folder = folder
        self._label = label_number(folder, f"scores.{name}.label", label)
        self._batch = batch
        self._largest = largest
        self.key = f"{name} 1 {folder.key} {self._label}"

    @torch.inference_mode()
    def measure(self, clips: Sequence[ClipFrames]) -> list[float]:
        """The probabilities, 0..1."""
        pictures = [frame for clip in clips for frame in clip.frames]
        parts = []
        with in_memory():
            for begin in range(0, len(pictures), self._batch):
                inputs = self._images(images=pictures[begin : begin + self._batch], return_tensors="pt")
                logits = self._model(**self._folder.moved(inputs)).logits.float()
                parts.append(_probabilities(logits, self._folder)[:, self._label].cpu())
        values = torch.cat(parts).split([len(clip.frames) for clip in clips])
        return [float(frames.max() if self._largest else frames.mean()) for frames in values]

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForImageClassification

        return self._folder.model(AutoModelForImageClassification)

    @cached_property
    def _images(self) -> Any:
        return self._folder.image_processor()


class TextArea:
    """The mean share of a clip's frames that is of a class, by segmentation or by boxes of a detector."""

    name: str = "text_area"
    reads_caption: bool = False

    def __init__(self, folder: ModelFolder, label: str, confidence: float) -> None:
        kind = _check_class(folder, "ForSemanticSegmentation", "ForObjectDetection")
        self._folder = folder
        self._label = label_number(folder, "scores.text_area.label", label)
        self._confidence = confidence
        self._finds_boxes = kind.endswith("ForObjectDetection")
        self.key = f"text_area 1 {folder.key} {self._label} {confidence if self._finds_boxes else None}"

    @torch.inference_mode()
    def measure(self, clips: Sequence[ClipFrames]) -> list[float]:
        """The shares, 0..1. Clips are seen one at a time: a detector pads the pictures of a batch to one size."""
        shares = []
        with in_memory():
            for clip in clips:
                inputs = self._folder.moved(self._images(images=list(clip.frames), return_tensors="pt"))
                outputs = self._model(**inputs)
                shares.append(self._of_boxes(outputs, clip) if self._finds_boxes else self._of_points(outputs))
        return shares

    def _of_points(self, outputs: Any) -> float:
        logits = outputs.logits.float()
        found = logits.argmax(1) == self._label if logits.shape[1] > 1 else logits[:, 0] > 0
        return float(found.float().mean())

    def _of_boxes(self, outputs: Any, clip: ClipFrames) -> float:
        height, width = clip.frames.shape[1:3]
        found = self._images.post_process_object_detection(
            outputs, threshold=self._confidence, target_sizes=[(height, width)] * len(clip.frames)
        )
        shares = []
        for frame in found:
            covered = np.zeros((height, width), np.bool_)
            for box, label in zip(frame["boxes"].cpu().numpy(), frame["labels"].tolist(), strict=True):
                if label == self._label:
                    left, top, right, bottom = np.clip(np.rint(box), 0, (width, height, width, height)).astype(int)
                    covered[top:bottom, left:right] = True
            shares.append(covered.mean())
        return float(np.mean(shares))

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForObjectDetection, AutoModelForSemanticSegmentation

        return self._folder.model(
            AutoModelForObjectDetection if self._finds_boxes else AutoModelForSemanticSegmentation
        )

    @cached_property
    def _images(self) -> Any:
        return self._folder.image_processor()


def label_number(folder: ModelFolder, field: str, label: str) -> int:
    """The number of a label, in any case of its letters; ConfigError that lists them where there is none such."""
    named = folder.folder.config.get("id2label")
    labels = {str(name).lower(): int(number) for number, name in named.items()} if isinstance(named, dict) else {}
    if label.lower() not in labels:
        known = ", ".join(sorted(labels)[:50]) or "none that its config.json names"
        raise ConfigError(field, label, f"the model of {folder.field} has no such label", f"take one of: {known}")
    return labels[label.lower()]


def _check_class(folder: ModelFolder, *suffixes: str) -> str:
    """The class that the folder holds; ConfigError where it ends with none of `suffixes`."""
    architectures = folder.folder.config.get("architectures")
    kind = str(architectures[0]) if isinstance(architectures, list) and architectures else "no model with a class"
    if not kind.endswith(suffixes):
        wanted = " or ".join(f"one of transformers' {suffix[3:]} classes" for suffix in suffixes)
        raise folder.refuse(f"it holds {kind}, and {wanted} is needed", "give a folder of such a model")
    return kind


def _probabilities(logits: torch.Tensor, folder: ModelFolder) -> torch.Tensor:
    several = folder.folder.config.get("problem_type") == "multi_label_classification"
    return logits.sigmoid() if several or logits.shape[1] == 1 else logits.softmax(-1)
