"""The preference graph and its encoder: user embeddings from choices (CoPL's first stage)."""
