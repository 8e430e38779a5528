"""What a Hub says when it refuses."""

from __future__ import annotations


def told(error: Exception) -> str:
    """What an error of the Hub says, on one line and without the user's token, should it be in there."""
    from huggingface_hub import get_token

    text = " ".join(str(error).split()) or type(error).__name__
    token = get_token()
    return text.replace(token, "<token>") if token else text
