"""hydrapack: one shared A, many task heads, one ExecuTorch package."""

__version__ = "0.1.0"
