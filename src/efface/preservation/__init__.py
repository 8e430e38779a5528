"""Preservation: the concepts that an erasure must not damage, the searches for the most damaged
one, and an attacker to train against."""
