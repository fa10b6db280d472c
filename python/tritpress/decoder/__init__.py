"""A small decoder on the packed kernels: Llama-like and GPT-2-like models with a KV cache, in numpy alone.

It reads a packed directory itself, so a machine without torch can write text. At one token a time numpy's
small operations cost about a microsecond each, several times less than torch's, and the products run in the
Rust kernels either way. What it does not know raises `UnsupportedModel`; transformers is the way then.
"""

from tritpress.decoder.architecture import Architecture, UnsupportedModel, read_architecture
from tritpress.decoder.model import Decoder
from tritpress.decoder.sampling import Sampler

__all__ = ["Architecture", "Decoder", "Sampler", "UnsupportedModel", "read_architecture"]
