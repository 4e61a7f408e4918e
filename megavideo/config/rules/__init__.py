"""Rules between settings: one small function each, collected in one tuple per schema.

A setting that has no effect in the run is refused like a wrong one, because its writer believes that it acts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megavideo.config.rules.captions import CAPTION_RULES, EXPAND_RULES
from megavideo.config.rules.checkpoint import CHECKPOINT_RULES
from megavideo.config.rules.cluster import CLUSTER_RULES
from megavideo.config.rules.data import DATA_RULES
from megavideo.config.rules.diffusion import DIFFUSION_RULES
from megavideo.config.rules.doctor import DOCTOR_RULES
from megavideo.config.rules.export import EXPORT_RULES
from megavideo.config.rules.fit import FIT_RULES
from megavideo.config.rules.layout import LAYOUT_RULES
from megavideo.config.rules.lora import LORA_RULES
from megavideo.config.rules.model import MODEL_RULES
from megavideo.config.rules.optim import OPTIM_RULES
from megavideo.config.rules.plan import PLAN_RULES
from megavideo.config.rules.precision import PRECISION_RULES
from megavideo.config.rules.preflight import PREFLIGHT_RULES
from megavideo.config.rules.prepare import ENCODE_RULES, INGEST_RULES
from megavideo.config.rules.recompute import RECOMPUTE_RULES
from megavideo.config.rules.sample import SAMPLE_RULES
from megavideo.config.rules.stages import STAGE_RULES
from megavideo.config.rules.train import LOOP_RULES
from megavideo.config.rules.vae import VAE_RULES
from megavideo.config.rules.validation import VALIDATION_RULES
from megavideo.config.schema.captions import CaptionRun
from megavideo.config.schema.cluster import SlurmGenRun
from megavideo.config.schema.doctor import DoctorRun
from megavideo.config.schema.export import ExportRun
from megavideo.config.schema.fit import FitRun
from megavideo.config.schema.parity import ParityRun
from megavideo.config.schema.plan import PlanRun
from megavideo.config.schema.preflight import PreflightRun
from megavideo.config.schema.prepare import EncodeRun, IngestRun
from megavideo.config.schema.sample import SampleRun
from megavideo.config.schema.train import TrainRun
from megavideo.config.schema.vae import TrainVaeRun

TRAIN_RULES = (
    *LOOP_RULES,
    *MODEL_RULES,
    *DATA_RULES,
    *LAYOUT_RULES,
    *DIFFUSION_RULES,
    *OPTIM_RULES,
    *RECOMPUTE_RULES,
    *PRECISION_RULES,
    *STAGE_RULES,
    *CHECKPOINT_RULES,
    *VALIDATION_RULES,
    *LORA_RULES,
)


def rules_for(schema: type[Any]) -> tuple[Callable[[Any], None], ...]:
    """The rules of one schema, in the order in which they are applied; empty where there are none."""
    by_schema: dict[type[Any], tuple[Callable[[Any], None], ...]] = {
        TrainRun: TRAIN_RULES,
        IngestRun: INGEST_RULES,
        EncodeRun: ENCODE_RULES,
        CaptionRun: CAPTION_RULES,
        TrainVaeRun: VAE_RULES,
        DoctorRun: DOCTOR_RULES,
        ParityRun: RECOMPUTE_RULES,
        PreflightRun: PREFLIGHT_RULES,
        SlurmGenRun: CLUSTER_RULES,
        PlanRun: PLAN_RULES,
        ExportRun: EXPORT_RULES,
        FitRun: FIT_RULES,
        SampleRun: (*SAMPLE_RULES, *EXPAND_RULES),
    }
    return by_schema.get(schema, ())


def check(cfg: object) -> None:
    """Apply every rule of the config's schema. Raises ConfigError at the first that is broken."""
    for rule in rules_for(type(cfg)):
        rule(cfg)
