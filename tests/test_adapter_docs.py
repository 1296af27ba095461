"""docs/adapters.md says what the code does."""

import importlib.util

from conftest import ROOT

from hydrapack.adapters.peft_config import HARMLESS, REFUSED


def test_the_page_is_written_from_the_code():
    spec = importlib.util.spec_from_file_location("make_adapters", ROOT / "docs/make_adapters.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    text = (ROOT / "docs/adapters.md").read_text(encoding="utf-8")
    assert text.startswith(make.page()), "run docs/make_adapters.py"
    for key in [*REFUSED, *" ".join(HARMLESS.values()).split()]:
        assert f"`{key}`" in text
