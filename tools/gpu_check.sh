#!/bin/sh
# Checks on a machine with one NVIDIA GPU what tests on a CPU cannot: Transformer Engine's layers in bf16 and FP8,
# packed attention, and training steps with both. One line a check and a JSON summary; at most 8 minutes.
#
#   tools/gpu_check.sh [PYTHON] [--json FILE]
#
# PYTHON is that of an environment with torch, megavideo's other needs and transformer-engine; without it,
# GPU_CHECK_PYTHON, then .venv/bin/python of the checkout, then python3. Nothing is installed.
# Exit status: 0 all passed, 1 a check failed or time ran out, 2 there is no GPU, or no such Python.

set -u
root=$(cd "$(dirname "$0")/.." && pwd) || exit 2

python=${GPU_CHECK_PYTHON:-}
case ${1:-} in
"" | -*) ;;
*)
	python=$1
	shift
	;;
esac
if [ -z "$python" ]; then
	python=$root/.venv/bin/python
	[ -x "$python" ] || python=python3
fi

if ! "$python" -c 'import torch' 2>/dev/null; then
	echo "gpu_check: $python cannot import torch. Name the Python of an environment that has it." >&2
	exit 2
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
	echo "gpu_check: torch sees no NVIDIA GPU on this machine. Run it where nvidia-smi lists one." >&2
	exit 2
fi

# bound at load, TE would ask cuBLAS for a function that only its grouped products need
unset LD_BIND_NOW
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# what TE wants for the order of its kernels under tensor parallel
CUDA_DEVICE_MAX_CONNECTIONS=1
export PYTHONPATH CUDA_DEVICE_MAX_CONNECTIONS

timeout 470 "$python" "$root/tools/gpu_check/main.py" "$@"
status=$?
if [ "$status" -eq 124 ]; then
	echo "gpu_check: stopped after 470 seconds" >&2
fi
[ "$status" -eq 0 ] || exit 1
