#!/bin/bash
# What a GPU is needed for: its tests, the table, the profile, whole epochs; each part is ended
# after its share of 8 minutes.
#   benchmarks/on_gpu.sh TOKENS_FOLDER OUTPUT_FOLDER [CHECKPOINT_FOLDER]
# With a DistilBERT checkpoint the loss curves are those of fine-tuning, else of random weights.
# It goes on after a part that fails and ends with exit status 1 if any did.
set -uo pipefail
tokens=${1:?the folder of token files, as data/tokens}
output=${2:?a folder to write}
checkpoint=(${3:+--checkpoint "$3"})
mkdir -p "$output"
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0

part() {  # name, limit in seconds, command
  echo "== $1"
  timeout "$2" "${@:3}" 2>&1 | tee "$output/$1.log" || { echo "$1 failed"; failed=1; }
}

nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit --format=csv
part tests 100 python3 -m pytest -m gpu -p no:cacheprovider \
  tests/test_models.py tests/test_speed.py tests/test_training.py
part full_run 120 python3 -m benchmarks.full_run --device cuda --tokens "$tokens" "${checkpoint[@]}" --output "$output"
part profile 40 python3 -m benchmarks.step_profile --device cuda --tokens "$tokens/train.safetensors" \
  --output "$output"
part throughput 220 python3 -m benchmarks.throughput --device cuda --batch-sizes 16,32 --rounds 1 \
  --tokens "$tokens/train.safetensors" --output "$output"
exit $failed
