"""Turn a GGUF file into a Hugging Face folder, which training and evaluation take.

    python examples/gguf_folder.py model.gguf build/base --dtype bfloat16 --sha256 0123abcd...

Where a file comes in parts, join them first: cat part*.bin > model.gguf
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hydrapack.base.gguf import save_as_folder
from hydrapack.support.atomic import new_directory
from hydrapack.support.digest import file_sha256


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path, help="to be made")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--sha256", help="of the file; another one is refused")
    args = parser.parse_args(arguments)
    if not args.gguf.is_file():
        parser.error(f"{args.gguf}: no such file")
    digest = file_sha256(args.gguf)
    if args.sha256 not in (None, digest):
        parser.error(f"{args.gguf}: has SHA-256 {digest}, not {args.sha256}")
    with new_directory(args.folder) as partial:
        save_as_folder(args.gguf, partial, getattr(torch, args.dtype))
    print(f"{args.folder}: from {args.gguf.name}, SHA-256 {digest}")


if __name__ == "__main__":
    main()
