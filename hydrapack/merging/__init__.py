"""From adapters to a bundle: methods, plans for a byte budget, one task more."""
