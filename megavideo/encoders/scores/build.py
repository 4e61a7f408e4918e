"""The measures that settings ask for."""

from __future__ import annotations

from megavideo.config.schema.clip_scores import LabelConfig, ScoresConfig
from megavideo.data.ingest.scoring.measure import Measure
from megavideo.encoders.scores.embedder import ClipEmbedding, ClipFit, Embedder, LearnedAesthetic
from megavideo.encoders.scores.folder import open_model
from megavideo.encoders.scores.head import Head
from megavideo.encoders.scores.labels import LabelProbability, TextArea


def build_measures(cfg: ScoresConfig) -> tuple[Measure, ...]:
    """A measure for each folder of the settings; none for none.

    Folders, labels and the head are checked; models are loaded when a clip lacks what they give. Raises ConfigError
    where one cannot serve.
    """
    embedders: dict[str, Embedder] = {}

    def embedder(section: str, folder: str) -> Embedder:
        opened = open_model(f"scores.{section}", folder, cfg.device)
        return embedders.setdefault(str(opened.folder.path), Embedder(opened, cfg.batch))

    measures: list[Measure] = []
    if cfg.clip.folder is not None:
        measures.append(ClipFit(embedder("clip", cfg.clip.folder)))
    if cfg.learned_aesthetic.folder is not None:
        head = Head(cfg.learned_aesthetic.head or "", cfg.learned_aesthetic.activation)
        measures.append(LearnedAesthetic(embedder("learned_aesthetic", cfg.learned_aesthetic.folder), head))
    if cfg.embedding.folder is not None:
        measures.append(ClipEmbedding(embedder("embedding", cfg.embedding.folder)))
    measures += [
        _label(name, section, cfg, largest)
        for name, section, largest in (("watermark", cfg.watermark, False), ("nsfw", cfg.nsfw, True))
        if section.folder is not None
    ]
    if cfg.text_area.folder is not None:
        folder = open_model("scores.text_area", cfg.text_area.folder, cfg.device)
        measures.append(TextArea(folder, cfg.text_area.label or "", cfg.text_area.confidence))
    return tuple(measures)


def _label(name: str, section: LabelConfig, cfg: ScoresConfig, largest: bool) -> Measure:
    folder = open_model(f"scores.{name}", section.folder, cfg.device)
    return LabelProbability(name, folder, section.label or "", cfg.batch, largest)
