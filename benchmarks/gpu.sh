#!/bin/sh
# Every benchmark that wants a GPU, on one GPU; each prints a table and writes runs/benchmarks/NAME.json.
#
#   sh benchmarks/gpu.sh              # made for 80 GiB and more
#   sh benchmarks/gpu.sh --small      # tiny sizes, wherever it runs: only to see that everything works
#
# PYTHON names the interpreter (default: .venv/bin/python). PEAK is the data sheet's dense bfloat16 TFLOP/s of the GPU, if known.
# A benchmark that fails, for want of memory for instance, is named at the end, and the others run all the same.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
failed=""

run() {
    echo "== $*"
    "$PYTHON" "benchmarks/$@" || failed="$failed
  $*"
}

if [ "${1:-}" = "--small" ]; then
    run roofline.py --small --rounds 2
    run decoder_step.py --sequences 2 --tokens 16 --steps 1
    run candidates.py --candidates 4 --tokens 16 --rounds 2
    run many_users.py --base tiny --users 5 20 --peft 5 --tokens 16 --rounds 2
    run mole_step.py --sequences 4 --tokens 8 --rounds 2
    run graph_scale.py --users 2000 6000 20000 --dim 16 --layers 1
    run grouped_adapters.py --quick --rounds 1
else
    run roofline.py
    for shape in 2b 8b; do
        run decoder_step.py --shape "$shape" ${PEAK:+--peak "$PEAK"}
        run candidates.py --shape "$shape"
        run many_users.py --base "$shape"
    done
    run many_users.py
    run mole_step.py
    run graph_scale.py --users 10000 100000 1000000 10000000
    run graph_scale.py
    run grouped_adapters.py
fi
[ -z "$failed" ] || { echo "These failed:$failed"; exit 1; }
