#!/bin/sh
# Checks on a machine with one NVIDIA GPU what tests on a CPU cannot: Transformer Engine's layers in bf16 and FP8,
# packed attention, copies beside kernels, gradients of the model under recomputation, offload and compilation, training
# steps with all of them and with DeepSpeed's engine, and snapshots. One line a check and a JSON summary; 8 minutes at
# most.
#
#   tools/gpu_check.sh [PYTHON] [--json FILE] [--rehearse]
#
# PYTHON is that of an environment with torch and megavideo's other needs; without it, GPU_CHECK_PYTHON, then
# .venv/bin/python of the checkout, then python3. Nothing is installed but what the header of tools/bench/gpu.sh says.
# `--rehearse` tries the checks' own arithmetic on a CPU.
# Exit status: 0 all passed, 1 a check failed or time ran out, 2 there is no GPU, or no such Python.

set -u
root=$(cd "$(dirname "$0")/.." && pwd) || exit 2
tool=gpu_check
# shellcheck source=tools/gpu_python.sh
. "$root/tools/gpu_python.sh"

timeout 470 "$python" "$root/tools/gpu_check/main.py" "$@"
status=$?
if [ "$status" -eq 124 ]; then
	echo "gpu_check: stopped after 470 seconds" >&2
fi
[ "$status" -eq 0 ] || exit 1
