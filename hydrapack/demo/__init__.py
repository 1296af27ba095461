"""The embedded default: a small real model, five real adapters, and the whole job over them."""
