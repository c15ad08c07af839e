"""A sweep: many short trials, the best settings chosen by validation.

    python jobs/sweep.py data=my-data space=tune/graph.yaml
    ray job submit --working-dir . --runtime-env jobs/runtime-env.yaml -- python jobs/sweep.py data=/nfs/data out=/nfs/sweep
    penchant submit jobs/sweep.yaml data=my-data space=tune/graph.yaml

Run it again to continue where it was.
"""

from pathlib import Path

from penchant.runtime.jobs.launch import launch

if __name__ == "__main__":
    launch("sweep", Path(__file__).with_suffix(".yaml"))
