"""`python -m penchant.runtime.jobs --config job.yaml`: the entry point of a submitted job."""

from penchant.runtime.jobs.launch import launch

launch()
