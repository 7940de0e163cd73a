"""Make open-weight language models hard to fine-tune towards harm, and find out honestly whether it worked."""

from importlib.metadata import version

__version__ = version("repnoise")
