"""A package on the ExecuTorch runtime."""

from hydrapack.device.session import Session

__all__ = ["Session"]
