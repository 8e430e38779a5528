"""What methods, attacks and guards may ask of a model beyond predicting and encoding, and which family cannot do it.

A method or guard names what it needs (``needs``), a model what it lacks and why (:attr:`DiffusionModel.lacking`); ``efface list
methods --model NAME`` prints what follows from the two.
"""

from __future__ import annotations

CAPABILITIES = {
    "attention_maps": "maps of where the picture looks at each word",
    "extra_context": "further tokens in the keys and values of cross-attention",
    "places": "a middle of the network, apart from its other blocks",
    "start_detached": "a start-of-text token without a gradient",
    "official_alignment": "the shifted timesteps of the legacy codes",
    "plms": "the multistep solver of eps, plms",
    "keys_and_values": "separate weights for the keys and the values of the text",
    "text_encoder": "a text encoder that can be trained and gives the tokens that the network reads",
    "guidance": "classifier-free guidance, whose branches a guard changes",
    "unrounded": "the weights as they were published",
    "one_tokenizer": "one tokenizer whose positions are those of the text's vectors",
}
