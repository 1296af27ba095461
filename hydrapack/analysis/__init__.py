"""Looking at adapters, merges and files: similarity, trade-offs, plots, descriptions."""
