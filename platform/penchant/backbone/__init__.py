"""The frozen base model: loading, pooling, and features that are computed once."""
