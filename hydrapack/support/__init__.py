"""What every room uses: errors, JSON, whole files, sizes, threads."""
