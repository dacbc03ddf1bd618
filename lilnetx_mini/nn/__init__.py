"""LilNetX for torch: the ideas of the top level under the same names, plus what only training needs.

compressor = nn.reparameterize(model)                        # weights become latents, in place
optimizer = torch.optim.Adam(compressor.parameter_groups())
penalty = compressor.penalty()                               # .rate, .group, .l2
(task_loss + 1.0 * penalty.rate + 1.0 * penalty.group).backward()
compressor.save("model.lnx", example_input)                  # one file, checked before it gets its name
"""

from ..errors import MissingExtraError

try:
    import torch  # noqa: F401
except ImportError as e:
    raise MissingExtraError("torch", "train") from e

from .bits import quantize
from .compress import Compressed, compress
from .compressor import Compressor, Penalty, reparameterize
from .export import capture, load_into, save
from .shrink import shrink, shrunk_summary
from .surrogate import low_rank, prune

__all__ = [
    "Compressed", "Compressor", "Penalty", "capture", "compress", "load_into", "low_rank", "prune", "quantize", "reparameterize", "save",
    "shrink", "shrunk_summary",
]  # fmt: skip
