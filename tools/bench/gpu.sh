#!/bin/sh
# Measures on one NVIDIA GPU of the H100's class what the plans of this project rest on: ceilings of matrix products and
# copies, attention kernels, training steps beside diffusers' and beside a prediction, kernels launched and host reads.
# Run tools/gpu_check.sh first: what is fast and wrong is worth nothing.
#
#   tools/bench/gpu.sh [PYTHON] [--json FILE] [--page FILE] [--minutes 8] [--rehearse]
#
# PYTHON is found as by tools/gpu_check.sh. FILE is gpu.json in $OUT, else in the current folder; the page, one HTML file
# that needs nothing else, lies beside it. Both are rewritten as the run goes on, so that one that is cut off still
# tells. What fails, and what there is no time for, is a row that says so. `--rehearse` runs the same on a CPU with small
# sizes, in about a minute; its numbers mean nothing.
#
# A machine without network may lack packages. Wheels that were brought along are looked for in GPU_WHEELS, else in
# the folder `wheels` of the checkout, else in one beside it, and installed by pip into the folder that GPU_SITE names,
# by no name but their own and from nowhere else; without GPU_SITE nothing is installed. By hand:
#
#   python3 -m pip install -q --no-index --no-deps --no-compile --target DIR wheels/*.whl; export PYTHONPATH=DIR
#
# What to bring: deepspeed, megatron-core, diffusers, transformer-engine and what they need, and of attention kernels
#   flash-attn-4 4.0.0b36, with nvidia-cutlass-dsl 4.8.1 and its -libs-base, -libs-core, -libs-cu12 and -libs-cu13 (whose
#   wheel of 92 MB may have to travel in halves), apache-tvm-ffi below 0.2, torch-c-dlpack-ext, quack-kernels,
#   cuda-bindings 12.8 or later, protobuf, einops;
#   nvidia-cudnn-frontend 1.32.0, with cuDNN 9.25 or later for segments without keys (nvidia-cudnn-cu13).
#
# Exit status: 0 the run came to its end, 1 nothing was measured or time ran out, 2 there is no GPU, or no such Python.

set -u
root=$(cd "$(dirname "$0")/../.." && pwd) || exit 2
tool=gpu_bench
# shellcheck source=tools/gpu_python.sh
. "$root/tools/gpu_python.sh"

minutes=8
previous=
for word in "$@"; do
	case $previous in --minutes) minutes=$word ;; esac
	case $word in --minutes=*) minutes=${word#--minutes=} ;; esac
	previous=$word
done
# the run ends by itself; this is for a driver that hangs
limit=$("$python" -c 'import sys; print(round(60 * float(sys.argv[1])) + 45)' "$minutes") || exit 2

timeout "$limit" "$python" "$root/tools/bench/gpu/main.py" "$@"
status=$?
if [ "$status" -eq 124 ]; then
	echo "gpu_bench: stopped after $limit seconds" >&2
fi
[ "$status" -eq 0 ] || exit 1
