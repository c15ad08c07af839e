"""Onboarding many users: embeddings from their choices of any texts.

    python jobs/onboard.py comparisons=choices.parquet out=runs/onboarded
    ray job submit --working-dir . --runtime-env jobs/runtime-env.yaml -- python jobs/onboard.py comparisons=/nfs/in out=/nfs/out
    penchant submit jobs/onboard.yaml comparisons=choices.parquet out=runs/onboarded

Run it again to continue where it was.
"""

from pathlib import Path

from penchant.runtime.jobs.launch import launch

if __name__ == "__main__":
    launch("onboard", Path(__file__).with_suffix(".yaml"))
