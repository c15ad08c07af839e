"""The sweep as a script: what `penchant tune` does, for `ray job submit`.

python tune/sweep.py --data my-data --space tune/depth-experts.yaml --out runs/sweep --trials 20 --time 30m
python tune/sweep.py --help
"""

import sys

from penchant.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "tune")
    main()
