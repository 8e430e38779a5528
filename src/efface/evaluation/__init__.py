"""Evaluation: suites of paired cases, scored rows, and what may be concluded from them."""
