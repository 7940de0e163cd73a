"""Evaluations: what is asked, how text is generated, which numbers come of it."""
