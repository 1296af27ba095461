"""Merge methods: each takes one module's updates to a shared A, heads and an assignment."""
