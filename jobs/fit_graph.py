"""The graph stage: user embeddings from the preference graph.

    python jobs/fit_graph.py data=my-data out=runs/mine
    ray job submit --working-dir . --runtime-env jobs/runtime-env.yaml -- python jobs/fit_graph.py data=/nfs/data out=/nfs/run
    penchant submit jobs/fit_graph.yaml data=my-data out=runs/mine

Run it again to continue where it was.
"""

from pathlib import Path

from penchant.runtime.jobs.launch import launch

if __name__ == "__main__":
    launch("fit_graph", Path(__file__).with_suffix(".yaml"))
