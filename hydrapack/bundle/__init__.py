"""A merge: its modules, on disk, rounded, and as PEFT adapters."""
