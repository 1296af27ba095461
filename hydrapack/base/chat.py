"""A tokenizer's chat template as a prompt template with ``{input}``, made once, at export.

The template is Jinja, as ``tokenizer.apply_chat_template`` of transformers renders it; a device
needs no Jinja, and a user's text cannot close its own turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hydrapack.adapters.prompt import PLACEHOLDER
from hydrapack.support.errors import Invalid
from hydrapack.support.extras import need


def chat_template_of(folder: Path) -> str:
    """Jinja of the chat template in a Hugging Face folder; empty if it has none.

    Raises:
        Invalid: an unreadable file.
    """
    own, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if own.exists():
            return own.read_text(encoding="utf-8")
        raw = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        found = raw.get("chat_template") or ""
        # Several templates have names; the one for plain chat is called default.
        named = found if isinstance(found, list) else [{"name": "default", "template": found}]
        return str({t["name"]: t["template"] for t in named}.get("default", ""))
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise Invalid(f"{folder}: unreadable chat template: {error}") from error


def one_turn(jinja: str, tokenizer_json: bytes, ids: Mapping[str, int]) -> str:
    """The prompt of one user's turn ``{input}``, up to where the answer begins.

    Without the day's date, which some templates ask for: a program's bytes do not depend on it.

    Args:
        jinja: the chat template.
        tokenizer_json: names the tokens of ``ids``.
        ids: of the tokens that the template may name, as bos_token; -1 for none.

    Returns:
        empty where the template cannot be rendered so.
    """
    jinja2 = need("jinja2", "export")
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    tokenizer = need("tokenizers", "export").Tokenizer.from_buffer(tokenizer_json)
    tokens = {name: tokenizer.id_to_token(i) or "" if i >= 0 else "" for name, i in ids.items()}
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    turn = [{"role": "user", "content": PLACEHOLDER}]
    try:
        made = environment.from_string(jinja).render(
            messages=turn, add_generation_prompt=True, **tokens
        )
    except Exception:  # a template is a program of its own
        return ""
    return made if made.count(PLACEHOLDER) == 1 else ""
