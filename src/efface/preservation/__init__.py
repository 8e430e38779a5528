"""Preservation: which concepts an erasure must not damage, the searches for the one that it damages most, and the attacker that
an erasure may be trained against."""
