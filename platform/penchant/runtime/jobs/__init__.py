"""Jobs: what can be submitted to a cluster, each a settings model that knows what it does."""
