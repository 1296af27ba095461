"""What whoever writes or runs a .pte shares: the packed layout, stored integers, loading."""
