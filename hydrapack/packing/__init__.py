"""A bundle to what the device gets: ``adapters.pte`` and ``manifest.json``."""
