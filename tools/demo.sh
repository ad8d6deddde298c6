#!/usr/bin/env bash
# The demo of `make demo` (smollm2) and `make demo-offline` (stories260k): the same question before and after a short
# LoRA fine-tuning, with the held-out perplexity that `fettle train` prints. A finished run is not trained again. What
# follows the name are options of the training.
set -euo pipefail
cd "$(dirname "$0")/.."
fettle=build/release/fettle

case ${1:-} in
  smollm2)
    config=examples/smollm2_medical.yaml
    question=(--prompt="What are the symptoms of a sinus infection?" --max_new_tokens=96)
    ;;
  stories260k)
    config=examples/stories260k_tinystories.yaml
    question=(--prompt="Once upon a time" --raw_prompt=true --max_new_tokens=96)
    ;;
  *)
    echo "usage: tools/demo.sh smollm2|stories260k" >&2
    exit 64
    ;;
esac
output=runs/demo-$1
model=$(sed -n 's/^model_name_or_path: *//p' "$config")

answer() { "$fettle" generate --model_name_or_path="$model" "${question[@]}" --log_level=warning "$@"; }

echo "Before:"
answer
echo
"$fettle" train "$config" --output_dir="$output" "${@:2}"
echo
echo "After:"
answer --adapter_name_or_path="$output"
