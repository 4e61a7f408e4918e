#!/bin/bash
# Install what the tests on a local Slurm cluster need, on Debian or Ubuntu; does nothing where it is there.
set -euo pipefail
packages=(slurmctld slurmd slurm-client munge)
commands=(slurmctld slurmd sbatch munged unshare setpriv)

missing=0
for command in "${commands[@]}"; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || missing=1
done
if ((missing == 0)); then
  echo "already installed: $(PATH=$PATH:/usr/sbin slurmctld -V)"
  exit 0
fi
if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
  echo "error: ${packages[*]} are missing; as root on Debian or Ubuntu this script installs them" >&2
  exit 1
fi
# The packages' scripts would start services: here the tests start the daemons themselves.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${packages[@]}" util-linux </dev/null >/dev/null
echo "installed: $(PATH=$PATH:/usr/sbin slurmctld -V)"
