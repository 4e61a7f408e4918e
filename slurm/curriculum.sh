#!/bin/bash
# Submit 5 stages and the evaluation, each to begin when the one before it is done.
#
# Options go to sbatch for each stage, words to each stage's script; --from K begins with stage K:
#   slurm/curriculum.sh --nodes=64 optim.lr=1e-4
# MEGAVIDEO_OVERRIDES_3 holds words for stage 3 alone. The variables of the stages' scripts count here too.
#
# Rendered, so change configs/cluster or the words of this command, not the file:
#   slurm-gen cluster=default run=wan_14b curriculum=sora out=slurm

set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
refuse() { # before anything is submitted
  echo "error: $1" >&2
  exit 2
}
first=1 options=() words=()
while (($#)); do
  case $1 in
    --from) first=${2-} && shift ;;
    --from=*) first=${1#*=} ;;
    -*) options+=("$1") ;;
    *=*) words+=("$1") ;;
    *) refuse "$1: neither an option nor KEY=VALUE. Remedy: join the value of an option to it, as --nodes=64" ;;
  esac
  shift $(($# > 0))
done
if [[ ! $first =~ ^[1-9][0-9]*$ ]] || ((first > 5)); then
  refuse "--from=$first: no stage has that number. Remedy: take 1 to 5"
fi
for word in "${words[@]}"; do # evaluation takes no words of training, but must find the run
  case $word in
    name=*) export MEGAVIDEO_RUN=${word#*=} ;;
    run=*) preset=${word#*=} ;;
    output=*) export MEGAVIDEO_OUTPUT=${word#*=} ;;
  esac
done
export MEGAVIDEO_RUN=${MEGAVIDEO_RUN:-${preset:-wan_14b}}
mkdir -p "$here/logs"

previous=''
submit() { # a job that waits for the one before it, and is cancelled where that fails for good
  local after=()
  [[ -z $previous ]] || after=(--dependency="afterok:$previous")
  previous=$(sbatch --parsable --job-name="$MEGAVIDEO_RUN-$1" --output="$here/logs/%x-%j.log" "${after[@]}" "${@:2}")
  previous=${previous%%;*}
  echo "$1 $previous"
}
for ((stage = first; stage <= 5; stage++)); do
  submit "stage$stage" "${options[@]}" "$here/stage$stage.sbatch" "${words[@]}"
done
submit evaluate "$here/evaluate.sbatch"
