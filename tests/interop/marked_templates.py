# SPDX-License-Identifier: Apache-2.0
"""The test tokenizers' chat templates with {% generation %} marks: the same text, the assistant's part shown to TRL.

TRL needs marks for assistant_only_loss and ships marked templates for a few models. The marks here follow its own
convention: from after the generation prompt up to and including the end of the turn.
"""

BEGIN, END = "{%- generation %}", "{%- endgeneration %}"

_CHATML = """'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'"""
_SMOLLM2 = (
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endgeneration %}{% else %}{{"
    + _CHATML
    + "}}{% endif %}"
)

_QWEN3_HEAD = "'<|im_start|>' + message.role + '\\n"

EDITS = {
    "llama2": [
        (
            "{{ ' ' + content | trim + ' ' + eos_token }}",
            "{% generation %}{{ ' ' + content | trim + ' ' + eos_token }}{% endgeneration %}",
        )
    ],
    "mistral-v3": [
        (
            "{{ ' ' + message['content'] | trim + eos_token }}",
            "{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}",
        )
    ],
    "smollm2": [("{{" + _CHATML + "}}", _SMOLLM2)],
    "qwen3": [
        (
            '{%- elif message.role == "assistant" %}',
            "{%- elif message.role == \"assistant\" %}{{- '<|im_start|>assistant\\n' }}" + BEGIN,
        ),
        ("{{- " + _QWEN3_HEAD + "<think>\\n'", "{{- '<think>\\n'"),
        ("{{- " + _QWEN3_HEAD + "' + content }}", "{{- content }}"),
        (
            "{{- '<|im_end|>\\n' }}\n    {%- elif message.role == \"tool\" %}",
            "{{- '<|im_end|>\\n' }}" + END + '\n    {%- elif message.role == "tool" %}',
        ),
    ],
}


def marked(name, template):
    """The template of tokenizer `name` with marks; None where TRL has its own marked version of it."""
    if name not in EDITS:
        return None
    for old, new in EDITS[name]:
        assert old in template, f"{name}: its chat template has changed"
        template = template.replace(old, new)
    return template
