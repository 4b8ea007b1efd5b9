#!/usr/bin/env bash
# Everything that a graphics card has to show, in one command on a machine that has nothing but Python and torch.
#
#   bash benchmarks/card.sh [--wheels DIR] [--out DIR] [--device cuda|cpu] [--reduced] [--seconds 540] [--only PART ...]
#
# Wheels in DIR whose package is missing are put into a throwaway folder; nothing on the machine is changed.
# Ends with a table on stdout and card.json, card.md and card.log in --out; exit code 0 where all that must be exact is.
set -u
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
wheels=
seconds=540
rest=()
while [ $# -gt 0 ]; do
  case $1 in
    --wheels | --seconds)
      [ $# -gt 1 ] || { echo "card.sh: $1 needs a value" >&2; exit 2; }
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    *)
      rest+=("$1")
      shift
      ;;
  esac
done
python=$(command -v python3) || { echo "card.sh: there is no python3" >&2; exit 2; }
scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT

install() {
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
    --find-links "$wheels" --target "$scratch/site" "$@" >&2
}

if [ -n "$wheels" ]; then
  [ -d "$wheels" ] || { echo "card.sh: --wheels $wheels is not a folder" >&2; exit 2; }
  mapfile -t missing < <("$python" "$root/benchmarks/card.py" --missing "$wheels")
  # One at a time where one of them does not fit this Python.
  if [ ${#missing[@]} -gt 0 ] && ! install "${missing[@]}"; then
    for package in "${missing[@]}"; do
      install --upgrade "$package" || echo "card.sh: $package could not be installed" >&2
    done
  fi
fi
export PYTHONPATH="$root/src:$root:$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
# What a part that is stopped leaves behind goes with the folder.
export PYTHONDONTWRITEBYTECODE=1 TMPDIR="$scratch"
"$python" "$root/benchmarks/card.py" --seconds $((seconds - SECONDS)) ${rest[@]+"${rest[@]}"}
