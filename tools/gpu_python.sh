# shellcheck shell=sh disable=SC2154
# Sourced by tools/gpu_check.sh and tools/bench/gpu.sh, which set `root` and `tool`: takes PYTHON from the arguments,
# prepares its packages, and refuses a Python without torch and a machine without GPU. Sets `python`.

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

rehearse=
for word in "$@"; do
	[ "$word" = --rehearse ] && rehearse=yes
done

# wheels that were brought along, for a machine that reaches no registry
wheels=${GPU_WHEELS:-}
for folder in "$root/wheels" "$root/../wheels"; do
	[ -n "$wheels" ] || [ ! -d "$folder" ] || wheels=$folder
done
if [ -n "$wheels" ] && [ -n "${GPU_SITE:-}" ]; then
	mkdir -p "$GPU_SITE" || exit 2
	names=$(cd "$wheels" && ls -- *.whl) || exit 2
	if [ "$names" != "$(cat "$GPU_SITE/.wheels" 2>/dev/null)" ]; then
		"$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$GPU_SITE" "$wheels"/*.whl || exit 2
		printf '%s\n' "$names" >"$GPU_SITE/.wheels"
	fi
elif [ -n "$wheels" ]; then
	echo "$tool: wheels lie in $wheels; to use them, name a folder to install them in: GPU_SITE=DIR $tool" >&2
fi
PYTHONPATH=$root${GPU_SITE:+:$GPU_SITE}${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

if ! "$python" -c 'import torch' 2>/dev/null; then
	echo "$tool: $python cannot import torch. Name the Python of an environment that has it." >&2
	exit 2
fi
if [ -n "$rehearse" ]; then
	CUDA_VISIBLE_DEVICES=
	export CUDA_VISIBLE_DEVICES
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
	echo "$tool: torch sees no NVIDIA GPU on this machine. Run it where nvidia-smi lists one." >&2
	exit 2
fi

# bound at load, TE would ask cuBLAS for a function that only its grouped products need
unset LD_BIND_NOW
# what TE wants for the order of its kernels under tensor parallel
CUDA_DEVICE_MAX_CONNECTIONS=1
# sizes change from case to case: without it memory would lie in pieces that fit none
PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
export CUDA_DEVICE_MAX_CONNECTIONS PYTORCH_ALLOC_CONF
