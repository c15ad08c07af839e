"""The reward model: heads on frozen features, personal through the user embedding (CoPL's second stage)."""
