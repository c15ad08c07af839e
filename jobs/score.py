"""Batch scoring: every row of a Parquet file, or of all in a folder, gets its user's score.

    python jobs/score.py data=rows.parquet out=runs/scores
    ray job submit --working-dir . --runtime-env jobs/runtime-env.yaml -- python jobs/score.py data=/nfs/rows out=/nfs/scores
    penchant submit jobs/score.yaml data=rows.parquet out=runs/scores

Run it again to continue where it was.
"""

from pathlib import Path

from penchant.runtime.jobs.launch import launch

if __name__ == "__main__":
    launch("score", Path(__file__).with_suffix(".yaml"))
