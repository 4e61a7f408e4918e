"""Imports that every process of a parity run needs, made once in the server from which the processes are forked."""

from __future__ import annotations

import os

# a parity run is one of processes on a CPU, also where there are GPUs; libraries read these at their import
os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import torch

import megavideo.parity.process  # noqa: F401
from megavideo.parallel.engines.deepspeed import load_deepspeed, load_pipeline
from megavideo.parallel.layers.megatron import load_megatron

torch.set_num_threads(1)
load_deepspeed()
load_pipeline()
load_megatron()
