#!/usr/bin/env bash
# search -> promote -> report on the text of Python's own standard library, on the CPU, in minutes.
# Usage: make demo   (or, with budgetsweep installed: bash examples/demo.sh [FOLDER])
set -euo pipefail
folder="${1:-demo}"
mkdir -p "$folder"
storage="$folder/budgetsweep.db"

echo "== 1. search: 12 trials of 1e10, 3e10 and 1e11 training FLOPs, for the best at 1e12"
# Large batches, because tiny ones leave a CPU waiting between steps.
budgetsweep search --data demo --budget 1e11 --rungs 0.1,0.3,1 --for-scale 10 --trials 12 --workers 2 --device cpu --storage "$storage" \
  --set batch_size=16 --set seq_len=128 --yes
echo
echo "== 2. promote: one shape with 10 times the FLOPs, its loss predicted before it trains"
budgetsweep promote --scale 10 --device cpu --storage "$storage" --yes
echo
echo "== 3. report"
budgetsweep report --storage "$storage" --output-dir "$folder/report"
echo
echo "Open these:"
echo "  $folder/report/report.html   what was best, what it cost, what to do next"
echo "  $folder/report/best.yaml     the best configuration: budgetsweep train $folder/report/best.yaml"
echo "  $folder/report/data.csv      every run"
echo "  $storage       the study: budgetsweep status --storage $storage"
