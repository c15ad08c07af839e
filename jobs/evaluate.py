"""The whole fit, as far as it is not done, and the report.

    python jobs/evaluate.py data=my-data out=runs/mine
    ray job submit --working-dir . --runtime-env jobs/runtime-env.yaml -- python jobs/evaluate.py data=/nfs/data out=/nfs/run
    penchant submit jobs/evaluate.yaml data=my-data out=runs/mine

Run it again to continue where it was.
"""

from pathlib import Path

from penchant.runtime.jobs.launch import launch

if __name__ == "__main__":
    launch("evaluate", Path(__file__).with_suffix(".yaml"))
