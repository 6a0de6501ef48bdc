#!/bin/sh
# The main job, end to end: base, prompts, bundle, check, one mixed batch, scores.
#
#   sh examples/quickstart/run.sh [FOLDER]
#
# Leaves its work in FOLDER (quickstart): run/ (prompt table, metrics, curves) and bundle/.
set -eu
here=$(dirname "$0")
out=${1:-quickstart}
mkdir -p "$out"

# How long an idle thread of torch spins before it sleeps. Measured on 2 cores: with no spinning a step takes a
# quarter longer on a quiet machine; with as much as by default, a third longer beside another job.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-2000}"

echo "1. The base: SmolLM2-135M-Instruct"
plc fetch smollm2-135m

echo "2. Train two tasks on it"
rm -rf "$out/run"
plc train "$here/train.yaml" --output "$out/run"

echo "3. Compile the prompts and the base into a bundle; score it beside the same in float32"
plc export --prompts "$out/run/prompts.safetensors" --output "$out/bundle" \
    --evaluate "$here/data/ticket_test.jsonl" --evaluate "$here/data/command_test.jsonl"

echo "4. Check the bundle against torch"
plc verify "$out/bundle" --reference smollm2-135m

echo "5. One batch that mixes both tasks"
{
    head -n 6 "$here/data/ticket_test.jsonl"
    head -n 6 "$here/data/command_test.jsonl"
} > "$out/requests.jsonl"
plc generate "$out/bundle" --input "$out/requests.jsonl"

echo "6. The same examples, without the prompts and with them"
plc eval "$out/bundle" --data "$here/data/ticket_test.jsonl" --data "$here/data/command_test.jsonl"

echo "Left in $out: run/ (prompts.safetensors, metrics.jsonl, curves.png) and bundle/"
