"""The rules for reading text: prompts, length and case, from the files of sentence-transformers."""

from __future__ import annotations

import dataclasses

from lpjax._check import check_name


@dataclasses.dataclass(frozen=True)
class TextRules:
    """How texts are prepared for the model.

    Attributes:
        max_length: largest number of tokens of a text, or None for the tokenizer's limit.
        lower_case: whether the tokenizer converts texts to lower case.
        prompts: (name, text) pairs; a prompt is put before each text.
        default_prompt: name of the prompt that is used by default, or None.
        tokenizer: (name, value) pairs, further arguments of `AutoTokenizer.from_pretrained`.
    """

    max_length: int | None = None
    lower_case: bool = False
    prompts: tuple[tuple[str, str], ...] = (("query", ""), ("document", ""))
    default_prompt: str | None = None
    tokenizer: tuple[tuple[str, bool | str], ...] = ()

    def prompt(self, prompt: str | None, name: str | None) -> str:
        """The prompt to put before texts: `prompt`, or the one called `name`, or the default one, or "".

        Raises:
            ValueError: both are given, or no prompt has this name.
        """
        if prompt is not None and name is not None:
            raise ValueError(f"`prompt` is {prompt!r} and `prompt_name` {name!r}; pass one of them")
        if prompt is not None:
            return prompt
        name = self.default_prompt if name is None else name
        known = dict(self.prompts)
        if name is None:
            return ""
        check_name("prompt_name", name, known)
        return known[name]
