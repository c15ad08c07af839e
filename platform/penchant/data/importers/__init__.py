"""From other formats to the data contract."""
