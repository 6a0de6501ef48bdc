#!/bin/sh
# Two sessions, three tasks: the flow of NeMo's multi-task tutorial.
#
#   sh examples/tutorial/run.sh DATA [FOLDER]
#
# DATA holds what the publishers give out: FinancialPhraseBank-v1.0/, squad/ and NLU-Evaluation-Data
# (in any folder below). Leaves its work in FOLDER (tutorial). STEPS=n cuts both sessions to n steps.
set -eu
here=$(dirname "$0")
source=${1:?give the folder that holds the publishers\' files}
out=${2:-tutorial}

# How long an idle thread of torch spins before it sleeps: see examples/quickstart/run.sh.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-2000}"

echo "1. The base: SmolLM2-135M-Instruct"
plc fetch smollm2-135m

echo "2. The data: the publishers' files to JSONL, and of these the first lines"
plc prepare phrasebank --input "$source/FinancialPhraseBank-v1.0" --output "$out/prepared"
plc prepare assistant --input "$source" --output "$out/prepared"
plc prepare squad --input "$source/squad" --output "$out/prepared"
mkdir -p "$out/data"
first() { # FILE LINES TO
    head -n "$2" "$out/prepared/$1.jsonl" > "$out/data/$3.jsonl"
}
first financial_phrase_bank_train 1200 sentiment_train
first financial_phrase_bank_val 60 sentiment_val
first financial_phrase_bank_test_ground_truth 60 sentiment_test
first assistant_train 2400 intent_and_slot_train
first assistant_val 60 intent_and_slot_val
first assistant_test_ground_truth 60 intent_and_slot_test
first squad_train 640 squad_train
first squad_val 40 squad_val
first squad_test_ground_truth 40 squad_test
cp "$here/session1.yaml" "$here/session2.yaml" "$out/"

train() { # SESSION
    rm -rf "${out:?}/$1"
    plc train "$out/$1.yaml" --output "$out/$1" \
        ${STEPS:+--set trainer.max_steps="$STEPS" --set trainer.val_check_interval="$STEPS"}
    plc tasks ls "$out/$1/prompts.safetensors"
}

echo "3. Session 1: sentiment and intent_and_slot together, by p-tuning"
train session1

echo "4. Session 2: squad into the same table, by prompt tuning"
train session2

echo "5. The bytes of the first two tasks, before and after"
python3 - "$out/session1/prompts.safetensors" "$out/session2/prompts.safetensors" <<'PYTHON'
import hashlib
import sys
from pathlib import Path

from pl_compile.artifact.prompt_table import read_prompt_table

before, after = (read_prompt_table(Path(path)).entries for path in sys.argv[1:])
for name, entry in before.items():
    sums = [hashlib.sha256(e.learned.tobytes()).hexdigest() for e in (entry, after[name])]
    same = sums[0] == sums[1] and entry.record() == after[name].record()
    print(f"{name}: {sums[0]} {'unchanged' if same else 'CHANGED: ' + sums[1]}")
    if not same:
        sys.exit(1)
print(f"tasks now: {', '.join(after)}")
PYTHON

echo "6. All three into one bundle"
plc export --prompts "$out/session2/prompts.safetensors" --output "$out/bundle"

echo "7. One batch that mixes the three"
{
    head -n 3 "$out/prepared/financial_phrase_bank_test.jsonl"
    head -n 3 "$out/prepared/assistant_test.jsonl"
    head -n 3 "$out/prepared/squad_test.jsonl"
} > "$out/requests.jsonl"
plc generate "$out/bundle" --input "$out/requests.jsonl"

echo "8. Held-out examples, without the prompts and with them"
plc eval "$out/bundle" --data "$out/data/sentiment_test.jsonl" \
    --data "$out/data/intent_and_slot_test.jsonl" --data "$out/data/squad_test.jsonl"

echo "Left in $out: session1/ and session2/ (tables, metrics, curves), data/ and bundle/"
