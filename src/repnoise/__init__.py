"""Make open-weight language models hard to fine-tune towards harm, and find out honestly whether it worked."""

import logging
from importlib.metadata import version

__version__ = version("repnoise")

# transformers imports bitsandbytes wherever it is installed, which on some CPUs then asks for a package that nothing
# here would use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
