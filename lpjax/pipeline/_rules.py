"""How a text is read: what the files of sentence-transformers say of prompts, length and case."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TextRules:
    """How a folder's text is read before the net.

    Attributes:
        max_length: tokens of a text at most, or None: what the tokenizer says.
        lower_case: whether the tokenizer is made to lower the case of what it is given.
        prompts: (name, text) pairs; a prompt is put before a text.
        default_prompt: name of the one that is used if none is asked for, or None.
        tokenizer: (name, value) pairs, further arguments of `AutoTokenizer.from_pretrained`.
    """

    max_length: int | None = None
    lower_case: bool = False
    prompts: tuple[tuple[str, str], ...] = (("query", ""), ("document", ""))
    default_prompt: str | None = None
    tokenizer: tuple[tuple[str, bool | str], ...] = ()

    def prompt(self, prompt: str | None, name: str | None) -> str:
        """The text to put before texts: the one given, or that of this name, or the default one, or none.

        Raises:
            ValueError: both are given, or there is no prompt of this name.
        """
        if prompt is not None and name is not None:
            raise ValueError(f"`prompt` is {prompt!r} and `prompt_name` {name!r}; pass one of them")
        if prompt is not None:
            return prompt
        name = self.default_prompt if name is None else name
        known = dict(self.prompts)
        if name is not None and name not in known:
            raise ValueError(f"`prompt_name` is {name!r}; expected one of {', '.join(map(repr, known))}")
        return "" if name is None else known[name]
