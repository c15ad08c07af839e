"""`penchant fit` and its stages, under Ray Train."""
