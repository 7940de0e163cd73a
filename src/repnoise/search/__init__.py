"""The search for the worst attack that a budget finds."""

from repnoise.search.command import SearchConfig, search

__all__ = ["SearchConfig", "search"]
